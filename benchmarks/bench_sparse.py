"""Time sparse regression and its worlds beside their peers, and print Markdown tables.

    pip install -e ".[bench]"
    python benchmarks/bench_sparse.py [--parts fits,bootstraps,stream,steps]
                                      [--rounds 5] [--rows 1000000]

- fits: 5000 rows and 55 terms, independent and collinear columns; the log-evidence of
  what each finds, by one formula, and the seconds to compile ours. scikit-learn's ARD
  runs as it is by default and as near to the optimum as it gets; fastrvm's core runs on
  the columns themselves, without its kernels; thresholds have no evidence.
- bootstraps: 64 of them, against a loop of scikit-learn's.
- stream: a million rows in blocks, at constant memory.
- steps: worlds of model-error discovery beside exponax and pyqg-jax.

Times are CPU seconds of this process, the least of several rounds in turn. Threads are
one each, set before anything is imported, and the process stays on one core.
"""

import os

THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
os.environ.update(THREADS)
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import argparse
import platform
import resource
import time
import warnings
from importlib import import_module, metadata
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from skyens import dynamics, sparse

ROWS, TERMS, RESAMPLES = 5000, 55, 64


def cpu_seconds(run) -> float:
    """Return the processor time of one call."""
    before = time.process_time()
    run()
    return time.process_time() - before


def table(heads: list[str], rows: list[list[Any]]) -> None:
    """Print a Markdown table."""
    print("\n| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def compiled(function, *arguments):
    """Return a compiled function and the seconds that tracing and compiling took."""
    before = time.perf_counter()
    made = jax.jit(function).lower(*arguments).compile()
    return made, time.perf_counter() - before


def least(runs: dict[str, Any], rounds: int) -> dict[str, float]:
    """Return the least time of each run, taken in turn."""
    for run in runs.values():
        run()
    times = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(cpu_seconds(run))
    return {name: min(values) for name, values in times.items()}


def data(collinear: bool):
    """Return columns and a target that four of them explain."""
    random = np.random.default_rng(0)
    phi = random.normal(size=(ROWS, TERMS))
    if collinear:
        phi = phi + 20 * random.normal(size=(ROWS, 1))
    truth = np.zeros(TERMS)
    truth[[1, 5, 9, 20]] = 1, -2, 0.5, 3
    return phi, phi @ truth + random.normal(size=ROWS)


# --- fits -----------------------------------------------------------------------------


def evidence(phi, y, variance, noise) -> float:
    """Return the log-evidence at these prior variances, by QR."""
    stacked = np.vstack([phi * np.sqrt(variance) / noise, np.eye(phi.shape[1])])
    target = np.append(y / noise, np.zeros(phi.shape[1]))
    residue = target - stacked @ np.linalg.lstsq(stacked, target, rcond=None)[0]
    diagonal = np.abs(np.diag(np.linalg.qr(stacked, mode="r")))
    log_determinant = 2 * np.log(diagonal).sum() + 2 * len(y) * np.log(noise)
    normal = len(y) * np.log(2 * np.pi) + log_determinant
    return -0.5 * float(normal + residue @ residue)


def ard(phi, y, *, to_the_optimum: bool):
    """Return a fit of scikit-learn's: prior variances and noise."""
    options: dict[str, Any] = {"fit_intercept": False}
    if to_the_optimum:
        options |= {"threshold_lambda": 1e8, "tol": 1e-8, "max_iter": 3000}
        options |= dict.fromkeys(["alpha_1", "alpha_2", "lambda_1", "lambda_2"], 0)
    fit = import_module("sklearn.linear_model").ARDRegression(**options).fit(phi, y)
    kept = fit.lambda_ < options.get("threshold_lambda", 1e4)
    return np.where(kept, 1 / fit.lambda_, 0), fit.alpha_**-0.5


def fastrvm(phi, y) -> float:
    """Return the log-evidence of a fit of fastrvm's core, as it says itself."""
    core = import_module("fastrvm")._sparsebayes_bindings
    found = core.SparseBayes(core.Likelihood.Gaussian, 10_000).inference(phi, y)
    trace = np.ravel(found["log_marginal_likelihood_trace"])
    return float(trace[-1]) - len(y) / 2 * np.log(2 * np.pi)  # it leaves that out


def stlsq(phi, y):
    """Return nothing of a fit of pysindy's thresholded least squares."""
    import_module("pysindy").STLSQ(threshold=0.1).fit(phi, y[:, None])


def fits(rounds: int) -> None:
    """Compare single fits."""
    ours = tuple(jnp.asarray(part) for part in data(False))
    press, press_s = compiled(sparse.compress, *ours)
    solve, solve_s = compiled(sparse.rvm, press(*ours))
    cut, cut_s = compiled(lambda problem: sparse.stlsq(problem, 0.1), press(*ours))
    print(
        f"\ncompiled in: compress {press_s:.1f} s, rvm {solve_s:.1f} s, stlsq "
        f"{cut_s:.1f} s"
    )
    rows = []
    for collinear in (False, True):
        kind = "collinear" if collinear else "independent"
        rows += [[kind, *row] for row in _fits(rounds, collinear, press, solve, cut)]
    table(["columns", "fit", "ms", "evidence below the best"], rows)


def _fits(rounds: int, collinear: bool, press, solve, cut):
    phi, y = data(collinear)
    ours = jnp.asarray(phi), jnp.asarray(y)
    found: dict[str, Any] = {}

    def keep(name, value):
        found[name] = value

    runs = {
        "compress": lambda: jax.block_until_ready(press(*ours)),
        "compress, rvm": lambda: keep("r", jax.block_until_ready(solve(press(*ours)))),
        "compress, stlsq": lambda: jax.block_until_ready(cut(press(*ours))),
        "scikit-learn ARD": lambda: keep("a", ard(phi, y, to_the_optimum=False)),
        "scikit-learn ARD, tol 1e-8": lambda: keep(
            "o", ard(phi, y, to_the_optimum=True)
        ),
        "fastrvm core": lambda: keep("f", fastrvm(phi, y)),
        "pysindy STLSQ": lambda: stlsq(phi, y),
    }
    times = least(runs, rounds)
    heights = {
        "compress, rvm": float(found["r"].log_evidence),
        "scikit-learn ARD": evidence(phi, y, *found["a"]),
        "scikit-learn ARD, tol 1e-8": evidence(phi, y, *found["o"]),
        "fastrvm core": found["f"],
    }
    best = max(heights.values())
    for name, seconds in times.items():
        below = f"{best - heights[name]:.1e}" if name in heights else "-"
        yield [name, f"{1e3 * seconds:.1f}", below]


# --- bootstraps -----------------------------------------------------------------------


def bootstraps(rounds: int) -> None:
    """Compare many fits with a loop."""
    phi, y = data(False)
    ours = jnp.asarray(phi), jnp.asarray(y), jr.key(0)
    fit = lambda problem: sparse.rvm(problem).mean
    run, compile_s = compiled(
        lambda phi, y, key: sparse.bootstrap(phi, y, fit, resamples=RESAMPLES, key=key),
        *ours,
    )
    draws = np.random.default_rng(1).integers(0, ROWS, (RESAMPLES, ROWS))
    loop = lambda best: [ard(phi[i], y[i], to_the_optimum=best) for i in draws]
    times = least({"ours": lambda: jax.block_until_ready(run(*ours))}, rounds)
    times |= least({"scikit-learn": lambda: loop(False)}, 1)
    times["scikit-learn, tol 1e-8"] = cpu_seconds(lambda: loop(True))
    rows = [
        [name, f"{seconds:.2f}", f"{seconds / times['ours']:.1f}"]
        for name, seconds in times.items()
    ]
    table([f"{RESAMPLES} bootstraps", "s", "times ours"], rows)
    print(f"\ncompiled in {compile_s:.1f} s")


# --- stream ---------------------------------------------------------------------------


def stream(total: int, block: int = 10_000) -> None:
    """Compress rows that never stand in memory together."""
    truth = (
        jnp.zeros(TERMS).at[jnp.array([1, 5, 9, 20])].set(jnp.array([1, -2, 0.5, 3]))
    )

    @jax.jit
    def add(problem, key):
        first, second = jr.split(key)
        phi = jr.normal(first, (block, TERMS))
        return problem + sparse.compress(phi, phi @ truth + jr.normal(second, (block,)))

    size = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    problem = sparse.SparseProblem.zeros(TERMS)
    keys = jr.split(jr.key(0), total // block)
    for key in keys[:2]:
        problem = jax.block_until_ready(add(problem, key))
    before, started = size(), time.process_time()
    for key in keys[2:]:
        problem = jax.block_until_ready(add(problem, key))
    seconds = time.process_time() - started
    grown = size() - before
    fit = jax.jit(sparse.rvm)(problem)
    error = float(jnp.max(jnp.abs(fit.mean - truth)))
    table(
        ["rows", "s", "peak MB after two blocks", "growth MB", "whole MB", "error"],
        [
            [
                int(problem.rows),
                f"{seconds:.1f}",
                f"{before:.0f}",
                f"{grown:.1f}",
                f"{total * (TERMS + 1) * 8 / 1e6:.0f}",
                f"{error:.1e}",
            ]
        ],
    )


# --- steps ----------------------------------------------------------------------------


def many(step, start, steps: int):
    """Return a compiled run of many steps."""
    run = jax.jit(lambda x: jax.lax.fori_loop(0, steps, lambda _, x: step(x), x))
    return lambda: jax.block_until_ready(run(start))


def steps(rounds: int) -> None:
    """Compare steps of Kuramoto and Sivashinsky and of two layers."""
    exponax: Any = import_module("exponax")
    pyqg: Any = import_module("pyqg_jax")
    length, dt, count = 100.0, 0.01, 200
    rows = []
    for size in (256, 1024):
        start = jnp.cos(2 * jnp.pi * jnp.arange(size) / size * 3)
        world = dynamics.KuramotoSivashinsky(size, length, dt)
        theirs = exponax.stepper.KuramotoSivashinskyConservative(
            1, length, size, dt, order=4
        )
        times = least(
            {
                "ours": many(world, start, count),
                "peer": many(theirs, start[None], count),
            },
            rounds,
        )
        rows.append(_row(f"Kuramoto-Sivashinsky, {size}", "exponax", times, count))
    for size in (64, 128):
        model = pyqg.qg_model.QGModel(
            nx=size, ny=size, precision=pyqg.state.Precision.DOUBLE
        )
        stepper = pyqg.steppers.AB3Stepper(dt=1.0)
        stepped = pyqg.steppers.SteppedModel(model, stepper)
        state = stepped.create_initial_state(jr.key(0))
        # Deformation radii and their time: the flow of Phillips, as theirs is.
        world = dynamics.TwoLayerQG(
            (size, size), (60.0, 60.0), 0.01, winds=(1.0, 0.0), relaxation=0.0,
            sponge_rate=0.0,
        )  # fmt: skip
        start = 0.1 * jr.normal(jr.key(1), (2, size, size))
        times = least(
            {
                "ours": many(world, start, count),
                "peer": many(stepped.step_model, state, count),
            },
            rounds,
        )
        name = f"two layers, {size} x {size} (ours 4 stages, dealiased; theirs 1)"
        rows.append(_row(name, "pyqg-jax", times, count))
    table(["world", "peer", "ours, ms", "peer, ms", "peer over ours"], rows)


def _row(name, peer, times, count):
    each = [1e3 * times[who] / count for who in ("ours", "peer")]
    ratio = times["peer"] / times["ours"]
    return [name, peer, f"{each[0]:.3f}", f"{each[1]:.3f}", f"{ratio:.2f}"]


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description="Time sparse fits beside their peers.")
    parser.add_argument("--parts", default="fits,bootstraps,stream,steps")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    jax.config.update("jax_enable_x64", True)
    versions = [f"Python {platform.python_version()}"]
    for name in ("jax", "numpy", "scikit-learn", "fastrvm", "pysindy", "exponax"):
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    print(", ".join(versions) + ", float64, one thread")
    for part in arguments.parts.split(","):
        if part == "stream":
            stream(arguments.rows)
        else:
            {"fits": fits, "bootstraps": bootstraps, "steps": steps}[part](
                arguments.rounds
            )


if __name__ == "__main__":
    main()
