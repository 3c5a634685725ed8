import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens.observations._checks import check_values

positive = lambda values: values > 0


def test_fine_values_pass_and_known_ones_leave_no_trace_in_a_program():
    known = jnp.asarray([1.0, 2.0])
    check = lambda values: check_values("x", "above 0", values, positive)
    np.testing.assert_array_equal(check(known), known)
    closed_over = jax.make_jaxpr(lambda: check(known))()
    assert closed_over.eqns == []
    traced = jax.make_jaxpr(check)(known)
    assert traced.eqns != []


def test_wrong_ones_are_counted_and_the_first_is_shown():
    values = np.asarray([[1.0, -2.0], [np.nan, 4.0]])
    message = r"`x` must be above 0: 2 of 4 .* first, at \(0, 1\), is -2\.0"
    with pytest.raises(eqx.EquinoxRuntimeError, match=message):
        check_values("x", "above 0", values, positive)
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"1 of 1 .* at \(\), is -1"):
        check_values("x", "above 0", np.asarray(-1.0), positive)


def test_wrong_ones_are_reported_under_jit():
    check = eqx.filter_jit(lambda x: check_values("x", "above 0", x, positive))
    with pytest.raises(eqx.EquinoxRuntimeError, match="`x` must be above 0"):
        check(jnp.asarray([1.0, -1.0]))
