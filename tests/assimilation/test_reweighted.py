import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import optimize

from skyens.assimilation import ETKF, Reweighted
from skyens.assimilation._ensemble import Recorded
from skyens.observations import Diagonal, Linear, Observation, StudentT

analyse = eqx.filter_jit(lambda method, *args, **kwargs: method(*args, **kwargs))
MATRIX = np.random.default_rng(0).normal(size=(6, 3))
VALUE = MATRIX @ np.asarray([1.0, -1.0, 0.5]) + np.asarray([0.1, -0.2, 0, 9, 0.1, 0])
BACKGROUND = jr.normal(jr.key(0), (9, 3))


def test_it_finds_the_most_likely_state():
    observation = Observation(VALUE, Linear(MATRIX), StudentT(0.3, 3.0))
    analysis, info = analyse(Reweighted(ETKF(), 60), BACKGROUND, observation)
    mean, inverse = np.mean(BACKGROUND, 0), np.linalg.inv(np.cov(BACKGROUND.T))

    def cost(state):
        prior = (state - mean) @ jnp.asarray(inverse) @ (state - mean) / 2
        return prior - observation.log_prob(state)

    found = optimize.minimize(jax.jit(jax.value_and_grad(cost)), mean, jac=True)
    np.testing.assert_allclose(analysis.mean(0), found.x, atol=1e-4)
    once, _ = analyse(ETKF(), BACKGROUND, observation)
    assert cost(analysis.mean(0)) < cost(once.mean(0)) - 0.1
    assert info.iterations == 60
    assert info.used == 6


class ReweightedTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_with_gaussian_errors_it_is_the_method(self):
        observation = Observation(VALUE, Linear(MATRIX), Diagonal(0.3))
        see = self.variant(lambda method, b, o: method(b, o)[0])
        many = see(Reweighted(ETKF(1.1), 3), BACKGROUND, observation)
        one = see(ETKF(1.1), BACKGROUND, observation)
        np.testing.assert_allclose(many, one, rtol=1e-12)


def test_gross_errors_of_many_analyses_do_less_harm_than_to_a_gaussian_one():
    """Errors in the mean of 300 analyses, a tenth of whose values are gross errors."""

    def run(key):
        state, members, noise, gross = jr.split(key, 4)
        truth = jr.normal(state, (3,))
        value = MATRIX @ truth + 0.3 * jr.normal(noise, (6,))
        value = value + jnp.where(jr.uniform(gross, (6,)) < 0.1, 20.0, 0.0)
        background = jr.normal(members, (20, 3))

        def off(method, error):
            observation = Observation(value, Linear(MATRIX), error)
            return jnp.mean((method(background, observation)[0].mean(0) - truth) ** 2)

        robust = off(Reweighted(ETKF(), 10), StudentT(0.3, 3.0))
        return robust, off(ETKF(), StudentT(0.3, 3.0)), off(ETKF(), Diagonal(0.3))

    errors = jax.jit(jax.vmap(run))(jr.split(jr.key(1), 300))
    robust, once, gaussian = (np.sqrt(np.mean(e)) for e in errors)
    assert robust < 0.25 * gaussian
    assert robust < once


def test_everything_masked_is_the_identity_and_gradients_are_finite():
    def total(background, value):
        observation = Observation(value, Linear(MATRIX), StudentT(0.3, 3.0))
        return jnp.sum(Reweighted(ETKF(1.2), 3)(background, observation)[0])

    blind = jnp.full(6, jnp.nan)
    observation = Observation(blind, Linear(MATRIX), StudentT(0.3, 3.0))
    analysis, info = analyse(Reweighted(ETKF(1.2), 3), BACKGROUND, observation)
    np.testing.assert_array_equal(analysis, BACKGROUND)
    assert info.masked == 6
    gradient = jax.jit(jax.grad(total, (0, 1)))
    slopes = gradient(BACKGROUND, jnp.asarray(VALUE))
    chex.assert_tree_all_finite(slopes)
    np.testing.assert_array_equal(gradient(BACKGROUND, blind)[0], 1)


class Counting(eqx.Module):
    """A method with memory: it counts its calls."""

    calls: jax.Array

    def __call__(self, background, observation, *, key=None):
        analysis, info = ETKF()(background, observation, key=key)
        successor = Counting(self.calls + 1)
        none = lambda node: node is None
        return analysis, eqx.tree_at(lambda i: i.method, info, successor, is_leaf=none)


def test_any_pytree_of_any_dtype_passes_and_memory_is_carried():
    background = {
        "x": BACKGROUND.astype(jnp.float32),
        "clock": jnp.arange(9),
    }
    observation = Observation(VALUE, Linear(MATRIX), StudentT(0.3, 3.0))
    observation = observation.pullback(lambda state: state["x"])
    method = Reweighted(Counting(jnp.asarray(0)), 4)
    analysis, info = analyse(method, background, observation)
    chex.assert_trees_all_equal_shapes_and_dtypes(analysis, background)
    np.testing.assert_array_equal(analysis["clock"], np.arange(9))
    # Each analysis of one time starts from the same memory.
    assert isinstance(info.method, Reweighted)
    assert info.method.method.calls == 1
    chex.assert_trees_all_equal_structs(info.method, method)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="`iterations` must be at least 1, got 0"):
        Reweighted(ETKF(), 0)
    recorded = Observation(VALUE, Recorded(jnp.zeros((9, 6))), StudentT(0.3))
    with pytest.raises(ValueError, match="needs to see its analysis"):
        Reweighted(ETKF())(BACKGROUND, recorded)
