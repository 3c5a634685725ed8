"""Time ensemble scores beside their peers, and print a Markdown table.

    pip install -e ".[bench]"
    python benchmarks/bench_scores.py [--cases A,B] [--rounds 7] [--threads 1,2]
    python benchmarks/bench_scores.py --device gpu     (ours and scoringrules on torch)

Work, in float32, of standard normal members and truths:

- A: fair CRPS of 50 members at 721 x 1440 points, the value at each point;
- B: the same of 1,000 members at 181 x 360 points;
- C: mean fair CRPS of 16 members at 16 x 181 x 360 points, and its gradient;
- D: mean fair energy score of 50 members of 16 numbers at 20,000 points, and its
  gradient; E: the same of 16 members of 64 numbers.

Each peer gets its arrays in the layout that it asks for, made beforehand, and its
fastest estimator. Where it offers the standard score only, that is timed: it costs no
less than the fair one. scoringrules has no fair energy score.

Each system runs in a process of its own, bound to as many cores as it may have threads
before it imports anything. All systems of a case take turns, call by call, and the
least time of each counts. The first call is with its compilation. Memory is the peak of
that call above what the process held before it, data included: compiler, result and
all in between. Binding to cores and memory need Linux.
"""

import argparse
import multiprocessing
import os
import platform
import sys
import time
from importlib import import_module, metadata
from typing import Any

import numpy as np

CASES: dict[str, dict[str, Any]] = {
    "A": {"members": 50, "points": 721 * 1440},
    "B": {"members": 1000, "points": 181 * 360},
    "C": {"members": 16, "points": 16 * 181 * 360, "gradient": True},
    "D": {"members": 50, "points": 20_000, "event": 16, "gradient": True},
    "E": {"members": 16, "points": 20_000, "event": 64, "gradient": True},
}
LIMIT_S = 90  # a system whose first call takes longer is left out, and named


def arrays(case: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the members, which lead, and the truth."""
    rng = np.random.default_rng(0)
    size, points = CASES[case]["members"], CASES[case]["points"]
    shape = (points, *((CASES[case]["event"],) if "event" in CASES[case] else ()))
    ensemble = rng.standard_normal((size, *shape), dtype=np.float32)
    return ensemble, rng.standard_normal(shape, dtype=np.float32)


def members_last(case: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the arrays with members behind the points, before an event's numbers."""
    ensemble, truth = arrays(case)
    return np.ascontiguousarray(np.moveaxis(ensemble, 0, 1)), truth


def ours(case: str):
    import jax
    import jax.numpy as jnp

    from skyens import scores

    score = scores.energy_score if "event" in CASES[case] else scores.crps
    mean = lambda ensemble, truth: jnp.mean(score(ensemble, truth))
    run = jax.value_and_grad(mean) if "gradient" in CASES[case] else score
    run, data = jax.jit(run), [jnp.asarray(x) for x in arrays(case)]
    return lambda: jax.block_until_ready(run(*data))


def scoringrules_jax(case: str, **options):
    import jax
    import jax.numpy as jnp

    score = _scoringrules(case, "jax", options)
    mean = lambda ensemble, truth: jnp.mean(score(truth, ensemble))
    value = lambda ensemble, truth: score(truth, ensemble)
    run = jax.value_and_grad(mean) if "gradient" in CASES[case] else value
    run, data = jax.jit(run), [jnp.asarray(x) for x in members_last(case)]
    return lambda: jax.block_until_ready(run(*data))


def scoringrules_torch(case: str, **options):
    torch = import_module("torch")
    score = _scoringrules(case, "torch", options)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ensemble, truth = (torch.from_numpy(x).to(device) for x in members_last(case))

    def run():
        if "gradient" not in CASES[case]:
            result = score(truth, ensemble)
        else:
            members = ensemble.detach().requires_grad_(True)
            mean = score(truth, members).mean()
            result = torch.autograd.grad(mean, members)[0]
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    return run


def scoringrules_numba(case: str, **options):
    score = _scoringrules(case, "numba", options)
    ensemble, truth = members_last(case)
    return lambda: score(truth, ensemble)


def _scoringrules(case, backend, options):
    rules = import_module("scoringrules")
    score = rules.es_ensemble if "event" in CASES[case] else rules.crps_ensemble
    return lambda truth, ensemble: score(truth, ensemble, backend=backend, **options)


def properscoring(case: str):
    module = import_module("properscoring")
    ensemble, truth = members_last(case)
    return lambda: module.crps_ensemble(truth, ensemble)


def xskillscore(case: str):
    module = import_module("xskillscore")
    ensemble, truth = _labelled(case)
    return lambda: module.crps_ensemble(truth, ensemble, dim=[]).values


def scores_package(case: str):
    module = import_module("scores.probability")
    ensemble, truth = _labelled(case)
    return lambda: (
        module.crps_for_ensemble(
            ensemble, truth, "member", method="fair", preserve_dims="all"
        ).values
    )


def _labelled(case):
    import xarray

    ensemble, truth = arrays(case)
    dimensions = ("member", "point")
    return xarray.DataArray(ensemble, dims=dimensions), xarray.DataArray(
        truth, dims=("point",)
    )


SYSTEMS: dict[str, tuple[Any, dict[str, str], str]] = {
    "ours": (ours, {}, "ABCDE"),
    "scoringrules numba, pwm": (scoringrules_numba, {"estimator": "pwm"}, "AB"),
    "scoringrules numba, qd": (scoringrules_numba, {"estimator": "qd"}, "AB"),
    "scoringrules jax, pwm": (scoringrules_jax, {"estimator": "pwm"}, "ABC"),
    "scoringrules jax, fair": (scoringrules_jax, {"estimator": "fair"}, "C"),
    "scoringrules torch, pwm": (scoringrules_torch, {"estimator": "pwm"}, "ABC"),
    "scoringrules torch, fair": (scoringrules_torch, {"estimator": "fair"}, "C"),
    "scoringrules jax": (scoringrules_jax, {}, "DE"),
    "scoringrules torch": (scoringrules_torch, {}, "DE"),
    "properscoring": (properscoring, {}, "AB"),
    "xskillscore": (xskillscore, {}, "AB"),
    "scores, fair": (scores_package, {}, "AB"),
}


def serve(connection, system: str, case: str, threads: int, device: str) -> None:
    """Run one system: prepare, call once, then a call each time it is asked."""
    if device == "cpu":
        # In a container not every number below the count need be ours.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        os.environ |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    for name in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
        os.environ[f"{name}_NUM_THREADS"] = str(threads)
    make, options, _ = SYSTEMS[system]
    try:
        call = make(case, **options)
        _forget_peak()
        held = _memory_mb("VmRSS")
        start = time.perf_counter()
        call()
        first = time.perf_counter() - start
        connection.send({"first": first, "memory": _memory_mb("VmHWM") - held})
        while connection.recv():
            start = time.perf_counter()
            call()
            connection.send(time.perf_counter() - start)
    except (Exception, MemoryError) as error:
        connection.send(f"{type(error).__name__}: {str(error)[:80]}")


def _forget_peak() -> None:
    """Let the peak of resident memory begin anew, after the data were made."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _memory_mb(name: str) -> float:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(name))
    return int(line.split()[1]) / 1024


def measure(case: str, threads: int, rounds: int, device: str) -> dict[str, Any]:
    """Return what each system of `case` needed, or why it has no result."""
    context = multiprocessing.get_context("spawn")
    results: dict[str, Any] = {}
    running = {}
    for system, (make, _, cases) in SYSTEMS.items():
        if case not in cases:
            continue
        if device == "gpu" and make not in (ours, scoringrules_torch):
            continue
        here, there = context.Pipe()
        arguments = (there, system, case, threads, device)
        process = context.Process(target=serve, args=arguments, daemon=True)
        process.start()
        there.close()
        try:
            answer = here.recv() if here.poll(LIMIT_S) else f"over {LIMIT_S} s"
        except EOFError:
            answer = "out of memory"
        if isinstance(answer, str):
            process.kill()
            results[system] = answer
        else:
            results[system] = answer | {"seconds": float("inf")}
            running[system] = process, here
        print(f"  {case}, {threads} threads, {system}: {answer}", file=sys.stderr)
    for _ in range(rounds):
        for system, (_, pipe) in running.items():
            pipe.send(True)
            seconds = pipe.recv()
            results[system]["seconds"] = min(results[system]["seconds"], seconds)
    for process, pipe in running.values():
        pipe.send(False)
        process.join(10)
        process.kill()
    return results


def table(case: str, threads: int, results: dict[str, Any]) -> str:
    """Return the results of one case in Markdown, times relative to ours."""
    base = results["ours"]["seconds"]
    lines = [
        f"### {case}: {CASES[case]}, {threads} thread{'s' * (threads > 1)}",
        "",
        "| system | time (s) | times ours | first call (s) | memory (MB) |",
        "|---|---|---|---|---|",
    ]
    for system, result in results.items():
        if isinstance(result, str):
            lines.append(f"| {system} | {result} | | | |")
            continue
        seconds = result["seconds"]
        lines.append(
            f"| {system} | {seconds:.3f} | {seconds / base:.1f} "
            f"| {result['first']:.1f} | {result['memory']:.0f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    options = parser.parse_args()
    packages = ("jax", "scoringrules", "torch", "numba", "properscoring")
    for name in (*packages, "xskillscore", "scores"):
        try:
            print(f"{name} {metadata.version(name)}", end=", ")
        except metadata.PackageNotFoundError:
            print(f"{name} not installed", end=", ")
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores\n")
    for case in options.cases.split(","):
        for threads in map(int, options.threads.split(",")):
            results = measure(case, threads, options.rounds, options.device)
            print(table(case, threads, results), flush=True)


if __name__ == "__main__":
    main()
