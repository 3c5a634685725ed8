import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings, strategies as st

from skyens.scores import ambiguity_cross_entropy, ambiguity_squared_error

squared = jax.jit(ambiguity_squared_error)
entropy = jax.jit(ambiguity_cross_entropy)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_squared_errors_add_up_and_are_the_definition(seed):
    rng = np.random.default_rng(seed)
    ensemble, truth = rng.normal(size=(5, 4)), rng.normal(size=4)
    where = rng.random((5, 4)) < 0.6
    where[0] = True
    spoilt = jnp.asarray(np.where(where, ensemble, np.nan))
    parts = squared(spoilt, jnp.asarray(truth), where=jnp.asarray(where))
    np.testing.assert_allclose(
        parts.loss, parts.average_loss - parts.diversity, atol=1e-14
    )
    masked = np.ma.array(ensemble, mask=~where)
    np.testing.assert_allclose(
        parts.loss, (masked.mean(0) - truth) ** 2, rtol=1e-10, atol=1e-14
    )
    np.testing.assert_allclose(parts.diversity, masked.var(0), atol=1e-14)


def test_squared_errors_are_exact_in_float32_at_a_large_offset():
    rng = np.random.default_rng(0)
    ensemble = jnp.asarray(5e5 + rng.normal(size=(6, 50)), jnp.float32)
    truth = jnp.asarray(5e5 + rng.normal(size=50), jnp.float32)
    parts = squared(ensemble, truth)
    chex.assert_trees_all_equal_dtypes(*parts, truth)
    wide = squared(ensemble.astype(float), truth.astype(float))
    for part, expected in zip(parts, wide, strict=True):
        np.testing.assert_allclose(part, expected, atol=1e-5)
    last = ambiguity_squared_error(ensemble.T, truth, axis=-1)
    chex.assert_trees_all_close(last, parts, rtol=1e-5)


def test_squared_errors_have_their_slopes():
    ensemble, truth = jnp.array([1.0, 1.0, 4.0]), jnp.asarray(2.0)
    slopes = jax.jacrev(ambiguity_squared_error)(ensemble, truth)
    expected = (jnp.zeros(3), 2 * (ensemble - 2) / 3, 2 * (ensemble - 2) / 3)
    chex.assert_trees_all_close(tuple(slopes), expected, atol=1e-14)
    nothing = jnp.zeros(3, bool)
    total = lambda x: sum(ambiguity_squared_error(x, truth, where=nothing))
    value, slope = jax.value_and_grad(total)(ensemble * jnp.nan)
    assert value == 0
    assert not slope.any()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_cross_entropies_add_up_and_are_the_definition(seed):
    rng = np.random.default_rng(seed)
    members, target = rng.dirichlet(np.ones(4), (5, 3)), rng.dirichlet(np.ones(4), 3)
    parts = entropy(jnp.asarray(members), jnp.asarray(target))
    np.testing.assert_allclose(
        parts.loss, parts.average_loss - parts.diversity, rtol=1e-12
    )
    centre = scipy.special.softmax(np.log(members).mean(0), axis=-1)
    np.testing.assert_allclose(
        parts.loss, -(target * np.log(centre)).sum(-1), rtol=1e-12
    )
    divergence = scipy.special.rel_entr(centre[None], members).sum(-1).mean(0)
    np.testing.assert_allclose(parts.diversity, divergence, rtol=1e-10, atol=1e-14)
    assert (parts.diversity >= -1e-15).all()


def test_equal_members_gain_nothing():
    member = jnp.array([0.2, 0.5, 0.3])
    parts = entropy(jnp.stack([member] * 3), jnp.array([0.0, 1.0, 0.0]))
    chex.assert_trees_all_close(
        tuple(parts), (jnp.log(2.0), jnp.log(2.0), jnp.zeros(())), atol=1e-15
    )


def test_categories_without_probability_are_finite_where_they_may_be():
    members = jnp.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])
    fine, lost = jnp.array([0.0, 1.0, 0.0]), jnp.array([1.0, 0.0, 0.0])
    parts = entropy(members, fine)
    expected = jnp.zeros(()), jnp.log(2.0), jnp.log(2.0)
    chex.assert_trees_all_close(tuple(parts), expected, atol=1e-15)
    assert entropy(members, lost).loss == jnp.inf
    assert entropy(members, lost).average_loss == jnp.inf
    slopes = jax.jit(jax.jacrev(ambiguity_cross_entropy))(members, fine)
    chex.assert_tree_all_finite(slopes)
    apart = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    parts = entropy(apart, jnp.array([1.0, 0.0]))
    chex.assert_trees_all_equal(tuple(parts), (jnp.asarray(jnp.inf),) * 3)
    slopes = jax.jit(jax.jacrev(ambiguity_cross_entropy))(apart, jnp.array([1.0, 0.0]))
    chex.assert_tree_all_finite(slopes)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="no members"):
        ambiguity_squared_error(jnp.zeros((0, 2)), jnp.zeros(2))
    with pytest.raises(ValueError, match="lead with members"):
        ambiguity_cross_entropy(jnp.zeros(2), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"`target` of shape \(3,\)"):
        ambiguity_cross_entropy(jnp.full((2, 2), 0.5), jnp.zeros(3))
    with pytest.raises(eqx.EquinoxRuntimeError, match="`target` must be not negative"):
        ambiguity_cross_entropy(jnp.full((2, 2), 0.5), jnp.array([-1.0, 2.0]))
