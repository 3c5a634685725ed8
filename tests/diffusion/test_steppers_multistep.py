from itertools import pairwise

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import quad

from skyens.diffusion import (
    EDM,
    DiagonalGaussianDenoiser,
    DPMSolver2M,
    DPMSolver2S,
    DPMSolver3M,
    Euler,
    Heun,
    flow,
)

METHODS = [DPMSolver2S(), DPMSolver2M(), DPMSolver3M()]
NAMES = ["2S", "2M", "3M"]
MEAN, VARIANCES = np.array([0.5, -1.0, 2.0]), np.array([0.1, 1.0, 4.0])
START = jnp.array([1.0, -0.5, 0.3])
TWO_POINTS = jax.tree_util.Partial(
    lambda x, sigma, *, condition=None: jnp.tanh(x / sigma**2)
)


@pytest.fixture
def flow_error(end_of_walk):
    """Return the largest error after some steps, against the exact flow map."""
    denoiser = DiagonalGaussianDenoiser(jnp.asarray(MEAN), jnp.asarray(VARIANCES))
    shrink = np.sqrt(VARIANCES / (VARIANCES + 80.0**2))
    exact = MEAN + shrink * (80 * np.asarray(START) - MEAN)

    def error(method, steps):
        levels = EDM(1e-4, 80.0).sigmas(steps)
        return np.abs(end_of_walk(method, denoiser, levels, START) - exact).max()

    return error


@pytest.mark.parametrize(
    ("method", "order"), list(zip(METHODS, (2, 2, 3), strict=True)), ids=NAMES
)
def test_the_exact_flow_is_approached_at_the_methods_order(method, order, flow_error):
    fewer, more = flow_error(method, 100), flow_error(method, 200)
    np.testing.assert_allclose(np.log2(fewer / more), order, atol=0.1)


def test_one_evaluation_a_step_wins_at_equal_cost(flow_error):
    heun = flow_error(Heun(), 40)  # 79 evaluations
    assert flow_error(DPMSolver2M(), 79) < heun / 2
    assert flow_error(DPMSolver3M(), 79) < heun / 10
    assert flow_error(Euler(), 79) > heun


def test_its_error_per_evaluation_is_half_of_heuns_on_25_modes(modes, end_of_walk):
    prior, noise = modes(8), jr.normal(jr.key(0), (300, 8))
    low, high = 0.002, 80.0

    @jax.jit
    def reference(noise):
        run = lambda z: flow(prior, high * z, high, low, rtol=1e-6, atol=1e-8)
        return jax.lax.map(run, noise, batch_size=100)

    exact = reference(noise)
    # To the least level, as the reference: both have the same last step beyond it.
    levels = lambda steps: EDM(low, high).sigmas(steps + 1)[:-1]
    walk = jax.vmap(end_of_walk, in_axes=(None, None, None, 0))
    error = lambda method, steps: np.sqrt(
        np.mean((walk(method, prior, levels(steps), noise) - exact) ** 2)
    )
    for evaluations in (18, 36, 72):
        heun = error(Heun(), evaluations // 2)
        ratio = error(DPMSolver2M(), evaluations) / heun
        assert 0.3 < ratio < 0.75, ratio


def parabola_step(x, h, values, ages):
    """Integrate exp(s - h) times the polynomial through `values` at times -`ages`."""
    fit = np.polyfit(-np.asarray(ages), np.stack(values), len(values) - 1)
    integral = [
        quad(lambda s, c=c: np.exp(s - h) * np.polyval(c, s), 0, h, epsabs=1e-13)[0]
        for c in fit.T
    ]
    return np.exp(-h) * x + np.array(integral)


def reference(name, x, levels):
    """Follow the published algorithms, step by step, on the two-point law."""
    denoise = lambda x, sigma: np.tanh(x / sigma**2)
    cleans, past = [], []
    for now, after in pairwise(levels):
        clean, h = denoise(x, now), np.log(now / after) if after > 0 else np.inf
        cleans.insert(0, clean)
        past.insert(0, now)
        target = clean
        if name == "2S" and after > 0:  # Lu et al. (2022), algorithm 1, r = 1/2
            middle = np.sqrt(now * after)
            half = middle / now * x - np.expm1(-h / 2) * clean
            target = denoise(half, middle)
        if name == "2M" and len(past) > 1 and after > 0:  # algorithm 2
            r = np.log(past[1] / now) / h
            target = (1 + 1 / (2 * r)) * clean - cleans[1] / (2 * r)
        if name == "3M" and len(past) > 1 and after > 0:
            x = parabola_step(x, h, cleans[:3], np.log(np.array(past[:3]) / now))
            continue
        x = after / now * x - np.expm1(-h) * target
    return x


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("end", [0.0, 0.05])
@pytest.mark.parametrize(
    ("method", "name"), list(zip(METHODS, NAMES, strict=True)), ids=NAMES
)
def test_steps_are_the_published_ones(method, name, end, steps, end_of_walk):
    levels = np.append(np.geomspace(5, 0.1, steps), end)
    noise = np.linspace(-2, 2, 5)
    with np.errstate(divide="ignore"):
        expected = reference(name, levels[0] * noise, levels)
    reached = end_of_walk(method, TWO_POINTS, jnp.asarray(levels), jnp.asarray(noise))
    chex.assert_trees_all_close(reached, expected, rtol=1e-9)


def test_uneven_levels_have_their_own_weights(end_of_walk):
    levels = np.array([30.0, 10.0, 9.0, 2.0, 1.5, 0.3, 0.2])
    noise = np.linspace(-2, 2, 5)
    expected = reference("3M", levels[0] * noise, levels)
    method = DPMSolver3M()
    reached = end_of_walk(method, TWO_POINTS, jnp.asarray(levels), jnp.asarray(noise))
    chex.assert_trees_all_close(reached, expected, rtol=1e-9)
