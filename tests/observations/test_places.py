import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from skyens.observations._places import check_latitude, check_levels, check_places


def test_places_pass_poles_and_the_unknown_included():
    latitude = np.asarray([90.0, -90.0, np.nan])
    np.testing.assert_array_equal(check_latitude(latitude), latitude)
    both = check_places(latitude, np.zeros(3))
    np.testing.assert_array_equal(both[0], latitude)
    message = r"`latitude` must be in \[-90, 90\]: 1 of 3 .* at \(0,\), is 90\.5"
    with pytest.raises(eqx.EquinoxRuntimeError, match=message):
        check_places(latitude + 0.5, np.zeros(3))
    with pytest.raises(ValueError, match=r"the same shape, got \(3,\) and \(2,\)"):
        check_places(latitude, np.zeros(2))
    with pytest.raises(eqx.EquinoxRuntimeError, match="`latitude` must be in"):
        eqx.filter_jit(check_latitude)(jnp.asarray([91.0]))


def test_levels_run_either_way_and_never_turn():
    for levels in ([1e4, 5e4, 1e5], [1e5, 5e4, 1e4]):
        np.testing.assert_array_equal(check_levels(np.asarray(levels)), levels)
    for levels in ([1e4, 5e4, 5e4], [1e5, 5e4, 6e4], [0.0, 1e4], [1e4, np.nan]):
        with pytest.raises(eqx.EquinoxRuntimeError, match="`levels` must be finite, "):
            check_levels(np.asarray(levels))
        with pytest.raises(eqx.EquinoxRuntimeError, match="`levels` must be finite, "):
            eqx.filter_jit(check_levels)(jnp.asarray(levels))
    with pytest.raises(ValueError, match="at least 2 pressures, got 1"):
        check_levels(np.asarray([1e5]))
