import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from skyens.scores import EconomicValue

MEMBERS, THRESHOLDS, USERS = 4, (-0.5, 0.75), (0.05, 0.3, 0.8)
STAT = EconomicValue(MEMBERS, THRESHOLDS, USERS)


def draw(seed, points=50):
    """Return members and truth that share a signal, and weights."""
    rng = np.random.default_rng(seed)
    draws = rng.normal(size=(MEMBERS + 1, points)) + rng.normal(size=points)
    return draws[1:], draws[0], rng.random(points)


@jax.jit
def value(ensemble, truth, weights=None):
    return STAT.finalize(STAT.update(STAT.init(), ensemble, truth, weights))


def test_values_are_those_of_scores():
    from scores.plotdata import relative_economic_value

    ensemble, truth, weights = draw(0)
    found = value(ensemble, truth, weights)
    for i, threshold in enumerate(THRESHOLDS):
        share = xr.DataArray((ensemble > threshold).mean(0), dims="x")
        happened = xr.DataArray((truth > threshold).astype(float), dims="x")
        levels = (np.arange(1, MEMBERS + 1) / MEMBERS).tolist()
        peer = relative_economic_value(
            share,
            happened,
            cost_loss_ratios=list(USERS),
            probability_thresholds=levels,
            weights=xr.DataArray(weights, dims="x"),
        )
        peer = peer.transpose("probability_threshold", "cost_loss_ratio")
        peer = np.asarray(peer)
        np.testing.assert_allclose(found.value[i], peer, rtol=1e-12)
        np.testing.assert_allclose(found.envelope[i], peer.max(0), rtol=1e-12)


def test_values_are_savings_in_expense():
    ensemble, truth, _ = draw(1)
    found = value(ensemble, truth)
    for i, threshold in enumerate(THRESHOLDS):
        happened = truth > threshold
        for j in range(1, MEMBERS + 1):
            warned = (ensemble > threshold).sum(0) >= j
            for k, cost in enumerate(USERS):
                expense = lambda acts: np.where(acts, cost, happened).mean()
                climate = min(expense(happened < 2), expense(happened > 1))
                saved = climate - expense(warned)
                expected = saved / (climate - expense(happened))
                got = found.value[i, j - 1, k]
                np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_the_perfect_forecast_has_1_for_every_user():
    _, truth, _ = draw(2)
    found = value(np.tile(truth, (MEMBERS, 1)), truth)
    for leaf in found:
        np.testing.assert_allclose(leaf, 1, rtol=1e-14)


def test_where_nothing_can_be_saved_the_value_is_zero():
    dry, wet = jnp.full(3, -9.0), jnp.full(3, 9.0)
    ensemble = jnp.stack([dry, wet, dry, wet])
    for truth in dry, wet:
        for leaf in value(ensemble, truth):
            np.testing.assert_array_equal(leaf, 0)
    empty = STAT.finalize(STAT.init())
    chex.assert_trees_all_equal(empty, jax.tree.map(jnp.zeros_like, empty))


def test_a_nan_spoils_the_values():
    ensemble, truth, _ = draw(3)
    truth[5] = np.nan
    assert all(np.isnan(leaf).all() for leaf in value(ensemble, truth))


def test_wrong_use_is_reported():
    for users in (), (0.0, 0.5), (1.5,):
        with pytest.raises(ValueError, match="above 0 and below 1"):
            EconomicValue(2, (1.0,), users)
    with pytest.raises(ValueError, match="increase"):
        EconomicValue(2, (1.0, 0.0), (0.5,))
