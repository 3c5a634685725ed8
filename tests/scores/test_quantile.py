import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import scoringrules
import sklearn.metrics
from hypothesis import given, settings, strategies as st

from skyens.scores import crps, interval_score, quantile_score, weighted_interval_score

LEVELS = (0.1, 0.5, 0.9)


def normal(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def test_quantiles_score_as_in_scikit_learn():
    quantiles, truth = normal(0, (3, 20)), normal(1, (20,))
    found = quantile_score(quantiles, truth, levels=LEVELS).mean()
    expected = [
        sklearn.metrics.mean_pinball_loss(np.asarray(truth), np.asarray(q), alpha=level)
        for q, level in zip(quantiles, LEVELS, strict=True)
    ]
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-12)
    last = quantile_score(quantiles.T, truth, levels=np.array(LEVELS), axis=-1)
    chex.assert_trees_all_close(last.mean(), found)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_sorted_members_score_half_their_crps(seed):
    ensemble, truth = normal(seed, (5, 4)), normal(seed + 1, (4,))
    levels = (np.arange(5) + 0.5) / 5
    found = 2 * quantile_score(jnp.sort(ensemble, axis=0), truth, levels=levels)
    chex.assert_trees_all_close(found, crps(ensemble, truth, alpha=0.0), atol=1e-14)


def test_true_quantiles_and_intervals_are_best():
    truth = normal(2, (100_000,))
    best = scipy.stats.norm.ppf(LEVELS)

    def loss(quantiles):
        return quantile_score(jnp.asarray(quantiles)[:, None], truth, levels=LEVELS)

    for shift in (-0.2, 0.2):
        gain = loss(best + shift) - loss(best)
        assert gain.mean() > 4 * gain.std() / np.sqrt(gain.size)
    interval = lambda scale: interval_score(
        jnp.asarray(scale * best[0]), jnp.asarray(scale * best[2]), truth, coverage=0.8
    )
    for scale in (0.8, 1.2):
        gain = interval(scale) - interval(1.0)
        assert gain.mean() > 4 * gain.std() / np.sqrt(gain.size)


def test_on_the_truth_the_slope_is_the_mean_of_its_neighbours():
    slope = jax.grad(lambda q: quantile_score(q[None], q * 0 + 1, levels=(0.9,)))
    chex.assert_trees_all_close(slope(jnp.asarray(1.0)), jnp.asarray(0.5 - 0.9))


def test_intervals_are_those_of_scoringrules():
    lower, truth = normal(3, (2, 9)), normal(4, (9,))
    upper = lower + abs(normal(5, (2, 9)))
    median = (lower[0] + upper[0]) / 2
    found = interval_score(lower[0], upper[0], truth, coverage=0.8)
    y, low, high = (np.asarray(x) for x in (truth, lower.T, upper.T))
    expected = scoringrules.interval_score(y, low[:, 0], high[:, 0], 0.2)
    np.testing.assert_allclose(found, np.asarray(expected), rtol=1e-12)
    found = weighted_interval_score(lower, upper, median, truth, coverages=(0.5, 0.8))
    # Theirs of several intervals depends on whether numba is installed; not so of one.
    expected = abs(y - np.asarray(median)) / 2
    for k, alpha in enumerate((0.5, 0.2)):
        of_one = scoringrules.interval_score(y, low[:, k], high[:, k], alpha)
        expected += alpha / 2 * np.asarray(of_one)
    expected /= 2 + 0.5
    quantiles = jnp.stack([lower[1], lower[0], median, upper[0], upper[1]])
    twice = 2 * quantile_score(quantiles, truth, levels=(0.1, 0.25, 0.5, 0.75, 0.9))
    chex.assert_trees_all_close(found, twice, rtol=1e-12)
    np.testing.assert_allclose(found, np.asarray(expected), rtol=1e-12)
    last = weighted_interval_score(
        lower.T, upper.T, median, truth, coverages=(0.5, 0.8), axis=-1
    )
    chex.assert_trees_all_equal(last, found)


def test_dtypes_are_kept_and_nan_shows():
    half = jnp.array([1.0, 2.0], jnp.bfloat16)
    assert quantile_score(half, half[0], levels=(0.2, 0.7)).dtype == jnp.bfloat16
    assert interval_score(half[0], half[1], half[0], coverage=0.5).dtype == jnp.bfloat16
    single = jnp.array([1.0, 2.0], jnp.float32)
    score = weighted_interval_score(
        single[:1], single[1:], single[0], single[1], coverages=(0.5,)
    )
    assert score.dtype == jnp.float32
    lost = jnp.full((), jnp.nan, jnp.float32)
    assert jnp.isnan(quantile_score(single, lost, levels=(0.2, 0.7)))


def test_wrong_use_is_reported():
    quantiles, truth = jnp.zeros((3, 2)), jnp.zeros(2)
    with pytest.raises(ValueError, match="`levels` must ascend"):
        quantile_score(quantiles, truth, levels=(0.5, 0.1, 0.9))
    with pytest.raises(ValueError, match=r"`levels` must lie in \(0, 1\)"):
        quantile_score(quantiles, truth, levels=(0.0, 0.1, 0.9))
    with pytest.raises(ValueError, match="`levels` must be 3, one for each"):
        quantile_score(quantiles, truth, levels=(0.1, 0.9))
    with pytest.raises(ValueError, match=r"`truth` of .* `quantiles` of"):
        quantile_score(quantiles, jnp.zeros(5), levels=LEVELS)
    with pytest.raises(ValueError, match=r"`coverage` must lie in \(0, 1\), got 1.0"):
        interval_score(truth, truth, truth, coverage=1.0)
    with pytest.raises(
        eqx.EquinoxRuntimeError, match="`upper - lower` must be not neg"
    ):
        interval_score(truth + 1, truth, truth, coverage=0.9)
    with pytest.raises(
        ValueError, match="`lower` has 3 intervals along axis 0, `upper` 2"
    ):
        weighted_interval_score(
            quantiles, quantiles[:2], truth, truth, coverages=LEVELS
        )
    with pytest.raises(ValueError, match=r"`lower` \(2,\), `upper` \(3,\)"):
        weighted_interval_score(
            jnp.zeros((3, 2)),
            jnp.zeros((3, 3)),
            truth[0],
            truth[0],
            coverages=(0.5, 0.8, 0.9),
        )
