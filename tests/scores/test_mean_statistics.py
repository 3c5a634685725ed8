import chex
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.scores import RMSE, AnomalyCorrelation, Bias

ENSEMBLE = jr.normal(jr.key(0), (5, 2, 3, 4), jnp.float64) + 20
TRUTH = jr.normal(jr.key(1), (2, 3, 4), jnp.float64) + 20
WEIGHTS = jnp.array([0.2, 1.0, 0.5])[:, None]


def weighted_mean(x):
    x = np.asarray(x)
    weights = np.broadcast_to(WEIGHTS, x.shape)
    return np.average(x.reshape(2, -1), axis=1, weights=weights.reshape(2, -1))


class MeanStatisticsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_they_are_those_of_numpy(self):
        error = np.asarray(ENSEMBLE).mean(0) - np.asarray(TRUTH)
        for stat, expected in [
            (RMSE(), np.sqrt(weighted_mean(error**2))),
            (Bias(), weighted_mean(error)),
        ]:
            run = self.variant(
                lambda x, y, w, stat=stat: stat.update(stat.init((2,)), x, y, w)
            )
            value = stat.finalize(run(ENSEMBLE, TRUTH, WEIGHTS))
            chex.assert_trees_all_close(value, expected, rtol=1e-12)


def test_one_mean_over_all_times_not_a_mean_of_roots():
    stat = RMSE()
    state = stat.init()
    for error in (3.0, 4.0):
        state = stat.update(state, jnp.full((1, 2), error), jnp.zeros(2))
    chex.assert_trees_all_close(stat.finalize(state), jnp.sqrt(12.5), rtol=1e-15)


def test_only_the_members_that_are_there_enter_the_mean():
    where = jnp.ones(ENSEMBLE.shape, bool).at[1, :, 0, 0].set(False)
    ensemble = jnp.where(where, ENSEMBLE, jnp.nan)
    state = Bias().update(Bias().init(), ensemble, TRUTH, where=where)
    expected = np.mean(np.nanmean(ensemble, axis=0) - np.asarray(TRUTH))
    chex.assert_trees_all_close(Bias().finalize(state), expected, rtol=1e-12)


def test_float32_is_exact_at_a_large_offset():
    error = jr.normal(jr.key(2), (5, 1000), jnp.float32).round(1) * 0.5
    truth = jnp.full(1000, 5e5, jnp.float32)
    ensemble = truth[None] + error
    actual = np.asarray(ensemble, float) - np.asarray(truth, float)
    stat = RMSE()
    value = stat.finalize(stat.update(stat.init((), jnp.float32), ensemble, truth))
    expected = np.sqrt((actual.mean(0) ** 2).mean())
    np.testing.assert_allclose(value, expected, rtol=3e-7)


def test_the_correlation_of_anomalies_is_that_of_numpy():
    stat = AnomalyCorrelation()
    climatology = jr.normal(jr.key(3), (3, 4), jnp.float64) + 20
    run = lambda x, y: stat.finalize(
        stat.update(stat.init((2,)), x, y, WEIGHTS, climatology=climatology)
    )
    f = np.asarray(ENSEMBLE).mean(0) - np.asarray(climatology)
    o = np.asarray(TRUTH) - np.asarray(climatology)
    squares = weighted_mean(f**2) * weighted_mean(o**2)
    expected = weighted_mean(f * o) / np.sqrt(squares)
    chex.assert_trees_all_close(run(ENSEMBLE, TRUTH), expected, rtol=1e-12)
    chex.assert_trees_all_close(run(TRUTH[None], TRUTH), jnp.ones(2), rtol=1e-14)
    against = 2 * climatology[None] - TRUTH
    chex.assert_trees_all_close(run(against[None], TRUTH), -jnp.ones(2), rtol=1e-14)


def test_a_climatology_of_another_grid_is_named():
    stat = AnomalyCorrelation()
    with pytest.raises(ValueError, match=r"`climatology` of shape \(7,\)"):
        stat.update(stat.init(), ENSEMBLE, TRUTH, climatology=jnp.zeros(7))
