import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens.scores import Exceedance


@pytest.mark.parametrize("above", [True, False])
def test_rates_are_those_of_numpy(above):
    rng = np.random.default_rng(0)
    # Whole numbers: many are equal to a threshold, which is no event.
    ensemble, truth = np.split(rng.integers(-2, 3, (5, 2, 30)).astype(float), [4])
    weights, where = rng.random(30), rng.random((4, 2, 30)) < 0.6
    stat = Exceedance((-1.0, 1.0), above)
    update = jax.jit(stat.update)
    state = update(stat.init((2,)), ensemble, truth[0], weights, where)
    found = stat.finalize(state)
    valid = where.sum(0)
    weights = weights * (valid > 0)
    for i, threshold in enumerate((-1.0, 1.0)):
        event = (lambda x: x > threshold) if above else (lambda x: x < threshold)
        share = (event(ensemble) & where).sum(0) / np.maximum(valid, 1)
        mean = lambda x: (x * weights).sum(-1) / weights.sum(-1)
        forecast, observed = mean(share), mean(event(truth[0]))
        np.testing.assert_allclose(found.forecast[:, i], forecast, rtol=1e-13)
        np.testing.assert_allclose(found.observed[:, i], observed, rtol=1e-13)
        np.testing.assert_allclose(found.ratio[:, i], forecast / observed, rtol=1e-13)


def test_thresholds_may_be_those_of_each_point():
    stat = Exceedance(1)
    truth = jnp.arange(4.0)
    thresholds = jnp.array([[0.5, 1.0, 1.5, jnp.nan]])
    where = jnp.array([True, True, True, False])  # the NaN counts no more
    state = stat.update(
        stat.init(), truth[None], truth, where=where, thresholds=thresholds
    )
    np.testing.assert_allclose(stat.finalize(state).observed, [1 / 3], rtol=1e-15)
    state = stat.update(stat.init(), truth[None], truth, thresholds=thresholds)
    assert np.isnan(stat.finalize(state).observed).all()


def test_a_threshold_that_is_never_passed_has_no_ratio():
    stat = Exceedance((5.0,))
    state = stat.update(stat.init(), jnp.full((2, 3), 9.0), jnp.zeros(3))
    found = stat.finalize(state)
    np.testing.assert_array_equal([found.forecast, found.observed], [[1], [0]])
    np.testing.assert_array_equal(found.ratio, [0])
