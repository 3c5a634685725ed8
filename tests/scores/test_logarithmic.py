import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings, strategies as st

from skyens.scores import log_score_binary, log_score_categorical


@settings(deadline=None, max_examples=20)
@given(p=st.floats(0, 1, allow_subnormal=False), happened=st.booleans())
def test_the_binary_score_is_minus_the_logarithm_of_what_was_given(p, happened):
    with np.errstate(divide="ignore"):
        expected = -np.log(p) if happened else -np.log1p(-p)
    found = log_score_binary(jnp.asarray(p), jnp.asarray(happened))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    slope = jax.grad(log_score_binary)(jnp.asarray(p), jnp.asarray(happened))
    given_p = p if happened else 1 - p
    expected = (-1 if happened else 1) / given_p if given_p > 0 else 0
    np.testing.assert_allclose(slope, expected, rtol=1e-12)


def test_both_are_the_log_loss_of_scikit_learn():
    rng = np.random.default_rng(0)
    p, happened = rng.random(30), rng.random(30) < 0.5
    found = log_score_binary(jnp.asarray(p), jnp.asarray(happened)).mean()
    np.testing.assert_allclose(found, sklearn.metrics.log_loss(happened, p), rtol=1e-12)
    shares, category = rng.dirichlet(np.ones(3), 30), rng.integers(0, 3, 30)
    found = log_score_categorical(jnp.asarray(shares), jnp.asarray(category))
    expected = sklearn.metrics.log_loss(category, shares, labels=[0, 1, 2])
    np.testing.assert_allclose(found.mean(), expected, rtol=1e-12)
    first = log_score_categorical(jnp.asarray(shares.T), jnp.asarray(category), axis=0)
    chex.assert_trees_all_equal(first, found)


def test_the_impossible_is_infinite_unless_bounded_and_has_slope_zero():
    p, happened = jnp.array([0.0, 1.0, 0.0]), jnp.array([True, False, False])
    for least, worst in [(0.0, np.inf), (0.01, -np.log(0.01))]:
        score = lambda p: log_score_binary(p, happened, least=least)
        np.testing.assert_allclose(score(p), [worst, worst, 0], rtol=1e-12)
        slope = jax.jacrev(score)(p).sum(0)
        chex.assert_trees_all_equal(slope, jnp.array([0.0, 0.0, 1.0]))
    shares = jnp.array([1.0, 0.0])
    score = lambda p: log_score_categorical(p, jnp.asarray(1))
    assert score(shares) == jnp.inf
    assert not jax.grad(score)(shares).any()


def test_rare_events_keep_their_digits_in_float32():
    p = jnp.asarray(1e-9, jnp.float32)
    found = log_score_binary(p, jnp.asarray(False))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 1e-9, rtol=1e-6)
    half = log_score_binary(jnp.asarray(0.5, jnp.bfloat16), jnp.asarray(True))
    assert half.dtype == jnp.bfloat16


def test_a_traced_category_that_does_not_exist_is_nan():
    shares = jnp.array([0.5, 0.5])
    found = jax.jit(log_score_categorical)(shares, jnp.array([0, 2, -1]))
    assert jnp.isnan(found).tolist() == [False, True, True]


def test_wrong_use_is_reported():
    happened = jnp.array([True, False])
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"`probability` must be.*is 1.5"):
        log_score_binary(jnp.array([0.5, 1.5]), happened)
    with pytest.raises(ValueError, match=r"`least` must lie in \[0, 1\), got 1.0"):
        log_score_binary(jnp.array([0.5, 0.5]), happened, least=1.0)
    with pytest.raises(ValueError, match="do not broadcast"):
        log_score_binary(jnp.zeros(3), happened)
    shares = jnp.array([0.5, 0.5])
    with pytest.raises(eqx.EquinoxRuntimeError, match="adding up to 1"):
        log_score_categorical(1.1 * shares * 0.9, jnp.asarray(0))
    with pytest.raises(eqx.EquinoxRuntimeError, match="categories, from 0 to 1"):
        log_score_categorical(shares, jnp.asarray(2))
    with pytest.raises(ValueError, match="`axis` is 1"):
        log_score_categorical(shares, jnp.asarray(0), axis=1)
