import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens.scores import ROC, Reliability

MEMBERS, THRESHOLDS = 4, (-0.5, 0.75)
STAT = ROC(MEMBERS, THRESHOLDS)


def draw(seed, points=30):
    """Return members and truth that share a signal, and weights."""
    rng = np.random.default_rng(seed)
    draws = rng.normal(size=(MEMBERS + 1, points)) + rng.normal(size=points)
    draws[:, :2] = [-9, 9]  # both kinds of cases are there
    return draws[1:], draws[0], rng.random(points) + 0.1


@jax.jit
def curve(ensemble, truth, weights=None, where=None):
    return STAT.finalize(STAT.update(STAT.init(), ensemble, truth, weights, where))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_curve_and_area_are_those_of_sklearn(seed):
    from sklearn.metrics import roc_auc_score, roc_curve

    ensemble, truth, weights = draw(seed)
    found = curve(ensemble, truth, weights)
    for i, threshold in enumerate(THRESHOLDS):
        args = truth > threshold, (ensemble > threshold).mean(0)
        alarms, hits, levels = roc_curve(
            *args, sample_weight=weights, drop_intermediate=False
        )
        # The peer leaves out numbers of members that no forecast had.
        at = MEMBERS + 1 - np.round(np.r_[MEMBERS + 1, levels[1:] * MEMBERS])
        at = at.astype(int)
        np.testing.assert_allclose(found.hit_rate[i, at], hits, rtol=1e-12)
        np.testing.assert_allclose(found.false_alarm_rate[i, at], alarms, rtol=1e-12)
        area = roc_auc_score(*args, sample_weight=weights)
        np.testing.assert_allclose(found.area[i], area, rtol=1e-12)


def test_the_area_counts_pairs_with_ties_half():
    ensemble, truth, _ = draw(0)
    found = curve(ensemble, truth)
    for i, threshold in enumerate(THRESHOLDS):
        share = (ensemble > threshold).sum(0)
        happened = truth > threshold
        pairs = np.sign(share[happened][:, None] - share[~happened])
        np.testing.assert_allclose(found.area[i], (pairs.mean() + 1) / 2, rtol=1e-13)


def test_masked_members_leave_the_share_of_the_others():
    truth = jnp.array([1.0, -1.0])
    ensemble = jnp.where(jnp.arange(MEMBERS)[:, None] < 2, truth[None], jnp.nan)
    where = ~jnp.isnan(ensemble)
    np.testing.assert_array_equal(curve(ensemble, truth, where=where).area, [1, 1])


def test_without_events_everything_is_zero():
    found = curve(jnp.full((MEMBERS, 3), -9.0), jnp.full(3, -9.0))
    for name in ("hit_rate", "area"):
        assert not getattr(found, name).any()
    empty = STAT.finalize(STAT.init())
    chex.assert_trees_all_equal(empty, jax.tree.map(jnp.zeros_like, empty))


def test_a_nan_spoils_the_curve():
    ensemble, truth, _ = draw(1)
    ensemble[2, 5] = np.nan
    assert all(np.isnan(leaf).all() for leaf in curve(ensemble, truth))


def test_one_state_serves_reliability_too():
    ensemble, truth, _ = (jnp.asarray(x) for x in draw(2))
    other = Reliability(MEMBERS, THRESHOLDS)
    state = other.update(other.init(), ensemble, truth)
    chex.assert_trees_all_equal(state, STAT.update(STAT.init(), ensemble, truth))
    chex.assert_trees_all_close(STAT.finalize(state), curve(ensemble, truth))


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ROC(0, (1.0,))
    with pytest.raises(ValueError, match="increase"):
        ROC(2, (1.0, 0.0))
