from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import integrate, stats

from skyens.diffusion import (
    Annealed,
    DiagonalGaussianDenoiser,
    Flow,
    GaussianDenoiser,
    Guided,
    Heun,
    Kernel,
    LocallyOptimal,
    MomentMatched,
    Noised,
    Unguided,
)
from skyens.diffusion._proposals import Last
from skyens.observations import Diagonal, Linear, Observation

# What is known of its types has no matrices.
NORMAL: Any = stats.multivariate_normal
MATRIX = np.array([[1.0, -1.0, 0.5], [0.0, 2.0, 1.0]])
STD, VALUE = np.array([0.1, 0.3]), np.array([0.7, -0.4])
OBSERVATION = Observation(VALUE, Linear(MATRIX), Diagonal(STD))
PRIOR = DiagonalGaussianDenoiser(
    jnp.array([0.0, 1.0, -1.0]), jnp.array([1.0, 0.5, 2.0])
)
X = jnp.array([1.0, -2.0, 0.5])
STEP = Kernel.between(jnp.array([1.5, 0.8]))
STEP = jax.tree.map(lambda part: part[0], STEP)


@eqx.filter_jit
def moved(proposal, twist, prior, observation, x, kernel, keys):
    """Return the way of `x`, states one level down, ratios, and the next twists."""
    denoise = lambda x, sigma: prior(x, sigma)
    at = lambda x, sigma, memory: twist(
        lambda x: denoise(x, sigma), observation, x, sigma, memory
    )
    memory = twist.init(x, kernel.sigma, key=jr.key(7))
    look = at(x, kernel.sigma, memory)
    way = proposal.prepare(denoise, twist, observation, x, look, kernel, memory)

    def one(key):
        state, ratio = proposal.move(
            denoise, twist, observation, way, kernel, memory, key=key
        )
        after = jnp.where(kernel.after > 0, kernel.after, kernel.sigma)
        return state, ratio, at(state, after, memory).log_twist

    return way, *jax.vmap(one)(keys)


def test_the_kernel_is_the_reverse_of_the_noising():
    levels = np.array([3.0, 1.0, 0.2])
    kernels = Kernel.between(jnp.asarray(levels))
    # Given the clean state and x at `sigma`, Gaussian conditioning of x at `after`.
    square = levels[1:] ** 2 / levels[:-1] ** 2
    chex.assert_trees_all_close(kernels.square, square, rtol=1e-12)
    chex.assert_trees_all_close(kernels.rest, 1 - square, rtol=1e-12)
    left = levels[1:] ** 2 - levels[1:] ** 4 / levels[:-1] ** 2
    chex.assert_trees_all_close(kernels.std**2, left, rtol=1e-12)


@pytest.mark.parametrize("proposal", [Guided(), Unguided()])
def test_draws_and_ratios_are_those_of_two_normal_laws(proposal):
    keys = jr.split(jr.key(0), 4000)
    way, states, ratios, _ = moved(
        proposal, MomentMatched(), PRIOR, OBSERVATION, X, STEP, keys
    )
    assert way.log_ahead == way.look.log_twist
    target = way.look.guided if isinstance(proposal, Guided) else way.look.clean
    mean, about = (
        np.asarray(clean + STEP.square * (X - clean))
        for clean in (way.look.clean, target)
    )
    std = float(STEP.std)
    for entry in range(3):
        drawn = (np.asarray(states)[:, entry] - about[entry]) / std
        assert stats.kstest(drawn, "norm").pvalue > 1e-4
    density = lambda mean: stats.norm.logpdf(states, mean, std)
    ratio = density(mean) - density(about)
    np.testing.assert_allclose(ratios, ratio.sum(axis=1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("twist", [Annealed(0.6), Annealed(1.0, 2.0), Noised(0.0)])
def test_the_locally_optimal_weight_does_not_depend_on_the_draw(twist):
    keys = jr.split(jr.key(1), 6)
    way, states, ratios, twists = moved(
        LocallyOptimal(), twist, PRIOR, OBSERVATION, X, STEP, keys
    )
    assert jnp.std(states, axis=0).min() > 0.01
    ahead = float(way.log_ahead)
    np.testing.assert_allclose(ratios + twists, np.full(6, ahead), atol=1e-9)
    # The mean of the next twist over the kernel, a convolution of two normal laws.
    mean = way.look.clean + STEP.square * (X - way.look.clean)
    scale = float(twist.scale(STEP.after))
    spread = (STEP.std**2 + twist.inflation(STEP.after)) * scale**2
    memory = twist.init(X, STEP.sigma, key=jr.key(7))
    about = scale * MATRIX @ np.asarray(mean - twist.offset(X, memory))
    total = np.diag(STD**2) + float(spread) * MATRIX @ MATRIX.T
    expected = NORMAL.logpdf(VALUE, about, total)
    np.testing.assert_allclose(ahead, expected, rtol=1e-9)


def test_the_locally_optimal_weight_makes_up_for_a_curved_operator():
    observation = Observation(np.array([0.9]), jnp.arctan, Diagonal(0.3))
    twist, x = Annealed(0.2), jnp.array([1.0])
    prior = DiagonalGaussianDenoiser(jnp.zeros(1), jnp.ones(1))
    keys = jr.split(jr.key(3), 20_000)
    way, _, ratios, twists = moved(
        LocallyOptimal(), twist, prior, observation, x, STEP, keys
    )
    weights = np.exp(np.asarray(ratios + twists))
    mean = float(way.look.clean[0] + STEP.square * (x[0] - way.look.clean[0]))
    inflation = 0.2 * 0.8**2

    def integrand(x):
        spread = np.sqrt(0.09 + inflation / (1 + x**2) ** 2)
        fit = stats.norm.pdf(0.9, np.arctan(x), spread)
        return stats.norm.pdf(x, mean, float(STEP.std)) * fit

    expected = integrate.quad(integrand, -10, 10)[0]
    assert abs(weights.mean() - expected) < 4 * weights.std() / 20_000**0.5


def test_the_flow_is_a_step_of_heun():
    keys = jr.split(jr.key(0), 1)
    _, states, ratios, _ = moved(Flow(), Annealed(), PRIOR, OBSERVATION, X, STEP, keys)
    method, levels = Heun(), jnp.array([1.5, 0.8])
    plan = jax.tree.map(lambda part: part[0], method.plan(levels))
    denoise = lambda x, sigma: PRIOR(x, sigma)
    step = method.step(denoise, X, None, plan, noise=lambda *, key: X, key=keys[0])
    chex.assert_trees_all_close(states[0], step[0], rtol=1e-12)
    assert ratios[0] == 0


def test_the_last_step_draws_clean_states_given_the_values():
    covariance = np.array([[1.0, 0.3, 0.0], [0.3, 0.8, 0.0], [0.0, 0.0, 1e-6]])
    prior, sigma = GaussianDenoiser(jnp.zeros(3), jnp.asarray(covariance)), 0.05
    levels = jnp.array([sigma, 0.0])
    kernel = jax.tree.map(lambda part: part[0], Kernel.between(levels))
    keys = jr.split(jr.key(4), 20_000)
    way, states, ratios, _ = moved(
        Last(), MomentMatched(), prior, OBSERVATION, X, kernel, keys
    )
    # Before it is observed the clean state has the mean D and covariance s^2 J J^T.
    jacobian = covariance @ np.linalg.inv(covariance + sigma**2 * np.eye(3))
    clean, left = jacobian @ np.asarray(X), sigma**2 * jacobian @ jacobian.T
    total = MATRIX @ left @ MATRIX.T + np.diag(STD**2)
    ahead = NORMAL.logpdf(VALUE, MATRIX @ clean, total)
    np.testing.assert_allclose(way.log_ahead, ahead, rtol=1e-9)
    fits = stats.norm.logpdf(VALUE, np.asarray(states) @ MATRIX.T, STD).sum(axis=1)
    np.testing.assert_allclose(ratios + fits, np.full(20_000, ahead), rtol=1e-8)
    gain = left @ MATRIX.T @ np.linalg.inv(total)
    mean = clean + gain @ (VALUE - MATRIX @ clean)
    after = left - gain @ MATRIX @ left
    variances = np.diag(after)
    gap = (np.asarray(states).mean(axis=0) - mean) / np.sqrt(variances / 20_000)
    assert np.abs(gap).max() < 4.5
    chance = np.sqrt((np.outer(variances, variances) + after**2) / 20_000)
    assert (np.abs(np.cov(np.asarray(states).T) - after) < 4.5 * chance).all()


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match=r"twist of the noisy state.*MomentM"):
        moved(
            LocallyOptimal(), MomentMatched(), PRIOR, OBSERVATION, X, STEP,
            jr.split(jr.key(0), 1),
        )  # fmt: skip
