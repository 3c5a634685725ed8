import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens.scores import BestMember

MEMBERS = 4


@jax.jit
def by_point(ensemble, truth, weights=None, where=None):
    stat = BestMember(MEMBERS)
    return stat.finalize(stat.update(stat.init(), ensemble, truth, weights, where))


@jax.jit
def by_field(ensemble, truth, weights=None, where=None):
    stat = BestMember(MEMBERS, field_axes=2)
    return stat.finalize(stat.update(stat.init(), ensemble, truth, weights, where))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_points_are_those_of_a_loop_and_members_may_be_shuffled(seed):
    rng = np.random.default_rng(seed)
    draws = rng.integers(-2, 3, (MEMBERS + 1, 12)).astype(float)  # many ties
    weights, where = rng.random(12), rng.random((MEMBERS, 12)) < 0.7
    where[0, 0] = True
    found = by_point(draws[1:], draws[0], weights, where)
    frequency, distance, total = np.zeros(MEMBERS), 0.0, 0.0
    for i in range(12):
        errors = np.where(where[:, i], abs(draws[1:, i] - draws[0, i]), np.inf)
        if where[:, i].any():
            best = errors == errors.min()
            frequency += weights[i] * best / best.sum()
            distance += weights[i] * errors.min()
            total += weights[i]
    np.testing.assert_allclose(found.frequency, frequency / total, rtol=1e-12)
    np.testing.assert_allclose(found.distance, distance / total, rtol=1e-12)
    order = rng.permutation(MEMBERS)
    again = by_point(draws[1:][order], draws[0], weights, where[order])
    np.testing.assert_allclose(again.frequency, found.frequency[order], rtol=1e-13)


def test_fields_are_compared_by_their_weighted_errors():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(MEMBERS + 1, 7, 3, 5))
    weights = np.array([0.2, 1.0, 0.5])[:, None]
    found = by_field(draws[1:], draws[0], weights)
    squares = ((draws[1:] - draws[0]) ** 2 * weights).sum((-2, -1))
    errors = np.sqrt(squares / (weights.sum() * 5))
    counts = np.bincount(errors.argmin(0), minlength=MEMBERS)
    np.testing.assert_allclose(found.frequency, counts / 7, rtol=1e-13)
    np.testing.assert_allclose(found.distance, errors.min(0).mean(), rtol=1e-13)


def test_masked_parts_of_fields_do_not_count():
    rng = np.random.default_rng(1)
    draws = rng.normal(size=(MEMBERS + 1, 7, 3, 5))
    where = np.ones((MEMBERS, 7, 3, 5), bool)
    where[:, 2], where[:, :, 1], where[1] = False, False, False
    spoilt = np.where(where, draws[1:], np.nan)
    found = by_field(spoilt, draws[0], None, where)
    kept = np.delete(np.delete(draws, 2, axis=1), 1, axis=2)
    kept[2] = 1e9  # member 1, masked everywhere
    expected = by_field(kept[1:], kept[0])
    chex.assert_trees_all_close(found, expected, rtol=1e-13)
    assert found.frequency[1] == 0


def test_equal_members_share_and_have_equal_gradients():
    truth = jnp.zeros((1, 2, 2))
    ensemble = jnp.ones((MEMBERS, 1, 2, 2))
    for find in by_point, by_field:
        np.testing.assert_allclose(find(ensemble, truth).frequency, 1 / MEMBERS)
        slope = jax.grad(lambda x, find=find: find(x, truth).distance)(ensemble)
        np.testing.assert_allclose(slope, 1 / 16, rtol=1e-14)
        exact = jax.grad(lambda x, find=find: find(x, truth).distance)(0 * ensemble)
        np.testing.assert_array_equal(exact, 0)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        BestMember(0)
    with pytest.raises(ValueError, match="not be negative: -1"):
        BestMember(2, -1)
    stat = BestMember(2, 2)
    with pytest.raises(ValueError, match="has 3 members, but this statistic is for 2"):
        stat.update(stat.init(), jnp.zeros((3, 2)), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"has 2 axes, .* has 1 besides the 1 kept"):
        stat.update(stat.init((2,)), jnp.zeros((2, 2, 3)), jnp.zeros((2, 3)))
