import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens.assimilation import (
    ETKF,
    Inflated,
    Info,
    RelaxToPriorSpread,
    ensemble_spread,
)
from skyens.observations import Diagonal, Index, Observation

relax = jax.jit(RelaxToPriorSpread.__call__)  # the module is an argument
spread_of = jax.jit(ensemble_spread)


class RelaxToPriorSpreadTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_alpha_one_restores_the_background_spread(self):
        analysis, background = jr.normal(jr.key(0), (2, 8, 3, 4), jnp.float32)
        inflate = self.variant(RelaxToPriorSpread.__call__)  # the module is an argument
        inflated = inflate(RelaxToPriorSpread(1.0), 0.1 * analysis, background)
        chex.assert_trees_all_equal_shapes_and_dtypes(inflated, analysis)
        spread = ensemble_spread(inflated)
        chex.assert_trees_all_close(spread, ensemble_spread(background), rtol=1e-5)


@settings(deadline=None, max_examples=30)
@given(alpha=st.floats(0, 1), seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3))
def test_mean_stays_and_spread_is_interpolated(alpha, seed, scale):
    generator = np.random.default_rng(seed)
    analysis, background = scale * generator.normal(size=(2, 5, 4))
    method = RelaxToPriorSpread(alpha)
    inflated = relax(method, jnp.asarray(analysis), jnp.asarray(background))
    before, after = (np.std(x, axis=0, ddof=1) for x in (background, analysis))
    spread = (1 - alpha) * after + alpha * before
    np.testing.assert_allclose(np.std(inflated, axis=0, ddof=1), spread, rtol=1e-10)
    mean = np.mean(inflated, axis=0)
    np.testing.assert_allclose(mean, analysis.mean(0), atol=1e-12 * scale)


def test_spread_is_the_unbiased_deviation_of_numpy():
    ensemble = np.random.default_rng(0).normal(size=(6, 3)) + 100
    for member in (ensemble, ensemble * (1 + 2j)):
        expected = member.std(0, ddof=1)
        np.testing.assert_allclose(spread_of(member), expected, rtol=1e-12)


def test_it_takes_any_pytree_and_leaves_integers():
    wave = np.random.default_rng(1).normal(size=(6, 3)) * (1 + 2j)
    analysis = {"wave": jnp.asarray(wave), "clock": jnp.arange(6)}
    background = {"wave": jnp.asarray(3 * wave), "clock": jnp.zeros(6, int)}
    inflated = relax(RelaxToPriorSpread(0.5), analysis, background)
    chex.assert_trees_all_equal(inflated["clock"], analysis["clock"])
    spread = spread_of(inflated["wave"])
    np.testing.assert_allclose(spread, 2 * wave.std(0, ddof=1), rtol=1e-12)


def test_gradient_in_alpha_is_the_spread_gap():
    analysis, background = np.random.default_rng(2).normal(size=(2, 6, 3))

    @jax.jit
    @jax.grad
    def slope(inflate):
        inflated = inflate(jnp.asarray(analysis), jnp.asarray(background))
        return ensemble_spread(inflated).sum()

    gap = background.std(0, ddof=1).sum() - analysis.std(0, ddof=1).sum()
    np.testing.assert_allclose(slope(RelaxToPriorSpread(0.3)).alpha, gap, rtol=1e-10)


def test_a_collapsed_member_set_has_finite_gradients_and_stays():
    background = jnp.asarray(np.random.default_rng(3).normal(size=(6, 3)))
    equal, method = jnp.ones((6, 3)), RelaxToPriorSpread(0.5)
    total = lambda analysis: method(analysis, background).sum()
    chex.assert_tree_all_finite(jax.jit(jax.grad(total))(equal))
    chex.assert_trees_all_equal(relax(method, equal, background), equal)


class Counting(eqx.Module):
    """A method with memory: it counts its calls, and moves the ensemble by its key."""

    calls: jax.Array

    def __call__(self, background, observation, *, key=None):
        count = jnp.asarray(0)
        successor = Counting(self.calls + 1)
        info = Info(count, count, count, jnp.zeros(()), jnp.ones(()), successor)
        noise = 0.0 if key is None else jr.normal(key, background.shape)
        return background + noise, info


def test_inflated_is_the_method_then_the_inflation():
    background = jr.normal(jr.key(3), (6, 3))
    observation = Observation(np.zeros(2), Index(np.arange(2)), Diagonal(0.5))
    method = RelaxToPriorSpread(0.7)
    run = eqx.filter_jit(lambda method: method(background, observation))
    actual, info = run(Inflated(ETKF(), method))
    plain, expected = run(ETKF())
    relaxed = relax(method, plain, background)
    chex.assert_trees_all_close(actual, relaxed, rtol=1e-12)
    chex.assert_trees_all_close(info.chi_square, expected.chi_square, rtol=1e-12)
    assert info.method is None


def test_inflated_has_the_memory_of_its_method_and_splits_the_key():
    background = jr.normal(jr.key(4), (6, 3))
    observation = Observation(np.zeros(2), Index(np.arange(2)), Diagonal(0.5))
    add = lambda analysis, background, *, key: analysis + jr.normal(key, (6, 3))
    method = Inflated(Counting(jnp.asarray(3)), add)
    analysis, info = method(background, observation, key=jr.key(5))
    assert isinstance(info.method, Inflated)
    assert int(info.method.method.calls) == 4
    first, second = jr.split(jr.key(5))
    expected = background + jr.normal(first, (6, 3)) + jr.normal(second, (6, 3))
    chex.assert_trees_all_close(analysis, expected, rtol=1e-12)


def test_wrong_use_is_reported():
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"must lie in \[0, 1\]"):
        RelaxToPriorSpread(1.5)
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"must lie in \[0, 1\]"):
        eqx.filter_jit(RelaxToPriorSpread)(jnp.asarray(1.5))
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        ensemble_spread(jnp.ones((1, 3)))
