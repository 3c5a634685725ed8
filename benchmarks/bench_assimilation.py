"""Time filters beside their peers, and print Markdown tables.

    pip install -e ".[bench]"
    python benchmarks/bench_assimilation.py [--parts cycles,batch,globe,errors]
                                            [--rounds 3] [--seeds 10]

- cycles: twin experiments with the model of Lorenz (1996), float64, one thread: the
  setting of Sakov & Oke (2008), 40 variables. DAPPER runs as it is by default, with all
  its statistics, and with errors only; ours and cuthbert's return mean and spread.
- batch: what 64 experiments cost by `vmap`, against 64 runs.
- globe: one LETKF analysis on 90 x 180 points, 10 levels of 5 variables, float32, with
  members, observations and points halved and doubled one at a time.
- errors: all rows of `assimilation_rows.py`.

Times are CPU seconds of this process, the least of several rounds in turn. Threads are
one each, set before anything is imported, and the process stays on one core: XLA would
otherwise wake its pool of threads for arrays of a thousand numbers.
"""

import os

THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
os.environ.update(THREADS)
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
os.environ.setdefault("MPLBACKEND", "agg")
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import argparse
import platform
import time
import warnings
from importlib import import_module, metadata
from typing import Any

import assimilation_rows
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from skyens import assimilation as da, observations, sphere

BURN_IN = 400


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
        print("| " + " | ".join(map(str, row)) + " |")


# --- cycles ---------------------------------------------------------------------------


def ours(method, members: int, world: da.Twin):
    """Return a compiled run, which gives mean and spread of each analysis."""
    ensemble = world.state0[None] + jr.normal(jr.key(1), (members, 40))
    summary = lambda x: (jnp.mean(x, axis=0), jnp.std(x, axis=0, ddof=1))

    @jax.jit
    def run(ensemble, data):
        result = da.cycle(
            assimilation_rows.LORENZ96.step,
            method,
            ensemble,
            world.observe,
            data,
            key=jr.key(2),
            reduce=summary,
        )
        return result.analyses

    return lambda: np.asarray(jax.block_until_ready(run(ensemble, world.data))[0])


def dapper(method, world: da.Twin, *, errors_only: bool):
    """Return a run of a DAPPER method."""
    package = import_module("dapper")
    progress: Any = import_module("dapper.tools.progressbar")
    progress.disable_progbar = True
    model = import_module("dapper.mods.Lorenz96.sakov2008").HMM.copy()
    model.tseq.Ko = len(world.data) - 1
    truth = np.concatenate([np.asarray(world.state0)[None], np.asarray(world.truth)])
    seen = np.empty(len(world.data), dtype=object)
    for number, value in enumerate(np.asarray(world.data)):
        seen[number] = value

    def run():
        package.rc.comps["error_only"] = errors_only
        import_module("dapper.tools.seeding").set_seed(3)
        experiment = method()
        experiment.assimilate(model, truth, seen, liveplots=False)
        return np.asarray(experiment.stats.err.rms.a)

    return run


def cuthbert(members: int, inflation: float, world: da.Twin):
    """Return a run of cuthbert's stochastic filter."""
    package = import_module("cuthbert")
    filters = import_module("cuthbert.ensemble_kalman.ensemble_kalman_filter")
    step = assimilation_rows.LORENZ96.step
    method = filters.build_filter(
        init_sample=lambda key: world.state0 + jr.normal(key, (40,)),
        get_dynamics=lambda _: lambda x, key: step(x),
        get_observations=lambda data: (lambda x: x, jnp.eye(40), data),
        n_particles=members,
        inflation=inflation - 1,
        perturbed_obs=True,
    )

    @jax.jit
    def run(data):
        state = method.init_prepare(key=jr.key(4))
        ensemble = package.filter(method, data, state, key=jr.key(5)).ensemble[1:]
        return jnp.mean(ensemble, axis=1), jnp.std(ensemble, axis=1, ddof=1)

    return lambda: np.asarray(jax.block_until_ready(run(world.data))[0])


def cycles(rounds: int) -> None:
    """Compare cycles with the peers'."""
    setting = assimilation_rows.LORENZ96
    world = setting.world(jr.key(0))
    peer = import_module("dapper.da_methods")
    local = assimilation_rows.letkf(40, 1.04, 4 * 1.82)(setting, world)
    serial = assimilation_rows.serial(40, 1.07, 6 * 1.82)(setting, world)
    pairs = {
        "ETKF, 24": (
            da.ETKF(1.013, rotate=True),
            24,
            lambda: peer.EnKF("Sqrt", N=24, infl=1.013, rot=True),
        ),
        "ETKF unrotated, 24": (
            da.ETKF(1.013),
            24,
            lambda: peer.EnKF("Sqrt", N=24, infl=1.013, rot=False),
        ),
        "EnKF, 40": (da.EnKF(1.06), 40, lambda: peer.EnKF("PertObs", N=40, infl=1.06)),
        "LETKF, 7": (local, 7, lambda: peer.LETKF(N=7, infl=1.04, rot=True, loc_rad=4)),
        "local EnSRF, 7": (
            serial,
            7,
            lambda: peer.SL_EAKF(N=7, infl=1.07, rot=True, loc_rad=6),
        ),
        "EnKF-N, 24": (
            da.EnKFN(1.0, rotate=True),
            24,
            lambda: peer.EnKF_N(N=24, rot=True),
        ),
    }
    rows = []
    truth = np.asarray(world.truth)
    for name, (method, members, theirs) in pairs.items():
        runs = {
            "ours": ours(method, members, world),
            "DAPPER": dapper(theirs, world, errors_only=False),
            "DAPPER, errors only": dapper(theirs, world, errors_only=True),
        }
        if name == "EnKF, 40":
            runs["cuthbert"] = cuthbert(40, 1.06, world)
        error, least = {}, {}
        for system, run in runs.items():
            found = run()  # compiles, too
            if found.ndim == 2:
                found = np.sqrt(np.mean((found - truth) ** 2, axis=-1))
            error[system] = float(np.mean(found[BURN_IN:]))
            least[system] = min(cpu_seconds(run) for _ in range(rounds))
        for system in runs:
            milliseconds = 1e3 * least[system] / setting.times
            ratio = least[system] / least["ours"]
            rows.append(
                [
                    name,
                    system,
                    f"{milliseconds:.3f}",
                    f"{ratio:.1f}",
                    f"{error[system]:.3f}",
                ]
            )
    table(["method", "system", "ms a cycle", "times ours", "RMSE"], rows)


def batch(rounds: int) -> None:
    """Compare 64 experiments in one program with 64 runs."""
    setting, size = assimilation_rows.lorenz96(times=200, burn_in=0), 64
    keys = jax.vmap(jr.key)(jnp.arange(size))
    rows = []
    for name, method, members in (
        ("ETKF, 24", da.ETKF(1.013, rotate=True), 24),
        ("LETKF, 7", assimilation_rows.letkf(40, 1.04, 7.28)(setting, None), 7),
    ):
        row = assimilation_rows.Row(
            setting, name, members, assimilation_rows.constant(method), None, 1.0
        )
        one, many = jax.jit(row.rmse), jax.jit(jax.vmap(row.rmse))
        alone = lambda one=one: [jax.block_until_ready(one(key)) for key in keys]
        together = lambda many=many: jax.block_until_ready(many(keys))
        alone()
        together()
        apart = min(cpu_seconds(alone) for _ in range(rounds))
        joined = min(cpu_seconds(together) for _ in range(rounds))
        rows.append([name, f"{apart:.2f}", f"{joined:.2f}", f"{apart / joined:.2f}"])
    table(["method", "64 runs, s", "vmap, s", "ratio"], rows)


# --- globe ----------------------------------------------------------------------------


def globe(rounds: int) -> None:
    """Time one analysis of the globe, and how it grows."""
    usual = {"latitudes": 90, "members": 40, "stations": 10_000}
    cases = [usual]
    for name, changed in (
        ("stations", (5_000, 20_000)),
        ("members", (20, 80)),
        ("latitudes", (64, 128)),
    ):
        cases += [{**usual, name: value} for value in changed]
    rows = []
    for case in cases:
        seconds, compile_s, temporary, width = analysis(rounds, **case)
        points = 2 * case["latitudes"] ** 2
        rows.append(
            [
                points,
                case["members"],
                case["stations"],
                width,
                f"{seconds:.2f}",
                f"{temporary / 1e6:.0f}",
                f"{compile_s:.1f}",
            ]
        )
    heads = ["points", "members", "observations", "neighbours at most"]
    table([*heads, "CPU s", "temporary MB", "compile s"], rows)


def analysis(rounds: int, latitudes: int, members: int, stations: int):
    """Return the time of one analysis, of its compilation, its bytes and its table."""
    rng = np.random.default_rng(0)
    grid = sphere.cell_centred(latitudes, 2 * latitudes)
    latitude = np.rad2deg(np.arcsin(rng.uniform(-1, 1, stations)))
    place = observations.Interpolate(
        grid,
        jnp.asarray(latitude, jnp.float32),
        jnp.asarray(rng.uniform(0, 360, stations), jnp.float32),
    )
    shape = (members, 5, 10, *grid.shape)
    background = jnp.asarray(rng.standard_normal(shape, dtype=np.float32))
    value = jnp.asarray(rng.standard_normal(stations, dtype=np.float32))
    operator = observations.Chain(lambda state: state[0, 5], place)
    observation = observations.Observation(
        value, operator, observations.Diagonal(1.0), coordinates=place.coordinates
    )
    local = da.Localisation(grid, observation.coordinates, length=5e5)
    method = da.LETKF(local, 1.02)
    run = jax.jit(lambda method, x, y: method(x, y)[0])
    before = time.perf_counter()
    compiled = run.lower(method, background, observation).compile()
    compile_s = time.perf_counter() - before
    call = lambda: jax.block_until_ready(compiled(method, background, observation))
    call()
    seconds = min(cpu_seconds(call) for _ in range(rounds))
    memory: Any = compiled.memory_analysis()
    temporary = memory.temp_size_in_bytes
    return seconds, compile_s, temporary, local.index.shape[-1]


# --- errors ---------------------------------------------------------------------------


def published(seeds: int) -> None:
    """Print the errors of all rows."""
    rows = []
    for row in assimilation_rows.rows():
        found = assimilation_rows.errors(row, seeds)
        figures = [x if x is None else f"{x:g}" for x in (row.documented, row.measured)]
        rows.append(
            [
                row.setting.name,
                row.label,
                row.members,
                *(figure or "-" for figure in figures),
                f"{np.median(found):.3f}",
                f"{found.min():.3f}-{found.max():.3f}",
                "yes" if np.median(found) <= row.limit else "**no**",
            ]
        )
        print(".", end="", flush=True)
    heads = ["setting", "method", "members", "documented", "DAPPER", "median", "range"]
    table([*heads, "within"], rows)


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description="Time filters beside their peers.")
    parser.add_argument("--parts", default="cycles,batch,globe,errors")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    versions = [f"Python {platform.python_version()}"]
    for name in ("jax", "numpy", "dapper", "cuthbert"):
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    print(", ".join(versions) + ", one thread each")
    for part in arguments.parts.split(","):
        # The globe is of 32 bits, the rest of 64.
        jax.config.update("jax_enable_x64", part != "globe")
        if part == "errors":
            published(arguments.seeds)
        else:
            {"cycles": cycles, "batch": batch, "globe": globe}[part](arguments.rounds)


if __name__ == "__main__":
    main()
