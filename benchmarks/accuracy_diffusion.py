"""How near posterior samplers come to exact draws: 25 Gaussian modes, seen in part.

    python benchmarks/accuracy_diffusion.py [problems]

Problems follow Cardoso et al. (2024), arXiv:2308.07983, section 4: modes at the points
of a grid, random weights, and a random linear look at `values` numbers, with errors.
Everything exact is known: draws, shares of the modes, the density of the values. Each
row is a mean over problems (10 unless told). Distances are sliced Wasserstein-2
distances of 1,000 draws to three times 1,000 exact ones, in the recipe's units (modes
are 8 apart and 1 wide), beside `floor`, that of these from each other. `modes` is the
total variation of the shares of the modes; `log-evidence` the error's root mean square.
"""

import itertools
import sys
import time
from collections import defaultdict

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from skyens import diffusion, observations

jax.config.update("jax_enable_x64", True)

SCALE = 129**0.5  # the standard deviation of one entry of the prior
STEPS, DRAWS, MANY = 200, 1000, 20_000
SCHEDULE = diffusion.EDM()
matched, guided = diffusion.MomentMatched(), diffusion.Guided()
annealed, optimal = diffusion.Annealed(4.0, 1.0), diffusion.LocallyOptimal()
PARTICLES = {
    # name: (twist, proposal, threshold, dtype)
    "TDS, matched moments": (matched, guided, 0.5, "float64"),
    "the same in float32": (matched, guided, 0.5, "float32"),
    "TDS, pseudo-inverse": (diffusion.PseudoInverse(), guided, 0.5, "float64"),
    "AFDPS, annealed": (annealed, guided, 0.35, "float64"),
    "the same in float32 ": (annealed, guided, 0.35, "float32"),
    "AFDPS, as a flow": (annealed, diffusion.Flow(), 0.0, "float64"),
    "MCGdiff": (diffusion.Annealed(1.0), optimal, 0.2, "float64"),
    "FPS": (diffusion.Noised(), optimal, 0.2, "float64"),
}
GUIDED = {
    "MMPS": diffusion.MMPS(),
    "PiGDM": diffusion.PiGDM(),
    "DPS": diffusion.DPS(),
}


def problem(seed, size, values):
    """Return the prior and an observation, in units of the prior's deviation."""
    rng = np.random.default_rng(seed)
    side = range(-2, 3)
    corners = np.array([(8.0 * i, 8.0 * j) for i in side for j in side])
    means = np.tile(corners, (1, size // 2))
    weights = rng.chisquare(1, size=25)
    left, _, right = np.linalg.svd(rng.normal(size=(values, size)), full_matrices=False)
    gains = np.sort(rng.uniform(size=values))[::-1]
    matrix = (left * gains) @ right
    std = rng.uniform() * gains.max()
    truth = means[rng.choice(25, p=weights / weights.sum())] + rng.normal(size=size)
    seen = (matrix @ truth + std * rng.normal(size=values)) / SCALE
    prior = diffusion.GaussianMixtureDenoiser(
        jnp.asarray(means / SCALE), 1 / SCALE**2, weights=jnp.asarray(weights)
    )
    error = observations.Diagonal(std / SCALE)
    return prior, observations.Observation(seen, observations.Linear(matrix), error)


@eqx.filter_jit
def exact(law, key, count):
    return jax.vmap(lambda key: law.sample(key=key))(jr.split(key, count))


@eqx.filter_jit
def weighted(prior, seen, key, twist, proposal, threshold, dtype, particles):
    return diffusion.smc(
        prior,
        SCHEDULE,
        seen,
        prior.means.shape[1:],
        key=key,
        particles=particles,
        twist=twist,
        proposal=proposal,
        steps=STEPS,
        threshold=threshold,
        dtype=dtype,
    )


@eqx.filter_jit
def alone(prior, seen, key, method, count):
    denoiser = diffusion.guide(prior, seen, method)
    shape = prior.means.shape[1:]
    draw = lambda key: diffusion.sample(denoiser, SCHEDULE, shape, key=key, steps=STEPS)
    return jax.vmap(draw)(jr.split(key, count))


def distance(first, second):
    """Return the sliced Wasserstein-2 distance, in the recipe's units."""
    lines = np.random.default_rng(0).normal(size=(first.shape[1], 500))
    lines = lines / np.linalg.norm(lines, axis=0)
    along = [np.sort(np.asarray(x) @ lines, axis=0) for x in (first, second)]
    return SCALE * np.sqrt(np.mean((along[0] - along[1]) ** 2))


def nearness(states, several):
    return np.mean([distance(states, draws) for draws in several])


def shares(states, prior, weights=None):
    """Return the share of the weight nearest to each mode."""
    states, means = np.asarray(states), np.asarray(prior.means)
    apart = np.sum(means**2, axis=1) - 2 * states @ means.T
    weights = np.full(len(states), 1 / len(states)) if weights is None else weights
    return np.bincount(np.argmin(apart, axis=1), np.asarray(weights), minlength=25)


def variation(first, second):
    return np.abs(first - second).sum() / 2


def table(size, values, problems):
    rows = defaultdict(list)
    for index in range(problems):
        prior, seen = problem(1000 * values + index, size, values)
        law = prior.posterior(seen)
        draws = [exact(law, jr.key(k), DRAWS) for k in (1, 2, 3)]
        truth = shares(exact(law, jr.key(4), MANY), prior)
        floor = np.mean([distance(*pair) for pair in itertools.combinations(draws, 2)])
        apart = np.mean([variation(shares(d, prior), truth) for d in draws])
        rows["floor"].append((floor, apart, np.nan, 0))
        evidence = float(prior.log_evidence(seen))
        for name, (twist, proposal, threshold, dtype) in PARTICLES.items():
            before = time.process_time()
            key = jr.key(100 + index)
            found = weighted(prior, seen, key, twist, proposal, threshold, dtype, DRAWS)
            found = jax.block_until_ready(found)
            took = time.process_time() - before
            states = found.resample(key=jr.key(3))
            weights = np.exp(np.asarray(found.log_weights, float))
            rows[name].append(
                (
                    nearness(states, draws),
                    variation(shares(found.samples, prior, weights), truth),
                    float(found.log_evidence) - evidence,
                    took,
                )
            )
        for name, method in GUIDED.items():
            before = time.process_time()
            states = alone(prior, seen, jr.key(100 + index), method, DRAWS)
            states = np.asarray(states)
            took = time.process_time() - before
            fine = states[np.isfinite(states).all(axis=1)]
            bad = len(fine) < DRAWS
            far = np.inf if bad else nearness(states, draws)
            apart = np.inf if bad else variation(shares(states, prior), truth)
            rows[name + ", guidance alone"].append((far, apart, np.nan, took))
    print(f"\n### {size} entries, {values} values seen, {problems} problems\n")
    print("| method | distance | over floor | modes | log-evidence | finite | CPU s |")
    print("|---|---|---|---|---|---|---|")
    floor = np.mean([row[0] for row in rows["floor"]])
    for name, row in rows.items():
        far, modes, evidence, took = np.array(row).T
        finite = np.isfinite(far)
        mean, apart = np.mean(far), np.mean(modes)
        error = np.sqrt(np.mean(evidence**2))
        # The median leaves out the first problem, which compiles.
        print(
            f"| {name} | {mean:.2f} | {mean / floor:.2f} | {apart:.3f} | {error:.2f} "
            f"| {finite.sum()} of {problems} | {np.median(took):.1f} |",
            flush=True,
        )


def growth(problems):
    """Print errors of the shares of modes against the number of particles."""
    rows = defaultdict(list)
    for index in range(problems):
        prior, seen = problem(1000 + index, 8, 1)
        truth = shares(exact(prior.posterior(seen), jr.key(4), 100_000), prior)
        for count in (100, 1000, 10_000):
            for name in ("TDS, matched moments", "TDS, pseudo-inverse"):
                key, method = jr.key(index), PARTICLES[name]
                found = weighted(prior, seen, key, *method, particles=count)
                weights = np.exp(np.asarray(found.log_weights))
                found = shares(found.samples, prior, weights)
                rows[name, count].append(variation(found, truth))
            states = alone(prior, seen, jr.key(index), diffusion.MMPS(), count)
            error = variation(shares(states, prior), truth)
            rows["MMPS, guidance alone", count].append(error)
            drawn = exact(prior.posterior(seen), jr.key(5), count)
            rows["exact draws", count].append(variation(shares(drawn, prior), truth))
    print(f"\n### Errors of the modes, 8 entries, 1 value, {problems} problems\n")
    print("| method | 100 | 1,000 | 10,000 |\n|---|---|---|---|")
    for name in dict.fromkeys(name for name, _ in rows):
        errors = [np.mean(rows[name, count]) for count in (100, 1000, 10_000)]
        print(f"| {name} | " + " | ".join(f"{e:.3f}" for e in errors) + " |")


count = int(sys.argv[1]) if len(sys.argv) > 1 else 10
for entries in (8, 80):
    for number in (1, 2, 4):
        table(entries, number, count)
growth(count)
