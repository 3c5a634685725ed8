import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings, strategies as st

from skyens.scores import brier_score, brier_score_probability, crps


def events(seed, members, points=40):
    draws = np.random.default_rng(seed).random((members + 1, points)) < 0.3
    return jnp.asarray(draws[1:]), jnp.asarray(draws[0])


score = jax.jit(brier_score)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), alpha=st.floats(0, 1))
def test_it_is_the_definition_never_negative_and_the_crps_of_zeros_and_ones(
    seed, alpha
):
    ensemble, event = events(seed, 5)
    where = np.random.default_rng(seed).random(ensemble.shape) < 0.7
    where[:2] = True
    found = score(ensemble, event, alpha=jnp.asarray(alpha), where=jnp.asarray(where))
    assert (found >= 0).all()
    count = where.sum(0)
    p = (np.asarray(ensemble) * where).sum(0) / count
    expected = (p - np.asarray(event)) ** 2 - alpha * p * (1 - p) / (count - 1)
    np.testing.assert_allclose(found, expected, atol=1e-14)
    numbers = ensemble.astype(float), event.astype(float)
    found = score(ensemble, event, alpha=jnp.asarray(alpha))
    chex.assert_trees_all_close(found, crps(*numbers, alpha=alpha), atol=1e-14)


def test_the_standard_score_is_that_of_scikit_learn():
    ensemble, event = events(1, 4)
    p = ensemble.astype(float).mean(0)
    expected = sklearn.metrics.brier_score_loss(np.asarray(event), np.asarray(p))
    found = brier_score(ensemble, event, alpha=0.0).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    found = brier_score_probability(p, event).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("members", [2, 7])
def test_the_fair_score_is_unbiased_in_members(members):
    rng = np.random.default_rng(2)
    ensemble, event = rng.random((members, 100_000)) < 0.3, rng.random(100_000) < 0.4
    found = np.asarray(brier_score(jnp.asarray(ensemble), jnp.asarray(event)))
    limit = 0.4 * (1 - 0.3) ** 2 + 0.6 * 0.3**2
    assert abs(found.mean() - limit) < 4 * found.std() / np.sqrt(found.size)


def test_probabilities_of_members_are_unbiased_too_and_have_slopes():
    rng = np.random.default_rng(3)
    soft, event = jnp.asarray(rng.random((3, 8))), jnp.asarray(rng.random(8) < 0.5)
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    errors = soft - event.astype(float)[None]
    expected = sum(errors[i] * errors[j] for i, j in pairs) / 6
    chex.assert_trees_all_close(brier_score(soft, event), expected, atol=1e-15)
    slope = jax.grad(lambda x: brier_score(x, event).sum())(soft)
    others = (errors.sum(0)[None] - errors) / 3
    chex.assert_trees_all_close(slope, others, atol=1e-15)
    curvature = jax.hessian(lambda p: brier_score_probability(p, event[0]))(soft[0, 0])
    chex.assert_trees_all_close(curvature, jnp.asarray(2.0))


def test_dtypes_axes_and_nothing_valid():
    ensemble, event = events(4, 3, 4)
    assert brier_score(ensemble, event).dtype == float
    half = ensemble.astype(jnp.bfloat16)
    assert brier_score(half, event).dtype == jnp.bfloat16
    assert brier_score_probability(half[0], event).dtype == jnp.bfloat16
    last = brier_score(ensemble.T, event, axis=-1)
    chex.assert_trees_all_equal(last, brier_score(ensemble, event))
    nan = jnp.full((3, 4), jnp.nan)
    total = lambda x: brier_score(x, event, where=jnp.zeros((3, 4), bool)).sum()
    value, slope = jax.value_and_grad(total)(nan)
    assert value == 0
    assert not slope.any()
    assert brier_score(nan, event, where=jnp.zeros((3, 4), bool)).sum() == 0
    assert jnp.isnan(brier_score(nan, event)).all()


def test_wrong_use_is_reported():
    event = jnp.array([True, False])
    with pytest.raises(
        eqx.EquinoxRuntimeError, match=r"`probability` must be.* \(1,\)"
    ):
        brier_score_probability(jnp.array([0.2, 1.2]), event)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`ensemble` must be probabili"):
        brier_score(jnp.array([[0.2, -0.2], [0.0, 0.0]]), event)
    with pytest.raises(ValueError, match=r"do not broadcast.*probability.*\(3,\)"):
        brier_score_probability(jnp.zeros(3), event)
    with pytest.raises(ValueError, match="no members"):
        brier_score(jnp.zeros((0, 2)), event)
    with pytest.raises(ValueError, match="1 member"):
        brier_score(jnp.zeros((1, 2)), event)
