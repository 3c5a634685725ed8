import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings, strategies as st

from skyens.scores import MeanScore, Reliability, brier_score

MEMBERS, THRESHOLDS = 5, (-0.5, 0.5)


def draw(seed, points=40):
    """Return members and truth that share a signal, and weights."""
    rng = np.random.default_rng(seed)
    draws = rng.normal(size=(MEMBERS + 1, points)) + rng.normal(size=points)
    return (
        jnp.asarray(draws[1:]),
        jnp.asarray(draws[0]),
        jnp.asarray(rng.random(points)),
    )


def table(ensemble, truth, weights=None, where=None, dtype=None):
    stat = Reliability(ensemble.shape[0], THRESHOLDS)
    state = stat.init((), dtype)
    return stat.finalize(stat.update(state, ensemble, truth, weights, where))


class ReliabilityTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_bins_are_those_of_xskillscore(self):
        from xskillscore import reliability

        ensemble, truth, _ = draw(0)
        found = self.variant(table)(ensemble, truth)
        edges = np.linspace(-0.1, 1.1, MEMBERS + 2)  # around each k / MEMBERS
        for i, threshold in enumerate(THRESHOLDS):
            share = (np.asarray(ensemble) > threshold).mean(0)
            share = xr.DataArray(share, dims="x")
            happened = xr.DataArray(np.asarray(truth) > threshold, dims="x")
            peer = reliability(happened, share, "x", probability_bin_edges=edges)
            np.testing.assert_allclose(found.count[i], peer.samples)
            frequency = np.nan_to_num(peer.values)
            np.testing.assert_allclose(found.frequency[i], frequency, rtol=1e-14)
            centres = np.arange(6) / MEMBERS * np.asarray(found.count[i] > 0)
            np.testing.assert_allclose(found.probability[i], centres, rtol=1e-14)


def test_brier_scores_are_those_of_sklearn_and_of_scores():
    from scores.probability import brier_score_for_ensemble
    from sklearn.metrics import brier_score_loss

    ensemble, truth, weights = draw(1)
    found = table(ensemble, truth, weights)
    for i, threshold in enumerate(THRESHOLDS):
        share = (np.asarray(ensemble) > threshold).mean(0)
        happened = np.asarray(truth) > threshold
        expected = brier_score_loss(happened, share, sample_weight=weights)
        np.testing.assert_allclose(found.brier[i], expected, rtol=1e-13)
    members = xr.DataArray(np.asarray(ensemble), dims=("member", "x"))
    observed = xr.DataArray(np.asarray(truth), dims="x")
    edges: list = list(THRESHOLDS)
    fair = brier_score_for_ensemble(members, observed, "member", edges)
    fair = np.asarray(fair)
    np.testing.assert_allclose(table(ensemble, truth).fair_brier, fair, rtol=1e-12)


compiled = jax.jit(table)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**31), masked=st.booleans())
def test_the_parts_add_up_to_the_mean_score_of_the_points(seed, masked):
    ensemble, truth, weights = draw(seed)
    rng = np.random.default_rng(seed + 1)
    where = jnp.asarray(rng.random(ensemble.shape) < (0.6 if masked else 2))
    found = compiled(ensemble, truth, weights, where)
    valid = np.asarray(where).sum(0)
    for i, threshold in enumerate(THRESHOLDS):
        events = (np.asarray(ensemble) > threshold) & np.asarray(where)
        share = events.sum(0) / np.maximum(valid, 1)
        error = (share - (np.asarray(truth) > threshold)) ** 2
        mean = lambda x, least: np.average(
            x, weights=np.asarray(weights) * (valid >= least)
        )
        np.testing.assert_allclose(found.brier[i], mean(error, 1), rtol=1e-12)
        fair = error - share * (1 - share) / np.maximum(valid - 1, 1)
        np.testing.assert_allclose(found.fair_brier[i], mean(fair, 2), rtol=1e-11)
    total = found.reliability - found.resolution + found.uncertainty
    np.testing.assert_array_equal(found.brier, total)
    assert (found.reliability >= 0).all()
    assert (found.uncertainty <= 0.25).all()


def test_reliability_and_resolution_of_known_cases():
    events = jnp.array([1.0, 0.0, 1.0, 0.0])
    climate = jnp.tile(jnp.array([[1.0], [-1.0]]), (1, 4))  # always 1 / 2
    always = lambda ensemble: Reliability(ensemble.shape[0], (0.5,))
    for ensemble, parts in [
        (climate, (0, 0, 1 / 4)),
        (jnp.tile(events, (2, 1)), (0, 1 / 4, 1 / 4)),  # perfect
        (jnp.tile(1 - events, (2, 1)), (1, 1 / 4, 1 / 4)),  # always wrong
    ]:
        stat = always(ensemble)
        found = stat.finalize(stat.update(stat.init(), ensemble, events))
        got = found.reliability, found.resolution, found.uncertainty
        np.testing.assert_allclose(np.ravel(got), parts, atol=1e-15)


def test_the_fair_score_is_that_of_the_kernel():
    ensemble, truth, weights = draw(2)
    events = lambda x, y, where=None: brier_score(x > 0.5, y > 0.5, where=where)
    stat = MeanScore(lambda x, y: events(x, y).astype(x.dtype), least=2)
    mean = stat.finalize(stat.update(stat.init(), ensemble, truth, weights))
    found = table(ensemble, truth, weights).fair_brier[1]
    np.testing.assert_allclose(found, mean, rtol=1e-6)  # the kernel's is float32


def test_the_identity_holds_in_float32_with_masked_members():
    ensemble, truth, _ = draw(3, points=2000)
    where = jnp.asarray(np.random.default_rng(4).random(ensemble.shape) < 0.7)
    wide = table(ensemble, truth, where=where)
    single = ensemble.astype(jnp.float32), truth.astype(jnp.float32)
    found = table(*single, where=where, dtype=jnp.float32)
    chex.assert_trees_all_close(found.brier, wide.brier.astype(jnp.float32), rtol=2e-6)


def test_one_member_has_a_score_but_no_fair_one():
    found = table(jnp.zeros((1, 3)), jnp.array([-1.0, 0.0, 1.0]))
    np.testing.assert_allclose(found.brier, [1 / 3, 1 / 3])
    np.testing.assert_array_equal(found.fair_brier, [0, 0])


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Reliability(0, (1.0,))
    stat = Reliability(4, (1.0,))
    with pytest.raises(ValueError, match="has 3 members, but this statistic is for 4"):
        stat.update(stat.init(), jnp.zeros((3, 2)), jnp.zeros(2))
