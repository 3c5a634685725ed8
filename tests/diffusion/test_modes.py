"""Posteriors of many modes, against exact draws: the accuracy of the whole room."""

import itertools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

from skyens.diffusion import (
    EDM,
    MMPS,
    Annealed,
    GaussianMixtureDenoiser,
    Guided,
    MomentMatched,
    PseudoInverse,
    guide,
    sample,
    smc,
)
from skyens.observations import Diagonal, Linear, Observation

# Each problem is solved twice: the mean of ten single solutions varies by a seventh
# from key to key.
CASES = [
    (8, jnp.float64),
    pytest.param(8, jnp.float32, marks=pytest.mark.published),
    pytest.param(80, jnp.float64, marks=pytest.mark.published),
    pytest.param(80, jnp.float32, marks=pytest.mark.published),
]
REPEATS = 2
every_case = pytest.mark.parametrize(("size", "dtype"), CASES)
more = [pytest.param(count, marks=pytest.mark.published) for count in (2, 4)]
every_count = pytest.mark.parametrize("count", [1, *more])

SCALE = 129**0.5  # the standard deviation of one entry of the mixture


def recipe(seed, size, count):
    """Return one problem of 25 modes: the prior, observation, and exact posterior.

    Source: Cardoso et al. (2024), arXiv:2308.07983, section 4, in units of the prior's
    standard deviation.
    """
    rng = np.random.default_rng(seed)
    corners = np.array([(8.0 * i, 8.0 * j) for i in range(-2, 3) for j in range(-2, 3)])
    means = np.tile(corners, (1, size // 2))
    weights = rng.chisquare(1, size=25)
    weights = weights / weights.sum()
    left, _, right = np.linalg.svd(rng.normal(size=(count, size)), full_matrices=False)
    gains = np.sort(rng.uniform(size=count))[::-1]
    matrix = (left * gains) @ right
    std = rng.uniform() * gains.max()
    truth = means[rng.choice(25, p=weights)] + rng.normal(size=size)
    value = (matrix @ truth + std * rng.normal(size=count)) / SCALE
    prior = GaussianMixtureDenoiser(
        jnp.asarray(means / SCALE), 1 / SCALE**2, weights=jnp.asarray(weights)
    )
    observation = Observation(value, Linear(matrix), Diagonal(std / SCALE))
    return prior, observation, prior.posterior(observation)


def sliced(first, second):
    """Return the sliced Wasserstein distance of two sets of as many states."""
    rng = np.random.default_rng(0)
    lines = rng.normal(size=(first.shape[1], 500))
    lines = lines / np.linalg.norm(lines, axis=0)
    gap = np.sort(first @ lines, axis=0) - np.sort(second @ lines, axis=0)
    return np.sqrt(np.mean(gap**2))


@eqx.filter_jit
def exact_draws(posterior, key, count):
    return jax.vmap(lambda key: posterior.sample(key=key))(jr.split(key, count))


def mode_shares(states, weights, prior):
    """Return the share of the weight that is nearest to each of the modes."""
    states, means = np.asarray(states, float), np.asarray(prior.means)
    apart = np.sum(means**2, axis=1) - 2 * states @ means.T
    return np.bincount(np.argmin(apart, axis=1), weights, minlength=25)


@eqx.filter_jit
def solved(prior, observation, key, twist, proposal, threshold, particles, dtype):
    return smc(
        prior, EDM(), observation, prior.means.shape[1:], key=key, steps=200,
        twist=twist, proposal=proposal, threshold=threshold, particles=particles,
        dtype=dtype,
    )  # fmt: skip


def errors(size, count, dtype, twist, threshold, problems=10):
    """Return mean distance and floor, mean error of modes, and ratios of evidence."""
    rows, ratios = [], []
    for seed in range(problems):
        prior, observation, exact = recipe(1000 * count + seed, size, count)
        draws = [np.asarray(exact_draws(exact, jr.key(k), 1000)) for k in (1, 2, 3)]
        pairs = itertools.combinations(draws, 2)
        floor = np.mean([sliced(*pair) for pair in pairs])
        many = exact_draws(exact, jr.key(4), 20_000)
        truth = mode_shares(many, np.full(20_000, 1 / 20_000), prior)
        for repeat in range(REPEATS):
            key = jr.fold_in(jr.key(seed), repeat)
            settings = (twist, Guided(), threshold, 1000, dtype)
            found = solved(prior, observation, key, *settings)
            chex.assert_tree_all_finite(found)
            states = np.asarray(found.resample(key=jr.key(3)))
            shares = mode_shares(found.samples, np.exp(found.log_weights), prior)
            apart = np.abs(shares - truth).sum() / 2
            rows.append((np.mean([sliced(states, d) for d in draws]), floor, apart))
            exact_evidence = float(prior.log_evidence(observation))
            ratios.append(np.exp(float(found.log_evidence) - exact_evidence))
    return *np.mean(rows, axis=0), np.array(ratios)


@pytest.mark.slow
@every_case
@every_count
def test_matched_moments_come_near_exact_draws(size, dtype, count):
    distance, floor, modes, ratios = errors(size, count, dtype, MomentMatched(), 0.5)
    assert distance < 1.5 * floor
    assert modes < 0.04
    # The estimate of the density has no bias, but for that of 200 steps.
    chance = ratios.std(ddof=1) / len(ratios) ** 0.5
    assert abs(ratios.mean() - 1) < 5 * chance + 0.05


@pytest.mark.slow
@every_case
@every_count
def test_annealed_twists_come_near_exact_draws(size, dtype, count):
    distance, floor, *_ = errors(size, count, dtype, Annealed(4.0, 1.0), 0.35)
    assert distance < 2.5 * floor


@pytest.mark.slow
def test_more_particles_are_nearer_where_guidance_stays_away():
    prior, observation, exact = recipe(1000, 8, 1)
    reference = np.asarray(exact_draws(exact, jr.key(1), 10_000))
    truth = mode_shares(reference, np.full(10_000, 1e-4), prior)

    def error(particles, key):
        found = solved(
            prior, observation, key, PseudoInverse(), Guided(), 0.5, particles, float
        )
        shares = mode_shares(found.samples, np.exp(found.log_weights), prior)
        return np.abs(shares - truth).sum() / 2

    few = np.mean([error(100, jr.key(seed)) for seed in range(8)])
    more = np.mean([error(1000, jr.key(seed)) for seed in range(4)])
    many = error(10_000, jr.key(0))
    assert few > 1.5 * more > 2 * many
    guided = guide(prior, observation, MMPS())
    draw = lambda key: sample(guided, EDM(), (8,), key=key, steps=200)
    states = jax.jit(jax.vmap(draw))(jr.split(jr.key(2), 1000))
    shares = mode_shares(states, np.full(1000, 1e-3), prior)
    assert np.abs(shares - truth).sum() / 2 > 3 * more


@pytest.mark.slow
def test_ranks_of_the_truth_are_uniform():
    # A truth from the prior, values from the truth, and its rank among the posterior's.
    prior = GaussianMixtureDenoiser(jnp.array([[-1.0, 0.5], [1.0, 0.0]]), 0.2)
    look = Linear(np.array([[1.0, 1.0]]))

    def rank(key):
        truth_key, value_key, key, choice = jr.split(key, 4)
        truth = prior.sample(key=truth_key)
        value = look(truth) + 0.5 * jr.normal(value_key, (1,))
        observation = Observation(value, look, Diagonal(0.5))
        found = smc(
            prior, EDM(0.01, 20.0), observation, (2,), key=key, particles=100, steps=40
        )
        states = found.resample(key=jr.fold_in(choice, 0))
        # Neighbours among resampled particles are copies: take some far apart.
        some = jr.choice(jr.fold_in(choice, 1), states, (19,), replace=False)
        tie = jr.uniform(jr.fold_in(choice, 2), (19, 2)) < 0.5
        below = (some < truth[None]) | ((some == truth[None]) & tie)
        return jnp.sum(below, axis=0)

    ranks = np.asarray(jax.jit(jax.vmap(rank))(jr.split(jr.key(0), 800)))
    for entry in range(2):
        counts = np.bincount(ranks[:, entry], minlength=20)
        assert stats.chisquare(counts).pvalue > 1e-4
