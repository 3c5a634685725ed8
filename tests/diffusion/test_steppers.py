from itertools import pairwise

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

from skyens.diffusion import (
    DDIM,
    EDM,
    DiagonalGaussianDenoiser,
    Euler,
    Heun,
    RectifiedFlow,
    sample,
)

MEAN, VARIANCES = np.array([0.5, -1.0, 2.0]), np.array([0.1, 1.0, 4.0])
START = jnp.array([1.0, -0.5, 0.3])
TWO_POINTS = jax.tree_util.Partial(
    lambda x, sigma, *, condition=None: jnp.tanh(x / sigma**2)
)


@pytest.mark.parametrize(("method", "order"), [(Euler(), 1), (Heun(), 2)])
def test_the_exact_flow_is_approached_at_the_methods_order(method, order, end_of_walk):
    denoiser = DiagonalGaussianDenoiser(jnp.asarray(MEAN), jnp.asarray(VARIANCES))
    shrink = np.sqrt(VARIANCES / (VARIANCES + 80.0**2))
    exact = MEAN + shrink * (80 * np.asarray(START) - MEAN)

    def error(steps):
        levels = EDM(1e-4, 80.0).sigmas(steps)
        return np.abs(end_of_walk(method, denoiser, levels, START) - exact).max()

    np.testing.assert_allclose(np.log2(error(100) / error(200)), order, atol=0.1)


def reference(method, x, levels):
    """Follow the published algorithms, step by step, on the two-point law."""
    denoise = lambda x, sigma: np.tanh(x / sigma**2)
    for now, after in pairwise(levels):
        slope = (x - denoise(x, now)) / now
        reached = x + (after - now) * slope
        if method == "Heun" and after > 0:  # Karras et al. (2022), algorithm 1
            slope = (slope + (reached - denoise(reached, after)) / after) / 2
            reached = x + (after - now) * slope
        x = reached
    return x


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("end", [0.0, 0.05])
@pytest.mark.parametrize("method", [Euler(), Heun()], ids=["Euler", "Heun"])
def test_steps_are_the_published_ones(method, end, steps, end_of_walk):
    levels = np.append(np.geomspace(5, 0.1, steps), end)
    noise = np.linspace(-2, 2, 5)
    expected = reference(type(method).__name__, levels[0] * noise, levels)
    reached = end_of_walk(method, TWO_POINTS, jnp.asarray(levels), jnp.asarray(noise))
    chex.assert_trees_all_close(reached, expected, rtol=1e-11)


def test_euler_on_a_rectified_flow_is_the_step_along_its_velocity(end_of_walk):
    levels = RectifiedFlow(0.1, 0.9).sigmas(9)
    times = np.append(np.linspace(0.9, 0.1, 9), 0)
    noise = np.linspace(-2, 2, 5)
    x = 0.9 * noise  # the start, without its signal, in the flow's own coordinates
    for now, after in pairwise(times):
        clean = np.tanh(x / (1 - now) / (now / (1 - now)) ** 2)
        velocity = (x - clean) / now  # noise - clean, where x = (1 - t) clean + t noise
        x = x + (after - now) * velocity
    reached = end_of_walk(Euler(), TWO_POINTS, levels, jnp.asarray(noise))
    chex.assert_trees_all_close(reached, x, rtol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("end", [0.0, 0.05])
def test_ddim_steps_are_the_published_ones(eta, end, end_of_walk):
    levels = np.append(np.geomspace(20, 0.1, 8), end)
    noise = np.linspace(-2, 2, 5)
    signal = 1 / (1 + levels**2)  # alpha of the paper, the square of ours
    x = np.sqrt(signal[0]) * levels[0] * noise
    for before, after in pairwise(signal):  # equations 12 and 16
        sigma = np.sqrt((1 - before) / before)
        clean = np.tanh(x / np.sqrt(before) / sigma**2)
        predicted = (x - np.sqrt(before) * clean) / np.sqrt(1 - before)
        added = eta * np.sqrt((1 - after) / (1 - before) * (1 - before / after))
        along = np.sqrt(np.maximum(1 - after - added**2, 0)) * predicted
        x = np.sqrt(after) * clean + along + added * noise
    reached = end_of_walk(DDIM(eta), TWO_POINTS, jnp.asarray(levels), noise)
    chex.assert_trees_all_close(reached, x / np.sqrt(signal[-1]), rtol=1e-10)


def churned_variance(levels, variance, churn, scale):
    """Return the variance that algorithm 2 of Karras et al. gives a Gaussian law."""
    gain = lambda sigma: variance / (variance + sigma**2)
    growth = min(churn / (len(levels) - 1), 2**0.5 - 1)
    result = levels[0] ** 2
    for now, after in pairwise(levels):
        raised = now * (1 + growth)
        result += scale**2 * (raised**2 - now**2)
        slope = (1 - gain(raised)) / raised
        factor = 1 + (after - raised) * slope
        if after > 0:
            slope_after = factor * (1 - gain(after)) / after
            factor = 1 + (after - raised) * (slope + slope_after) / 2
        result *= factor**2
    return result


@jax.jit
def churned(method, schedule):
    denoiser = DiagonalGaussianDenoiser(jnp.zeros(20_000), jnp.full(20_000, 1.5))
    settings = {"method": method, "steps": 16}
    return sample(denoiser, schedule, (20_000,), key=jr.key(3), **settings)


@pytest.mark.parametrize(("churn", "scale"), [(0.0, 1.0), (5.0, 1.0), (40.0, 1.1)])
def test_churn_gives_the_variance_of_the_published_algorithm(churn, scale):
    schedule = EDM(0.01, 20.0)
    samples = churned(Heun(churn=churn, noise_scale=scale), schedule)
    expected = churned_variance(np.asarray(schedule.sigmas(16)), 1.5, churn, scale)
    # A variance of n independent samples has relative error sqrt(2 / n) = 1 percent.
    np.testing.assert_allclose(np.var(samples), expected, rtol=0.04)
    assert stats.kstest(samples / expected**0.5, "norm").pvalue > 1e-3


def test_churn_acts_between_its_levels_only():
    levels = EDM().sigmas(10)
    raised, added, _ = Heun(churn=3.0, churn_min=0.5, churn_max=30.0).plan(levels)
    inside = (levels[:-1] >= 0.5) & (levels[:-1] <= 30)
    assert 0 < inside.sum() < 10
    chex.assert_trees_all_equal(added > 0, inside)
    chex.assert_trees_all_close(raised / levels[:-1], jnp.where(inside, 1.3, 1.0))
    chex.assert_trees_all_close(added**2, raised**2 - levels[:-1] ** 2, atol=1e-10)


@pytest.mark.parametrize("method", [Heun, DDIM], ids=["churn", "eta"])
def test_gradients_are_finite_without_noise_and_at_its_most(method, end_of_walk):
    levels, noise = jnp.array([5.0, 2.0, 1.2, 0.8]), jnp.array([0.3, -1.0])
    total = lambda amount: end_of_walk(method(amount), TWO_POINTS, levels, noise).sum()
    slopes = jax.vmap(jax.grad(total))(jnp.array([0.0, 0.5, 1.0]))
    chex.assert_tree_all_finite(slopes)
    change = total(jnp.asarray(0.5 + 1e-6)) - total(jnp.asarray(0.5 - 1e-6))
    chex.assert_trees_all_close(slopes[1], change / 2e-6, rtol=1e-6)


def test_wrong_use_is_reported():
    for settings in ({"churn": -1.0}, {"churn_min": 2.0, "churn_max": 1.0}):
        with pytest.raises(eqx.EquinoxRuntimeError, match="must not be negative"):
            Heun(**settings)
    for settings in ({"churn_min": 0.1}, {"churn_max": 9.0}, {"noise_scale": 1.05}):
        with pytest.raises(eqx.EquinoxRuntimeError, match="`churn` is 0, so that"):
            Heun(**settings)
    for eta in (-0.1, 1.1, jnp.nan):
        with pytest.raises(eqx.EquinoxRuntimeError, match=r"must lie in \[0, 1\]"):
            DDIM(eta)
