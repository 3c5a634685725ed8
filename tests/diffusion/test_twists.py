from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import integrate, stats

from skyens.diffusion import (
    Annealed,
    DiagonalGaussianDenoiser,
    GaussianDenoiser,
    MomentMatched,
    Noised,
    Plain,
    PseudoInverse,
)
from skyens.observations import Diagonal, Linear, Observation

# What is known of its types has no matrices.
NORMAL: Any = stats.multivariate_normal
SIZE, COUNT = 4, 2
TWISTS = (MomentMatched(), PseudoInverse(), Plain(), Annealed(), Noised())
every_twist = pytest.mark.parametrize("twist", TWISTS, ids=lambda t: type(t).__name__)


def problem(seed):
    """Return a matrix, standard deviations of errors, values, and the observation."""
    rng = np.random.default_rng(seed)
    matrix, std = rng.normal(size=(COUNT, SIZE)), rng.uniform(0.1, 1, COUNT)
    value = rng.normal(size=COUNT)
    return matrix, std, value, Observation(value, Linear(matrix), Diagonal(std))


@eqx.filter_jit
def look(twist, denoiser, observation, x, sigma, key):
    memory = twist.init(x, sigma, key=key)
    denoise = lambda x: denoiser(x, sigma)
    return twist(denoise, observation, x, sigma, memory), memory


def exact(covariance, matrix, noise, value, x, sigma):
    """Return the log-density of the value, and the clean state, given x (and it)."""
    gain = covariance @ np.linalg.inv(covariance + sigma**2 * np.eye(SIZE))
    clean, left = gain @ x, sigma**2 * gain
    total = noise + matrix @ left @ matrix.T
    moved = left @ matrix.T @ np.linalg.solve(total, value - matrix @ clean)
    density = stats.multivariate_normal(matrix @ clean, total).logpdf(value)
    return density, clean, clean + moved


@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 2**31), sigma=st.floats(0.01, 50))
def test_matched_moments_are_exact_for_a_gaussian(seed, sigma):
    matrix, std, value, observation = problem(seed)
    rng = np.random.default_rng(seed + 1)
    factor = rng.normal(size=(SIZE, SIZE))
    covariance = factor @ factor.T / SIZE + 0.1 * np.eye(SIZE)
    x = sigma * rng.normal(size=SIZE)
    prior = GaussianDenoiser(jnp.zeros(SIZE), jnp.asarray(covariance))
    at = (observation, jnp.asarray(x), jnp.asarray(sigma), jr.key(0))
    found, _ = look(MomentMatched(), prior, *at)
    expected = exact(covariance, matrix, np.diag(std**2), value, x, sigma)
    np.testing.assert_allclose(found.log_twist, expected[0], rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(found.clean, expected[1], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.guided, expected[2], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    "twist", [PseudoInverse(2.5), Annealed(1.0, 2.5)], ids=lambda t: type(t).__name__
)
def test_twists_of_one_variance_are_exact_for_such_a_prior(twist):
    matrix, std, value, observation = problem(0)
    prior = DiagonalGaussianDenoiser(jnp.zeros(SIZE), jnp.full(SIZE, 2.5))
    for sigma in (0.01, 1.0, 30.0):
        x = sigma * np.linspace(-1, 2, SIZE)
        at = (observation, jnp.asarray(x), jnp.asarray(sigma), jr.key(0))
        found, _ = look(twist, prior, *at)
        law = 2.5 * np.eye(SIZE)
        expected = exact(law, matrix, np.diag(std**2), value, x, sigma)
        np.testing.assert_allclose(found.log_twist, expected[0], rtol=1e-8)
        np.testing.assert_allclose(found.clean, expected[1], rtol=1e-8)
        np.testing.assert_allclose(found.guided, expected[2], rtol=1e-7)


def test_the_plain_twist_is_the_likelihood_of_the_denoised_state():
    matrix, std, value, observation = problem(1)
    prior = DiagonalGaussianDenoiser(jnp.zeros(SIZE), jnp.ones(SIZE))
    x = np.linspace(-1, 2, SIZE)
    at = (observation, jnp.asarray(x), jnp.asarray(0.5), jr.key(0))
    found, _ = look(Plain(), prior, *at)
    fit = stats.norm.logpdf(value, matrix @ x / 1.25, std).sum()
    np.testing.assert_allclose(found.log_twist, fit, rtol=1e-12)
    slope = matrix.T @ ((value - matrix @ x / 1.25) / std**2) / 1.25
    np.testing.assert_allclose(found.guided, x / 1.25 + 0.25 * slope, rtol=1e-12)


@pytest.mark.parametrize("twist", [Annealed(0.7), Noised(0.0), Noised(0.4)])
def test_twists_of_the_state_hold_it_against_the_values(twist):
    matrix, std, value, observation = problem(2)
    prior = DiagonalGaussianDenoiser(jnp.zeros(SIZE), jnp.ones(SIZE))
    x, sigma = np.linspace(-1, 2, SIZE), 1.5
    at = (observation, jnp.asarray(x), jnp.asarray(sigma), jr.key(3))
    found, memory = look(twist, prior, *at)
    noise = np.diag(std**2) + float(twist.gamma) * sigma**2 * matrix @ matrix.T
    if memory is not None:
        value = value + matrix @ np.asarray(memory)  # the values follow the path
    expected = NORMAL.logpdf(value, matrix @ x, noise)
    np.testing.assert_allclose(found.log_twist, expected, rtol=1e-10)
    slope = matrix.T @ np.linalg.solve(noise, value - matrix @ x)
    expected = x / (1 + sigma**2) + sigma**2 * slope
    np.testing.assert_allclose(found.guided, expected, rtol=1e-9)


def test_the_path_of_noise_has_the_variance_of_each_level():
    twist, like, sigma, after = Noised(), jnp.zeros(20_000), 3.0, 1.2
    square = jnp.asarray((after / sigma) ** 2)
    std = after * jnp.sqrt(1 - square)
    first = twist.init(like, jnp.asarray(sigma), key=jr.key(0))
    second = twist.advance(first, square, std, key=jr.key(1))
    for path, level in ((first, sigma), (second, after)):
        assert stats.kstest(np.asarray(path) / level, "norm").pvalue > 1e-4
    # What was added between the levels is independent of what was there.
    product = (
        np.asarray(second * (first - second))
        / (after**2 * (sigma**2 - after**2)) ** 0.5
    )
    assert abs(product.mean()) < 4 / 20_000**0.5


@pytest.mark.parametrize("twist", [Annealed(), Annealed(0.5, 2.0), Noised()])
def test_states_at_the_start_all_have_the_same_weight(twist):
    matrix, std, value, observation = problem(4)
    prior = DiagonalGaussianDenoiser(jnp.zeros(SIZE), jnp.ones(SIZE))
    like, sigma = jnp.zeros(SIZE), jnp.asarray(20.0)
    memory = twist.init(like, sigma, key=jr.key(0))

    def one(key):
        x, change = twist.start(observation, like, sigma, memory, key=key)
        seen = twist(lambda x: prior(x, sigma), observation, x, sigma, memory)
        return seen.log_twist + change

    weights = jax.jit(jax.vmap(one))(jr.split(jr.key(1), 5))
    scale = 1 / (1 + 400 / twist.variance) if isinstance(twist, Annealed) else 1.0
    total = np.diag(std**2) + (scale * twist.gamma + scale**2) * 400 * matrix @ matrix.T
    mean = np.zeros(COUNT) if memory is None else -matrix @ np.asarray(memory)
    expected = NORMAL.logpdf(value, mean, total)
    np.testing.assert_allclose(weights, np.full(5, expected), rtol=1e-9)


def test_a_start_that_is_not_linear_is_weighed_right():
    observation = Observation(np.array([0.9]), jnp.arctan, Diagonal(0.2))
    twist, sigma = Annealed(0.1), jnp.asarray(2.0)

    def one(key):
        x, change = twist.start(observation, jnp.zeros(1), sigma, None, key=key)
        return jnp.exp(
            twist(lambda x: x, observation, x, sigma, None).log_twist + change
        )

    def integrand(x):
        slope = 1 / (1 + x**2)
        spread = np.sqrt(0.04 + 0.4 * slope**2)
        return stats.norm.pdf(x, 0, 2) * stats.norm.pdf(0.9, np.arctan(x), spread)

    weights = np.asarray(jax.jit(jax.vmap(one))(jr.split(jr.key(0), 20_000)))
    expected = integrate.quad(integrand, -30, 30)[0]
    assert abs(weights.mean() - expected) < 4 * weights.std() / 20_000**0.5


@every_twist
def test_nothing_seen_says_nothing(twist):
    matrix, std, value, _ = problem(5)
    hidden = Observation(value * np.nan, Linear(matrix), Diagonal(std))
    prior = DiagonalGaussianDenoiser(jnp.zeros(SIZE), jnp.ones(SIZE))
    found, _ = look(twist, prior, hidden, jnp.ones(SIZE), jnp.asarray(0.5), jr.key(0))
    assert found.log_twist == 0
    chex.assert_trees_all_equal(found.guided, found.clean)


@every_twist
def test_float32_stays_and_gradients_are_finite(twist):
    *_, observation = problem(6)
    prior = DiagonalGaussianDenoiser(jnp.zeros(SIZE), jnp.ones(SIZE))

    def total(x, sigma):
        found, _ = look(twist, prior, observation, x, sigma, jr.key(0))
        return found.log_twist + found.guided.sum()

    at = (jnp.ones(SIZE, jnp.float32), jnp.float32(0.3))
    value, slopes = jax.value_and_grad(total, argnums=(0, 1))(*at)
    assert value.dtype == jnp.float32
    chex.assert_tree_all_finite(slopes)


def test_wrong_use_is_reported():
    error = eqx.EquinoxRuntimeError
    for bad in (0.0, -1.0, jnp.nan, jnp.inf):
        with pytest.raises(error, match="`variance` must be positive and finite"):
            PseudoInverse(bad)
    for bad in (-1.0, jnp.nan, jnp.inf):
        with pytest.raises(error, match="`gamma` must be finite and >= 0"):
            Annealed(bad)
        with pytest.raises(error, match="`gamma` must be finite and >= 0"):
            Noised(bad)
    with pytest.raises(error, match="`variance` must be positive"):
        Annealed(1.0, 0.0)
