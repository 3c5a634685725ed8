import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.assimilation._ensemble_window import observe_window
from skyens.observations import Diagonal, Linear, Observation

generator = np.random.default_rng(0)
MATRIX = generator.normal(size=(2, 3))
ENSEMBLE = jnp.asarray(generator.normal(size=(4, 3)))
VALUES = generator.normal(size=(3, 2))
VALUES[1, 0] = np.nan


def observe(value):
    return Observation(value, Linear(MATRIX), Diagonal(0.5))


def grow(state, forcing=None, *, key=None):
    noise = 0.0 if key is None else jr.normal(key, state.shape)
    return 1.1 * state + noise


def look(key=None):
    window = jax.vmap(observe)(jnp.asarray(VALUES))
    return observe_window(grow, ENSEMBLE, window, steps_between=2, key=key)


def test_entry_i_is_seen_after_its_steps():
    innovation, anomalies = look()
    mean = np.asarray(ENSEMBLE).mean(0)
    departures = (np.asarray(ENSEMBLE) - mean) @ MATRIX.T / 0.5
    assert innovation.shape == (6,)
    assert anomalies.shape == (4, 6)
    for entry in range(3):
        growth, rows = 1.1 ** (2 * entry + 2), slice(2 * entry, 2 * entry + 2)
        seen = np.isfinite(VALUES[entry])
        expected = np.where(seen, (VALUES[entry] - growth * MATRIX @ mean) / 0.5, 0)
        np.testing.assert_allclose(innovation[rows], expected, rtol=1e-12)
        expected = np.where(seen, growth * departures, 0)
        np.testing.assert_allclose(anomalies[:, rows], expected, rtol=1e-12, atol=1e-14)


def test_a_random_step_is_the_same_each_time_and_differs_between_members():
    first, again = look(jr.key(1)), look(jr.key(1))
    np.testing.assert_array_equal(first[1], again[1])
    shift = first[1] - look()[1]
    assert np.unique(np.round(shift[:, 0], 6)).size == 4


def test_wrong_use_is_reported():
    alone = Observation(jnp.asarray(1.0), lambda state: state[0], Diagonal(1.0))
    with pytest.raises(ValueError, match="stacked on a leading axis"):
        observe_window(grow, ENSEMBLE, alone, steps_between=1, key=None)
