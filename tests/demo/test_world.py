import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import demo, dynamics, ensembles


@pytest.fixture(scope="module")
def analyses():
    return demo.open_analyses()


@pytest.fixture(scope="module")
def noisy(analyses):
    return demo.fit_model_error(
        demo.physics(analyses.grid), analyses, members=16, key=jr.key(0)
    )


def test_the_sample_is_what_it_says(analyses):
    assert analyses.height.shape == (10, 4, 61, 120)
    assert analyses.height.dtype == np.float32
    # 500 hPa lies near 5,500 m; the ten members differ by metres.
    assert 5400 < analyses.height.mean() < 5600
    assert analyses.height.std(axis=0).mean() < 3
    assert np.all(np.diff(analyses.time) == np.timedelta64(12, "h"))
    np.testing.assert_array_equal(analyses.truth, analyses.height[0, 1:])


def test_spread_at_12_hours_is_the_error_there(analyses, noisy):
    # Other members than those of the fit: within what 32 of them can tell.
    keys = dynamics.member_keys(jr.key(1), 32)
    start = jnp.broadcast_to(analyses.height[0, 0], (32, 61, 120))
    states = jax.vmap(lambda value, key: noisy.start(value, key=key))(start, keys)
    path = ensembles.rollout(noisy, states, 2, key=jr.key(2))["value"][:, -1]
    error = demo.first_error(demo.physics(analyses.grid), analyses)
    grid = analyses.grid
    weights = grid.weights * (np.abs(grid.latitude) >= 20)
    mean = lambda square: np.sqrt(weights @ square.mean(-1) / weights.sum())
    spread = mean(np.var(np.asarray(path), axis=0, ddof=1))
    assert abs(spread / mean(error**2) - 1) < 0.12


def test_noise_is_largest_where_the_model_erred_most(analyses, noisy):
    error = demo.first_error(demo.physics(analyses.grid), analyses)
    by_latitude = np.sqrt(np.mean(error**2, axis=-1))
    amplitude = np.asarray(noisy.inject.amplitude)
    assert np.corrcoef(np.log(amplitude), np.log(by_latitude))[0, 1] > 0.8
