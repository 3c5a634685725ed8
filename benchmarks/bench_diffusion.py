"""Time diffusion samplers beside their peers, and print Markdown tables.

    pip install -e ".[bench]"
    python benchmarks/bench_diffusion.py [--parts azula,sde,memory] [--threads 1,2]
                                         [--samples 1000] [--rounds 5]
                                         [--priors modes,Gaussian]

Two priors of 80 variables, in float32: a mixture of 25 far modes, and a Gaussian with a
dense covariance. Both systems call the same denoiser, the mixture's written alike for
each, the Gaussian's each system's own; the observation is of 4 linear combinations.

- azula: its samplers of torch against ours, both with the levels of a geometric
  schedule and as many calls of the denoiser. DPM-Solver++ 2M is azula's exponential
  Adams-Bashforth method of order 2 with data prediction, the same but for the exact
  weight of its second term. MMPS solves by 4 iterations. The particle filter is azula's
  TDS with the PiGDM twist, which resamples at every step; ours does the same
  (`threshold=1`, `PseudoInverse`), and once more with its own defaults. azula has no
  moment-matched twist, no evidence and no effective number.
- sde: the reverse process in 200 steps of 500 samples of 8 variables: ours, a plain
  `lax.scan` of the same steps, and diffrax's solves by Euler's method.
- memory: temporary bytes of compiled samplers by the number of steps.

Each number of threads is a process of its own, pinned to as many cores before anything
is imported. Systems take turns, round by round; least times are quoted, as seconds on
the wall and of the processor. Errors are of the mean of all samples: the distance to
the exact one, over what chance allows (the root of the posterior variance's trace over
the number of samples); about 1 is perfect.
"""

import argparse
import os
import subprocess
import sys

parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
parser.add_argument("--parts", default="azula,sde,memory")
parser.add_argument("--threads", default="1,2")
parser.add_argument("--samples", type=int, default=1000)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--priors", default="modes,Gaussian")
ARGUMENTS = parser.parse_args()
COUNTS = ARGUMENTS.threads.split(",")
if len(COUNTS) > 1:
    for count in COUNTS:
        once = [sys.executable, __file__, *sys.argv[1:], "--threads", count]
        subprocess.run(once, check=True)
    sys.exit()

THREADS = int(COUNTS[0])
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = str(THREADS)
if THREADS == 1:
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
if hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0), reverse=True)
    os.sched_setaffinity(0, cores[:THREADS])

import platform
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module, metadata
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np

from skyens import diffusion, observations

SIZE, SEEN = 80, 4
LOW, HIGH = 0.002, 80.0


def timed(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the least seconds on the wall and of the processor, systems in turn."""
    for run in runs.values():
        run()  # compiles, too
    best = {name: [np.inf, np.inf] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            wall, spent = time.perf_counter(), time.process_time()
            run()
            now = time.perf_counter() - wall, time.process_time() - spent
            best[name] = [min(pair) for pair in zip(best[name], now, strict=True)]
    return best


def table(heads: list[str], rows: list[list[Any]]) -> None:
    """Print a Markdown table."""
    print("\n| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


# --- problems -------------------------------------------------------------------------


class Modes(eqx.Module):
    """The denoiser of an equal-variance mixture, by products of matrices."""

    means: jax.Array
    log_weights: jax.Array
    variance: jax.Array

    def __call__(self, x, sigma, *, condition=None):
        """Return the expected clean state."""
        total = self.variance + sigma**2
        square = jnp.sum(self.means**2, axis=1)
        fit = (self.means @ x - square / 2) / total
        share = jax.nn.softmax(self.log_weights + fit)
        return (sigma**2 * (share @ self.means) + self.variance * x) / total


def problem(kind: str) -> dict[str, Any]:
    """Return a prior, an observation, and their laws, as arrays of NumPy."""
    rng = np.random.default_rng(0)
    left, _, right = np.linalg.svd(rng.normal(size=(SEEN, SIZE)), full_matrices=False)
    matrix = (left * np.sort(rng.uniform(0.2, 1, SEEN))[::-1]) @ right
    setting: dict[str, Any] = {"kind": kind, "matrix": matrix, "std": 0.05}
    if kind == "modes":
        pairs = 8.0 * np.stack(np.meshgrid(range(-2, 3), range(-2, 3)), -1)
        weights = rng.chisquare(1, size=25)
        setting["means"] = np.tile(pairs.reshape(25, 2), SIZE // 2) / 129**0.5
        setting["weights"] = weights / weights.sum()
        setting["variance"] = 1 / 129
        truth = setting["means"][rng.choice(25, p=setting["weights"])]
        truth = truth + rng.normal(size=SIZE) / 129**0.5
    else:
        basis = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
        setting["mean"] = rng.normal(size=SIZE)
        setting["basis"], setting["variances"] = basis, np.geomspace(0.01, 1, SIZE)
        truth = np.sqrt(setting["variances"]) * rng.normal(size=SIZE)
        truth = setting["mean"] + basis @ truth
    setting["value"] = matrix @ truth + setting["std"] * rng.normal(size=SEEN)
    return setting


def ours(setting):
    """Return our denoiser, our observation, and moments with and without it."""
    array = partial(jnp.asarray, dtype=jnp.float32)
    if setting["kind"] == "modes":
        means, weights = array(setting["means"]), array(setting["weights"])
        law = diffusion.GaussianMixtureDenoiser(
            means, setting["variance"], weights=weights
        )
        prior = Modes(means, jnp.log(weights), array(setting["variance"]))
    else:
        basis, variances = setting["basis"], setting["variances"]
        covariance = (basis * variances) @ basis.T
        covariance = array((covariance + covariance.T) / 2)
        prior = diffusion.GaussianDenoiser(array(setting["mean"]), covariance)
        law = diffusion.GaussianMixtureDenoiser(
            prior.mean[None], covariances=covariance[None]
        )
    observation = observations.Observation(
        array(setting["value"]),
        observations.Linear(array(setting["matrix"])),
        observations.Diagonal(array(setting["std"])),
    )
    return prior, observation, law.moments(), law.posterior(observation).moments()


def gap(samples, moments, weights=None) -> str:
    """Return the error of the mean over what chance allows, or what is not finite."""
    samples, (mean, covariance) = np.asarray(samples, float), moments
    fine = np.isfinite(samples).all(axis=1)
    if not fine.all():
        return f"{1 - fine.mean():.0%} not finite"
    found = np.average(samples, axis=0, weights=weights)
    chance = np.sqrt(np.trace(np.asarray(covariance, float)) / len(samples))
    return f"{np.linalg.norm(found - np.asarray(mean)) / chance:.2f}"


# --- azula ----------------------------------------------------------------------------


def theirs(setting):
    """Return azula's modules, the denoiser, and the observation's parts."""
    torch = import_module("torch")
    torch.set_num_threads(THREADS)
    denoise: Any = import_module("azula.denoise")
    covariance: Any = import_module("azula.linalg.covariance")
    schedule = import_module("azula.noise").VESchedule(LOW, HIGH)
    array = partial(torch.as_tensor, dtype=torch.float32)

    class TorchModes(denoise.Denoiser):
        def __init__(self):
            super().__init__()
            self.schedule, self.means = schedule, array(setting["means"])
            self.log_weights = torch.log(array(setting["weights"]))
            self.square = (self.means**2).sum(-1)

        def forward(self, x, t, **_):
            sigma, variance = schedule.sigma(t), setting["variance"]
            total = variance + sigma**2
            fit = (x @ self.means.T - self.square / 2) / total
            share = torch.softmax(self.log_weights + fit, -1)
            clean = sigma**2 * (share @ self.means) + variance * x
            return denoise.DiracPosterior(clean / total)

    if setting["kind"] == "modes":
        prior = TorchModes()
    else:
        law = covariance.FullCovariance(
            array(setting["basis"]), array(setting["variances"])
        )
        prior = denoise.GaussianDenoiser(array(setting["mean"]), law, schedule)
    error = covariance.IsotropicCovariance(array(setting["std"] ** 2))
    return torch, prior, array(setting["value"]), array(setting["matrix"]), error


def cases(kind: str, samples: int) -> dict[str, tuple[dict[str, Callable], Any]]:
    """Return what is run for a prior, by case, and the moments it should have."""
    setting = problem(kind)
    prior, observation, before, after = ours(setting)
    torch, their_prior, value, matrix, error = theirs(setting)
    sample: Any = import_module("azula.sample")
    guidance: Any = import_module("azula.guidance.mmps")
    filters: Any = import_module("azula.guidance.tds")
    schedule = diffusion.VarianceExploding(jnp.float32(LOW), jnp.float32(HIGH))

    def mine(run):
        compiled = jax.jit(run)
        return lambda: np.asarray(compiled(jr.key(0)))

    def draw(denoiser):
        one = lambda key: diffusion.sample(
            denoiser, schedule, (SIZE,), key=key, steps=35, dtype=jnp.float32
        )
        return mine(lambda key: jax.vmap(one)(jr.split(key, samples)))

    def guided(solver):
        return draw(diffusion.guide(prior, observation, diffusion.MMPS(solver)))

    def weigh(**settings):
        def run(key):
            found = diffusion.smc(
                prior,
                schedule,
                observation,
                (SIZE,),
                key=key,
                particles=samples,
                steps=100,
                dtype=jnp.float32,
                **settings,
            )
            return found.resample(key=jr.fold_in(key, 1))

        return mine(run)

    def peer(sampler):
        return lambda: sampler(sampler.init((samples, SIZE))).numpy()

    def peer_guided(solver):
        posterior = guidance.MMPSDenoiser(
            their_prior, value, look, error, solver=solver, iterations=4
        )
        return peer(sample.xEABSampler(posterior, steps=35, silent=True))

    look = lambda x: x @ matrix.T
    seen, errors = matrix @ matrix.T, setting["std"] ** 2 * torch.eye(SEEN)

    def twist(clean, sigma):
        spread = sigma**2 / (1 + sigma**2) * seen + errors
        law = torch.distributions.MultivariateNormal(look(clean), spread)
        return law.log_prob(value)

    alike = {"twist": diffusion.PseudoInverse(), "threshold": 1.0}
    return {
        "DPM-Solver++ 2M, 35 steps": (
            {
                "ours": draw(prior),
                "azula": peer(sample.xEABSampler(their_prior, steps=35, silent=True)),
            },
            before,
        ),
        "MMPS, 35 steps": (
            {
                "ours, 4 iterations": guided(lx.CG(rtol=0.0, atol=0.0, max_steps=4)),
                "ours, to convergence": guided(None),
                "ours, matrix": guided(lx.Cholesky()),
                "azula, cg": peer_guided("cg"),
                "azula, gmres": peer_guided("gmres"),
            },
            after,
        ),
        "particles, 100 steps": (
            {
                "ours, as azula": weigh(**alike),
                "ours, defaults": weigh(),
                "azula": peer(
                    filters.TDSSampler(their_prior, twist, steps=100, silent=True)
                ),
            },
            after,
        ),
    }


def against_azula(samples: int, rounds: int) -> None:
    """Compare samplers, guidance and particles."""
    rows = []
    for kind in ARGUMENTS.priors.split(","):
        for case, (runs, moments) in cases(kind, samples).items():
            found = {name: gap(run(), moments) for name, run in runs.items()}
            best = timed(runs, rounds)
            first = best[next(iter(runs))]
            for name, spent in best.items():
                ratios = [
                    value / base for value, base in zip(spent, first, strict=True)
                ]
                figures = [
                    *(f"{1e3 * value:.1f}" for value in spent),
                    *(f"{ratio:.2f}" for ratio in ratios),
                ]
                rows.append([kind, case, name, *figures, found[name]])
    heads = ["prior", "case", "system", "wall, ms", "CPU, ms", "wall / ours"]
    table([*heads, "CPU / ours", "error"], rows)


# --- sde ------------------------------------------------------------------------------


def against_solvers(samples: int, rounds: int) -> None:
    """Compare the reverse process with a plain scan and diffrax's solves."""
    size, steps = 8, 200
    prior = diffusion.DiagonalGaussianDenoiser(
        jnp.zeros(size, jnp.float32), jnp.linspace(0.1, 2, size, dtype=jnp.float32)
    )
    schedule = diffusion.VarianceExploding(jnp.float32(LOW), jnp.float32(HIGH))
    levels = schedule.sigmas(steps)[:-1]
    first, last = -float(np.log(HIGH)), -float(np.log(LOW))

    def scanned(key):
        """Return the same exponential steps, by hand."""
        start, walk = jr.split(key)
        x = levels[0] * jr.normal(start, (size,), jnp.float32)

        def step(x, this):
            before, after, index = this
            ratio = (after / before) ** 2
            clean = prior(x, before)
            noise = jr.normal(jr.fold_in(walk, index), (size,), jnp.float32)
            added = after * jnp.sqrt((1 - ratio) * (after > 0))
            return clean + ratio * (x - clean) + added * noise, None

        after = jnp.append(levels[1:], jnp.zeros((), jnp.float32))
        return jax.lax.scan(step, x, (levels, after, jnp.arange(steps)))[0]

    def sampled(key):
        settings = {"steps": steps, "dtype": jnp.float32}
        method = diffusion.ExponentialSDE()
        return diffusion.sample(
            prior, schedule, (size,), key=key, method=method, **settings
        )

    def solved(key, path, adjoint):
        start, walk = jr.split(key)
        x = levels[0] * jr.normal(start, (size,), jnp.float32)
        terms = diffusion.reverse_terms(prior, path(walk))
        length = (last - first) / steps
        solution = diffrax.diffeqsolve(
            terms, diffrax.Euler(), first, last, length, x, adjoint=adjoint
        )
        assert solution.ys is not None
        return solution.ys[0]

    like = jax.ShapeDtypeStruct((size,), jnp.float32)
    unsafe = lambda key: diffrax.UnsafeBrownianPath((size,), key)
    tree = lambda key: diffrax.VirtualBrownianTree(
        first, last, tol=(last - first) / (4 * steps), shape=like, key=key
    )
    draws = {
        "ours, `sample`": sampled,
        "a plain scan": scanned,
        "diffrax, unsafe path, forward mode": partial(
            solved, path=unsafe, adjoint=diffrax.ForwardMode()
        ),
        "diffrax, Brownian tree, direct adjoint": partial(
            solved, path=tree, adjoint=diffrax.DirectAdjoint()
        ),
        "diffrax, Brownian tree, default adjoint": partial(
            solved, path=tree, adjoint=diffrax.RecursiveCheckpointAdjoint()
        ),
        "ours, `reverse_sde` (ShARK)": lambda key: diffusion.reverse_sde(
            prior, 80 * jr.normal(key, (size,), jnp.float32), HIGH, LOW, key=key
        ),
    }

    def mapped(draw):
        run = jax.jit(lambda key: jax.vmap(draw)(jr.split(key, samples)))
        return lambda: np.asarray(run(jr.key(0)))

    runs = {name: mapped(draw) for name, draw in draws.items()}
    best = timed(runs, rounds)
    base = best["ours, `sample`"]
    rows = [
        [
            name,
            *(f"{1e3 * value:.1f}" for value in best[name]),
            *(f"{v / b:.2f}" for v, b in zip(best[name], base, strict=True)),
            f"{np.mean(np.var(run(), axis=0) / np.asarray(prior.variances)):.3f}",
        ]
        for name, run in runs.items()
    ]
    heads = ["system", "wall, ms", "CPU, ms", "wall / ours", "CPU / ours"]
    table([*heads, "variance over the exact one"], rows)


# --- memory ---------------------------------------------------------------------------


def memory(samples: int) -> None:
    """Print the temporary bytes of compiled samplers by the number of steps."""
    prior, observation, _, _ = ours(problem("modes"))
    schedule = diffusion.VarianceExploding(jnp.float32(LOW), jnp.float32(HIGH))

    def drawn(key, steps, denoiser: diffusion.Denoiser = prior):
        one = lambda key: diffusion.sample(
            denoiser, schedule, (SIZE,), key=key, steps=steps, dtype=jnp.float32
        )
        return jax.vmap(one)(jr.split(key, samples))

    def weighed(key, steps):
        found = diffusion.smc(
            prior,
            schedule,
            observation,
            (SIZE,),
            key=key,
            particles=samples,
            steps=steps,
            dtype=jnp.float32,
        )
        return found.samples

    functions = {
        "`sample`": drawn,
        "`sample`, MMPS": partial(drawn, denoiser=diffusion.guide(prior, observation)),
        "`smc`": weighed,
    }
    counts = (25, 100, 400, 1600)
    rows = []
    for name, function in functions.items():
        sizes = []
        for steps in counts:
            run = jax.jit(partial(function, steps=steps))
            found: Any = run.lower(jr.key(0)).compile().memory_analysis()
            sizes.append(f"{found.temp_size_in_bytes / 1e6:.3f}")
        rows.append([name, *sizes])
    table(["temporary MB by steps", *map(str, counts)], rows)


def main() -> None:
    """Run the parts that are asked for."""
    warnings.filterwarnings("ignore")
    versions = [f"Python {platform.python_version()}"]
    for name in ("skyens", "jax", "diffrax", "azula", "torch"):
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    print(f"\n{', '.join(versions)}; {THREADS} threads, {ARGUMENTS.samples} samples")
    parts = {
        "azula": partial(against_azula, ARGUMENTS.samples, ARGUMENTS.rounds),
        "sde": partial(against_solvers, 500, ARGUMENTS.rounds),
        "memory": partial(memory, ARGUMENTS.samples),
    }
    for part in ARGUMENTS.parts.split(","):
        parts[part]()


if __name__ == "__main__":
    main()
