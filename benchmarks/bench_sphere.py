"""Time the spherical harmonic transform beside its peers, and print Markdown tables.

    pip install -e ".[bench]"
    python benchmarks/bench_sphere.py [--quick] [--json FILE]

Work: a batch of real float32 fields on the Gauss-Legendre grid of `lmax + 1` latitudes
and `2 (lmax + 1)` longitudes (s2fft takes one longitude less), triangular truncation;
forward (field to coefficients), inverse, and the gradient of
`sum(w * inverse(forward(x))**2)` with respect to `x`: a forward, an inverse and both
adjoints. Each peer in the way that serves it best:

- torch-harmonics: float32 buffers, inference mode except for the gradient;
- s2fft: precomputed float32 kernels, `reality=True`, kernels closed over by `jax.jit`
  (as arguments they are cast to complex in each call, several times slower);
- dinosaur: `FastSphericalHarmonics` as the library chooses on a CPU (Fourier transform
  by matrix product), and, as dinosaur-fft, by FFT;
- ducc0: the whole batch in one call; it has no automatic differentiation, so its
  gradient is written out in its own adjoints;
- ours: `jax.jit` with the module as an argument.

Each system runs in a process of its own, which is bound to as many cores as it may have
threads before it imports anything. The systems take turns in short slices, for several
rounds, so that what else the machine does hits all alike; the first call of a slice,
with cold caches, is not counted. A peer that cannot be imported is named and left out.
Binding to cores needs Linux.

`--device gpu` (CUDA builds of JAX and torch) times ours and torch-harmonics, beside the
time that reading a folded triangular float32 table once for each Legendre sum takes at
`--bandwidth` bytes per second. That path has not been run yet.
"""

import argparse
import json
import multiprocessing
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module, metadata
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

DIRECTIONS = ("forward", "inverse", "gradient")


@dataclass(frozen=True)
class System:
    """One transform, ready to run; arrays are of the system's own kind and layout."""

    put: Callable[[np.ndarray], Any]  # NumPy array to its device
    pack: Callable[[np.ndarray], Any]  # complex (batch, l, m) to its coefficients
    forward: Callable[[Any], Any]
    inverse: Callable[[Any], Any]
    gradient: Callable[[Any, Any], Any]  # of field and weight
    table_bytes: int
    wait: Callable[[Any], Any] = lambda result: result
    setup_s: float | None = None  # where it was measured elsewhere


def _jax_system(tables, forward, inverse, pack, table_bytes, **rest) -> System:
    """Jit functions of `(tables, array)`; `tables` is None where they close over it."""
    import jax
    import jax.numpy as jnp

    def loss(field, weight, tables):
        return jnp.sum(weight * inverse(tables, forward(tables, field)) ** 2)

    gradient = jax.jit(jax.grad(loss))
    return System(
        put=jnp.asarray,
        pack=lambda c: jnp.asarray(pack(c)),
        forward=partial(jax.jit(forward), tables),
        inverse=partial(jax.jit(inverse), tables),
        gradient=lambda field, weight: gradient(field, weight, tables),
        table_bytes=table_bytes,
        wait=jax.block_until_ready,
        **rest,
    )


def ours(lmax: int, **_) -> System:
    import jax

    from skyens import sphere

    grid = sphere.gauss_legendre(lmax + 1, 2 * (lmax + 1))
    sht = jax.block_until_ready(sphere.SphericalHarmonics(grid, lmax))
    return _jax_system(
        sht,
        lambda sht, field: sht.analysis(field),
        lambda sht, coefficients: sht.synthesis(coefficients),
        lambda c: c,
        sum(table.nbytes for table in jax.tree.leaves(sht)),
    )


def torch_harmonics(lmax: int, device: str, **_) -> System:
    torch, harmonics = import_module("torch"), import_module("torch_harmonics")
    size, device = lmax + 1, "cuda" if device == "gpu" else "cpu"
    options = {"lmax": size, "mmax": size, "grid": "legendre-gauss"}
    kinds = harmonics.RealSHT, harmonics.InverseRealSHT
    modules = [kind(size, 2 * size, **options).float().to(device) for kind in kinds]
    forward, inverse = modules

    def gradient(field, weight):
        field = field.detach().requires_grad_(True)
        loss = (weight * inverse(forward(field)) ** 2).sum()
        return torch.autograd.grad(loss, field)[0]

    def wait(result):
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    put = lambda array: torch.from_numpy(array).to(device)
    return System(
        put=put,
        pack=put,
        forward=torch.inference_mode()(forward.forward),
        inverse=torch.inference_mode()(inverse.forward),
        gradient=gradient,
        table_bytes=sum(b.nbytes for module in modules for b in module.buffers()),
        wait=wait,
    )


def s2fft(lmax: int, scratch: Path, **_) -> System:
    import jax
    import jax.numpy as jnp

    construct = import_module("s2fft.precompute_transforms.construct")
    spherical = import_module("s2fft.precompute_transforms.spherical")
    size, saved = lmax + 1, scratch / f"s2fft_{lmax}.npz"
    if not saved.exists():  # minutes at large lmax: once for all thread counts
        start = time.perf_counter()
        build = partial(construct.spin_spherical_kernel, size, 0, True, "gl")
        kernels = [build(forward=way).astype(np.float32) for way in (True, False)]
        np.savez(saved, *kernels, seconds=time.perf_counter() - start)
    with np.load(saved) as file:
        kernels = [jnp.asarray(file["arr_0"]), jnp.asarray(file["arr_1"])]
        seconds = float(file["seconds"])
    forward = lambda f: spherical.forward_transform_jax(
        f, kernels[0], size, "gl", True, 0, None
    )
    inverse = lambda c: spherical.inverse_transform_jax(
        c, kernels[1], size, "gl", True, 0, None
    )

    def pack(c):  # both signs of m
        negative = c[..., :0:-1].conj() * (-1.0) ** np.arange(lmax, 0, -1)
        return np.concatenate([negative, c], -1).astype(np.complex64)

    return _jax_system(
        None,
        lambda _, field: jax.vmap(forward)(field),
        lambda _, coefficients: jax.vmap(inverse)(coefficients),
        pack,
        sum(kernel.nbytes for kernel in kernels),
        setup_s=seconds,
    )


def dinosaur(lmax: int, fourier: str | None = None, **_) -> System:
    spherical_harmonic = import_module("dinosaur.spherical_harmonic")
    size = lmax + 1
    sht = spherical_harmonic.FastSphericalHarmonics(
        longitude_wavenumbers=size,
        total_wavenumbers=size,
        longitude_nodes=2 * size,
        latitude_nodes=size,
        fourier_method=fourier,
    )
    tables = [t for t in (sht.basis.f, sht.basis.p) if t is not None]

    def pack(c):  # rows of cosines and sines in turn, (m, l)
        rows = np.stack([c.real, c.imag], -1).transpose(0, 2, 3, 1)
        return (rows.reshape(-1, 2 * size, size) * sht.mask).astype(np.float32)

    return _jax_system(
        None,
        lambda _, field: sht.transform(field),
        lambda _, coefficients: sht.inverse_transform(coefficients),
        pack,
        sum(4 * table.size for table in tables),
    )


def ducc0(lmax: int, threads: int, **_) -> System:
    sht, size = import_module("ducc0").sht, lmax + 1
    nodes, weights = np.polynomial.legendre.leggauss(size)
    rings = {
        "theta": np.arccos(nodes[::-1]),
        "nphi": np.full(size, 2 * size, np.uint64),
        "phi0": np.zeros(size),
        "ringstart": 2 * size * np.arange(size, dtype=np.uint64),
        "spin": 0,
        "lmax": lmax,
        "nthreads": threads,
    }
    area = {"ringfactor": np.pi / size * weights}
    inverse = lambda alm, **factor: sht.synthesis(alm=alm, **rings, **factor)
    adjoint = lambda field, **f: sht.adjoint_synthesis(map=field, **rings, **f)
    forward = partial(adjoint, **area)

    def gradient(field, weight):
        slope = 2 * weight * inverse(forward(field))
        return inverse(adjoint(slope), **area)

    def pack(c):  # order by order, the triangle only
        packed = np.concatenate([c[:, m:, m] for m in range(size)], -1)
        return packed[:, None].astype(np.complex64)

    return System(lambda x: x, pack, forward, inverse, gradient, table_bytes=0)


SYSTEMS: dict[str, tuple[str, Callable[..., System]]] = {  # package and maker
    "ours": ("skyens", ours),
    "torch-harmonics": ("torch-harmonics", torch_harmonics),
    "s2fft": ("s2fft", s2fft),
    "dinosaur": ("dinosaur", dinosaur),
    "dinosaur-fft": ("dinosaur", partial(dinosaur, fourier="fft")),
    "ducc0": ("ducc0", ducc0),
}


class Bench:
    """One system at one size, inside its own process."""

    def __init__(self, name: str, **settings):
        self.make = partial(SYSTEMS[name][1], **settings)
        self.lmax, self.system, self.calls = -1, None, {}

    def prepare(self, lmax: int, batch: int) -> dict[str, float]:
        """Build, make the first calls, and measure the round trip's error."""
        if self.system is None:
            self.make(7)  # imports are no part of the set-up
        if lmax != self.lmax:
            self.system, self.calls = None, {}  # free the old tables first
            start = time.perf_counter()
            self.system, self.lmax = self.make(lmax), lmax
            self.setup_s = self.system.setup_s or time.perf_counter() - start
        system, random, first = self.system, np.random.default_rng(0), {}
        assert system is not None
        draw = lambda *shape: random.standard_normal(shape, np.float32)

        def begin(direction, *arguments):
            call = lambda: system.wait(getattr(system, direction)(*arguments))
            start = time.perf_counter()
            result = call()
            first[f"{direction}_first_s"] = time.perf_counter() - start
            self.calls[direction] = call
            return result

        parts = draw(2, batch, lmax + 1, lmax + 1)
        parts[1, ..., 0] = 0  # order 0 of a real field is real
        coefficients = system.pack(np.tril(parts[0] + 1j * parts[1]))
        smooth = begin("inverse", coefficients)
        back = begin("forward", smooth)
        error = abs(back - coefficients).max() / abs(coefficients).max()
        begin("gradient", *(system.put(draw(*smooth.shape)) for _ in range(2)))
        facts = {"setup_s": self.setup_s, "table_mb": system.table_bytes / 1e6}
        return first | facts | {"error": float(error)}

    def time(self, direction: str, seconds: float) -> list[float]:
        """Return the seconds of each call that fits into a slice of `seconds`."""
        call, times = self.calls[direction], []
        call()
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return times


def _serve(pipe, name: str, settings: dict) -> None:
    """Answer each `(method, *arguments)` of a `Bench`, failures as text."""
    if settings["device"] == "cpu":
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[: settings["threads"]])
    bench = Bench(name, **settings)
    while True:
        method, *arguments = pipe.recv()
        try:
            pipe.send(getattr(bench, method)(*arguments))
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}".splitlines()[0])


class Worker:
    """The process of one system, asked by calls; it answers {} once it has failed."""

    def __init__(self, name: str, **settings):
        threads, gpu = str(settings["threads"]), settings["device"] == "gpu"
        # Read by the libraries when they are imported, in the new process.
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        os.environ["OPENBLAS_NUM_THREADS"] = threads
        os.environ["JAX_PLATFORMS"] = "cuda" if gpu else "cpu"
        alone = "--xla_cpu_multi_thread_eigen=false"
        os.environ["XLA_FLAGS"] = alone if threads == "1" and not gpu else ""
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        spawn = multiprocessing.get_context("spawn")
        self.name, self.failed = name, False
        self.pipe, theirs = spawn.Pipe()
        arguments = theirs, name, settings
        self.process = spawn.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def __call__(self, *request) -> Any:
        """Return the answer to `(method, *arguments)` of `Bench`."""
        if self.failed:
            return {}
        try:
            self.pipe.send(request)
            answer = self.pipe.recv()
        except (EOFError, OSError):
            answer = "the process died"
        if isinstance(answer, str):
            self.failed = True
            print(f"{self.name} is left out from here on: {answer}", flush=True)
            return {}
        return answer


def measure(options, **settings) -> list[dict]:
    """Return one record for each system, lmax, batch and direction."""
    records, workers = [], [Worker(name, **settings) for name in options.systems]
    for lmax, batch in product(options.lmax, options.batch):
        print(f"{settings['threads']} thread(s): {lmax}, {batch}", file=sys.stderr)
        facts = {worker.name: worker("prepare", lmax, batch) for worker in workers}
        for direction in DIRECTIONS:
            times = {worker.name: [] for worker in workers}
            for _, worker in product(range(options.rounds), workers):
                times[worker.name] += worker("time", direction, options.slice)
            for name, seconds in times.items():
                if not seconds:
                    continue
                middle = float(np.median(seconds))
                first = facts[name].pop(f"{direction}_first_s")
                record = {"system": name, "lmax": lmax, "batch": batch}
                record |= {"direction": direction, "threads": settings["threads"]}
                record |= {"least_ms": 1e3 * min(seconds), "median_ms": 1e3 * middle}
                records.append(record | {"compile_s": max(first - middle, 0)})
        for record in records:
            if (record["lmax"], record["batch"]) == (lmax, batch):
                record |= facts[record["system"]]
    for worker in workers:
        worker.process.kill()
    return records


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def speed_table(records: list[dict], statistic: str) -> str:
    """Return milliseconds of ours and the ratios peer / ours, a row for each size."""
    key = lambda r: (r["system"], r["lmax"], r["batch"], r["direction"])
    value = {key(r): r[statistic] for r in records}
    peers = list(dict.fromkeys(r["system"] for r in records if r["system"] != "ours"))
    rows = []
    for size in dict.fromkeys((r["lmax"], r["batch"]) for r in records):
        own = [value["ours", *size, d] for d in DIRECTIONS]
        cells = [f"{size[0]}, {size[1]}", " / ".join(f"{t:.3g}" for t in own)]
        for peer in peers:
            theirs = [value.get((peer, *size, d)) for d in DIRECTIONS]
            ratios = [t and f"{t / o:.1f}" for t, o in zip(theirs, own, strict=True)]
            cells.append(" / ".join(ratio or "-" for ratio in ratios))
        rows.append(cells)
    return _table(["lmax, batch", "ours, ms", *peers], rows)


def cost_table(records: list[dict]) -> str:
    """Return what each system costs before its first result, and its error."""
    groups = {}
    for r in records:
        groups.setdefault((r["lmax"], r["batch"], r["system"]), []).append(r)
    rows = []
    for (lmax, batch, name), group in groups.items():
        compiled = " / ".join(f"{r['compile_s']:.2f}" for r in group)
        setup, table, error = (group[0][f] for f in ("setup_s", "table_mb", "error"))
        numbers = [f"{setup:.2f}", compiled, f"{table:.1f}", f"{error:.1e}"]
        rows.append([f"{lmax}, {batch}", name, *numbers])
    head = ["lmax, batch", "system", "set-up, s", "first call less median, s"]
    return _table([*head, "tables, MB", "round trip"], rows)


def floor_table(lmaxes: list[int], bandwidth: float) -> str:
    """Return the milliseconds that reading folded triangular tables would take."""
    rows = []
    for lmax in lmaxes:
        size = lmax + 1
        once = 1e3 * 4 * size * (size + 1) / 2 * -(-size // 2) / bandwidth
        rows.append([str(lmax), " / ".join(f"{n * once:.3g}" for n in (1, 1, 4))])
    return _table(["lmax", "floor, ms"], rows)


def machine(names: list[str]) -> str:
    """Return the versions of the systems and the processor's name."""
    installed = {d.name.lower(): d.version for d in metadata.distributions()}
    packages = dict.fromkeys([SYSTEMS[name][0] for name in names] + ["jax", "torch"])
    parts = [f"{p} {installed.get(p, '(not installed)')}" for p in packages]
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    where = f"{os.cpu_count()} cores, {models[0] if models else platform.machine()}"
    return f"Python {platform.python_version()}, {', '.join(parts)}; {where}.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add, integers = parser.add_argument, lambda text: [int(n) for n in text.split(",")]
    add("--lmax", type=integers, default=[63, 127, 255, 359])
    add("--batch", type=integers, default=[1, 16])
    add("--threads", type=integers, default=[1, 2])
    add("--systems", type=lambda text: text.split(","), default=list(SYSTEMS))
    add("--rounds", type=int, default=5, help="turns of each system")
    add("--slice", type=float, default=0.25, help="seconds of a turn")
    add("--large", type=int, default=719, help="lmax to build ours at, 0: none")
    add("--quick", action="store_true", help="short: lmax 63 and 127, none large")
    add("--device", choices=["cpu", "gpu"], default="cpu")
    add("--bandwidth", type=float, default=3.35e12, help="of the GPU (H100), B/s")
    add("--json", type=Path, help="also write all records to this file")
    options = parser.parse_args()
    if options.quick:
        options.lmax, options.rounds, options.slice = [63, 127], 3, 0.1
        options.large = 0
    if options.device == "gpu":
        options.systems, options.threads = ["torch-harmonics"], [1]
    options.systems = list(dict.fromkeys(["ours", *options.systems]))

    print(machine(options.systems))
    records = []
    with tempfile.TemporaryDirectory() as folder:
        settings = {"device": options.device, "scratch": Path(folder)}
        for threads in options.threads:
            here = measure(options, threads=threads, **settings)
            records += here
            for statistic in ("least_ms", "median_ms"):
                word = statistic.removesuffix("_ms")
                print(f"### {threads} thread(s), {word} time of a call\n")
                print("Forward / inverse / gradient; above 1, ours is faster.\n")
                print(speed_table(here, statistic))
            print(f"### {threads} thread(s), before the first result\n")
            print(cost_table(here), flush=True)
        if options.device == "gpu":
            print(floor_table(options.lmax, options.bandwidth))
        if options.large:
            worker = Worker("ours", threads=max(options.threads), **settings)
            if facts := worker("prepare", options.large, 1):
                records.append({"system": "ours", "lmax": options.large} | facts)
                print(
                    f"Ours at lmax {options.large}: built in {facts['setup_s']:.1f} s, "
                    f"tables {facts['table_mb']:.0f} MB, round trip error "
                    f"{facts['error']:.1e}.\n"
                )
            worker.process.kill()
    held = {r["system"]: r["table_mb"] for r in records if r["lmax"] == 359}
    if {"ours", "torch-harmonics"} <= held.keys():
        share = held["ours"] / held["torch-harmonics"]
        print(f"Tables of ours at lmax 359: {share:.2f} of torch-harmonics'.")
    if options.json:
        options.json.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
