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
    DiagonalGaussianDenoiser,
    DPMSolver2M,
    DPMSolverSDE,
    Euler,
    ExponentialSDE,
    PredictorCorrector,
    sample,
)

LEVELS, NOISE = np.append(np.geomspace(20, 0.1, 8), 0.0), np.linspace(-2, 2, 5)
TWO_POINTS = jax.tree_util.Partial(
    lambda x, sigma, *, condition=None: jnp.tanh(x / sigma**2)
)


@pytest.fixture
def walk(end_of_walk):
    return lambda method: end_of_walk(method, TWO_POINTS, jnp.asarray(LEVELS), NOISE)


def reference(eta, order, langevin=0.0):
    """Follow Lu et al. (2022), SDE-DPM-Solver++, in lambda = -log(sigma)."""
    denoise = lambda x, sigma: np.tanh(x / sigma**2)
    x, past = LEVELS[0] * NOISE, None
    for step, (now, after) in enumerate(pairwise(LEVELS)):
        clean = denoise(x, now)
        h = np.log(now / after) if after > 0 else np.inf
        damped = -np.expm1(-(1 + eta) * h)
        middle = 0.0
        if order == 2 and past is not None and after > 0:
            r = np.log(LEVELS[step - 1] / now) / h
            middle = damped / 2 * (clean - past) / r
        x = after / now * np.exp(-eta * h if eta else 0) * x + damped * clean + middle
        if eta and after > 0:
            x = x + after * np.sqrt(-np.expm1(-2 * eta * h)) * NOISE
        past = clean
        if langevin and after > 0:  # Song et al. (2021): x + e score + sqrt(2 e) z
            e = langevin * after**2
            score = (denoise(x, after) - x) / after**2
            x = x + e * score + np.sqrt(2 * e) * NOISE
    return x


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 1.7])
@pytest.mark.parametrize(("kind", "order"), [(ExponentialSDE, 1), (DPMSolverSDE, 2)])
def test_steps_are_the_published_ones(kind, order, eta, walk):
    with np.errstate(divide="ignore"):
        expected = reference(eta, order)
    chex.assert_trees_all_close(walk(kind(eta)), expected, rtol=1e-10)


def test_the_corrector_follows_the_predictor_at_every_level_but_0(walk):
    method = PredictorCorrector(DPMSolver2M(), signal_to_noise=0.2)
    with np.errstate(divide="ignore"):
        expected = reference(0.0, 2, langevin=2 * 0.2**2)
    chex.assert_trees_all_close(walk(method), expected, rtol=1e-10)


def test_limits_are_other_methods(walk):
    for one, other in (
        (ExponentialSDE(1.0), DDIM(1.0)),
        (ExponentialSDE(0.0), Euler()),
        (DPMSolverSDE(0.0), DPMSolver2M()),
    ):
        chex.assert_trees_all_close(walk(one), walk(other), rtol=1e-11)


@jax.jit
def draw(method, schedule):
    denoiser = DiagonalGaussianDenoiser(jnp.zeros(20_000), jnp.full(20_000, 1.5))
    settings = {"method": method, "steps": 12}
    return sample(denoiser, schedule, (20_000,), key=jr.key(3), **settings)


@pytest.mark.parametrize(
    "method",
    [
        DPMSolverSDE(1.3),
        PredictorCorrector(ExponentialSDE(0.5), 0.3, corrections=3),
    ],
    ids=["2M", "corrected"],
)
def test_fresh_noise_gives_the_variance_that_follows(method, given_levels):
    levels = np.append(np.geomspace(20, 0.05, 12), 0)
    samples = draw(method, given_levels(jnp.asarray(levels)))
    gain = lambda sigma: 1.5 / (1.5 + sigma**2)
    # State and last denoised state are linear in all the noise: their covariance.
    corrected, weight = isinstance(method, PredictorCorrector), 0.0
    eta = 0.5 if corrected else 1.3
    moments = np.diag([levels[0] ** 2, 0.0])
    for step, (now, after) in enumerate(pairwise(levels)):
        ratio = after / now
        if not corrected and step > 0:
            last = np.log(levels[step - 1] / now)
            weight = np.log(now / after) / (2 * last) if after > 0 else 0.0
        kept, g = ratio ** (1 + eta), gain(now)
        move = np.array([[kept + (1 - kept) * (1 + weight) * g, -(1 - kept) * weight]])
        move = np.vstack([move, [[g, 0]]])
        moments = move @ moments @ move.T
        moments[0, 0] += after**2 * (1 - ratio ** (2 * eta))
        for _ in range(3 if corrected and after > 0 else 0):
            length = 2 * 0.3**2
            factor = 1 - length * (1 - gain(after))
            moments[0, 0] = factor**2 * moments[0, 0] + 2 * length * after**2
    variance = moments[0, 0]
    # A variance of n independent samples has relative error sqrt(2 / n) = 1 percent.
    np.testing.assert_allclose(np.var(samples), variance, rtol=0.04)
    assert stats.kstest(samples / variance**0.5, "norm").pvalue > 1e-3


def exact_variance(method, sigmas):
    """Return the variance of a walk of a Gaussian law of variance 1.5.

    The walk is linear in the start and in each step's noise. Every source has an entry
    of its own; the variance is the sum of their squares.
    """
    sources = jnp.eye(sigmas.size)
    denoise = lambda x, sigma: 1.5 / (1.5 + sigma**2) * x

    def step(carry, this):
        now, source = this
        x, memory = carry
        noise = lambda *, key: source
        return method.step(denoise, x, memory, now, noise=noise, key=jr.key(0)), None

    x = sigmas[0] * sources[0]
    (x, _), _ = jax.lax.scan(
        step, (x, method.init(x)), (method.plan(sigmas), sources[1:])
    )
    return jnp.sum(x**2)


@pytest.mark.parametrize(
    ("method", "order"),
    [(DDIM(0.7), 1), (ExponentialSDE(0.8), 1), (DPMSolverSDE(0.8), 2)],
    ids=["DDIM", "Exponential", "2M"],
)
def test_the_variance_is_approached_at_the_methods_order(method, order):
    start = jnp.asarray(50.0)
    run = jax.jit(lambda sigmas: exact_variance(method, sigmas))
    # The process forgets a start that lacks the law's own variance: the exact end keeps
    # a share of it, (s / s0)^(2 (1 + eta)) at least, far below the error here.
    error = lambda steps: float(run(jnp.geomspace(start, 0.1, steps + 1)) - 1.51)
    np.testing.assert_allclose(np.log2(error(100) / error(200)), order, atol=0.15)


def test_the_corrector_repairs_a_wrong_start(given_levels):
    # All begin at the level 1 as pure noise, which lacks the prior's own variance 1.5.
    schedule = given_levels(jnp.append(jnp.geomspace(1.0, 0.05, 12), 0.0))
    error = lambda method: abs(float(jnp.var(draw(method, schedule))) - 1.5)
    corrected = PredictorCorrector(DPMSolver2M(), 0.3, corrections=3)
    assert error(corrected) < error(DPMSolver2M()) / 2


@pytest.mark.parametrize("kind", [ExponentialSDE, DPMSolverSDE])
def test_gradients_in_the_noise_are_finite_from_none_on(kind, end_of_walk):
    levels, noise = jnp.array([5.0, 2.0, 1.2, 0.8]), jnp.array([0.3, -1.0])
    total = lambda eta: end_of_walk(kind(eta), TWO_POINTS, levels, noise).sum()
    slopes = jax.vmap(jax.grad(total))(jnp.array([0.0, 0.5]))
    chex.assert_tree_all_finite(slopes)
    change = total(jnp.asarray(0.5 + 1e-6)) - total(jnp.asarray(0.5 - 1e-6))
    chex.assert_trees_all_close(slopes[1], change / 2e-6, rtol=1e-6)


def test_wrong_use_is_reported():
    for kind in (ExponentialSDE, DPMSolverSDE):
        for eta in (-0.1, jnp.inf, jnp.nan):
            with pytest.raises(
                eqx.EquinoxRuntimeError, match="finite and not negative"
            ):
                kind(eta)
    for ratio in (0.0, 0.8, jnp.nan):
        with pytest.raises(eqx.EquinoxRuntimeError, match=r"not above 0\.7"):
            PredictorCorrector(Euler(), ratio)
    with pytest.raises(ValueError, match="`corrections` must be at least 1, got 0"):
        PredictorCorrector(Euler(), corrections=0)
