"""Time a day of the shallow-water equations at T42 beside dinosaur's; print a table.

    pip install -e . dinosaur
    python benchmarks/bench_shallow_water.py [--rounds 10] [--accuracy]

Work: Galewsky's unstable jet (winds to 80 m s-1), triangular truncation at 42 on the
128 x 64 Gaussian grid, float32, hyperdiffusion of 5e15 m4 s-1, for 1 member and, by
`jax.vmap`, for 16. One compiled call steps a day. The systems take turns, round by
round, and the least time of each counts.

- dinosaur: `ShallowWaterEquations` with `imex_rk_sil3`, the stepper of its own
  shallow-water tests and the only one it exercises them with, for either
  implementation of its transform, the faster one counting; and with its semi-implicit
  leapfrog (Robert-Asselin filter 0.05), which has two time levels.
- ours: `ShallowWater` with each of its methods.

Equal are the equations, truncation, grid, precision, diffusion and initial state
(dinosaur cuts winds times the cosine of latitude at 42 too, where they reach 43; after
a day the two differ by 0.2 per cent for that reason). The step is what each row says:
30 minutes is what all can be compared at (and `ours, SIL3` is dinosaur's scheme, so
that this row compares code and nothing else); the longer ones are within the stability
of each. `--accuracy` adds the error of vorticity and height after 5 days against a run
of the same system with steps of 3 minutes, relative to the departure from the mean.
"""

import argparse
import os
import platform
import time
from importlib import metadata
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from skyens import dynamics, sphere

DAY = 86_400.0
DIFFUSION = 5e15
PLANET: dict[str, Any] = {"radius": 6.37122e6, "rotation": 7.292e-5, "gravity": 9.80616}


def ours(method, step):
    """Return the state, and the map over a time (s) of members, of our model."""
    sht = sphere.SphericalHarmonics(sphere.gauss_legendre(64, 128), 42)
    fields = dynamics.galewsky_jet(sht.grid, **PLANET)
    radius = PLANET["radius"]
    state = dynamics.ShallowWaterState.from_fields(sht, *fields, radius=radius)

    def advance(time):
        model = dynamics.ShallowWater(
            sht,
            method=method,
            hyperdiffusion=DIFFUSION,
            time_step=time,
            substeps=round(time / step),
            **PLANET,
        )
        arrays, rest = eqx.partition(model, eqx.is_array)
        run = jax.jit(lambda arrays, s: jax.vmap(eqx.combine(arrays, rest))(s))
        return lambda s: run(arrays, s)

    fields = lambda s: (s.vorticity, s.height)
    return state, advance, fields


def dinosaur(step, implementation, leapfrog=False):
    """Return the same of dinosaur's model."""
    from dinosaur import (  # pyright: ignore[reportMissingImports]
        coordinate_systems,
        layer_coordinates,
        leapfrog_utils,
        shallow_water,
        spherical_harmonic,
        time_integration,
        units,
    )

    kind = getattr(spherical_harmonic, implementation)
    grid = spherical_harmonic.Grid.T42(spherical_harmonics_impl=kind)
    layers = layer_coordinates.LayerCoordinates(1)
    coords = coordinate_systems.CoordinateSystem(grid, layers)
    specs = units.SimUnits.from_si()
    metre, second = (
        specs.nondimensionalize(1 * unit)
        for unit in (units.scales.units.meter, units.scales.units.second)
    )
    gauss = sphere.gauss_legendre(64, 128)  # its rows and columns, too
    u, v, height = (
        jnp.asarray(np.asarray(x).T[None], jnp.float32)
        for x in dynamics.galewsky_jet(gauss, **PLANET)
    )
    mean = float(np.average(height[0].mean(0), weights=gauss.weights))
    u, v = u * (metre / second), v * (metre / second)
    vorticity, divergence = spherical_harmonic.uv_nodal_to_vor_div_modal(grid, u, v)
    per_metre = specs.g * metre
    potential = grid.to_modal((height - mean) * per_metre)
    state = shallow_water.State(vorticity, divergence, potential)
    depth = np.array([mean * per_metre], np.float32)
    equation = shallow_water.ShallowWaterEquations(coords, specs, None, depth)
    top = grid.laplacian_eigenvalues[-1] / PLANET["radius"] ** 2 * specs.radius**2
    tau = second / (DIFFUSION * top**2)
    dt = step * second
    diffuse = time_integration.horizontal_diffusion_step_filter(grid, dt, tau, 2)
    if leapfrog:
        first = time_integration.imex_rk_sil3(equation, dt)
        stepper = leapfrog_utils.semi_implicit_leapfrog(equation, dt, 0.5)
        smooth = leapfrog_utils.robert_asselin_leapfrog_filter(0.05)

        def one(pair):
            later = smooth(pair, stepper(pair))
            return (later[0], diffuse(later[0], later[1]))

        state = (state, jax.jit(first)(state))
    else:
        scheme = time_integration.imex_rk_sil3(equation, dt)
        one = time_integration.step_with_filters(scheme, [diffuse])

    def advance(time):
        steps = round(time / step)
        body = lambda s, _: (one(s), None)
        run = lambda s: jax.lax.scan(body, s, None, length=steps)[0]
        return jax.jit(jax.vmap(run))

    last = lambda s: s[1] if leapfrog else s
    fields = lambda s: (last(s).vorticity, last(s).potential)
    return state, advance, fields


EXPONENTIAL = dynamics.ExponentialRungeKutta()
SEMI_IMPLICIT = dynamics.ImplicitExplicit()
WHITAKER_KAR = dynamics.ImplicitExplicit.whitaker_kar()
REAL, FAST = "RealSphericalHarmonics", "FastSphericalHarmonics"
SYSTEMS = {
    "dinosaur, SIL3": (lambda step: dinosaur(step, REAL), (1800, 3600)),
    "dinosaur, SIL3, fast transform": (lambda step: dinosaur(step, FAST), (1800, 3600)),
    "dinosaur, leapfrog": (lambda step: dinosaur(step, REAL, True), (1200,)),
    "ours, SIL3": (lambda step: ours(WHITAKER_KAR, step), (1800, 3600)),
    "ours, exponential": (lambda step: ours(EXPONENTIAL, step), (1800, 3600)),
    "ours, ARK3": (lambda step: ours(SEMI_IMPLICIT, step), (1800, 3600, 5400)),
}


def main():
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--accuracy", action="store_true")
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    versions = [f"{name} {metadata.version(name)}" for name in ("jax", "dinosaur")]
    print(f"{platform.machine()}, {cores} core(s), {', '.join(versions)}, float32\n")

    runs, errors = {}, {}
    for name, (make, steps) in SYSTEMS.items():
        for step in steps:
            state, advance, _ = make(step)
            day = advance(DAY)
            for members in (1, 16):
                stack = jax.tree.map(lambda x, n=members: jnp.stack([x] * n), state)
                jax.block_until_ready(day(stack))
                runs[name, step, members] = (day, stack)
            if arguments.accuracy:
                errors[name, step] = error(make, step, 5 * DAY)
    least = dict.fromkeys(runs, np.inf)
    for _ in range(arguments.rounds):
        for label, (day, stack) in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(day(stack))
            least[label] = min(least[label], time.perf_counter() - start)

    base = {
        n: min(
            t for (s, dt, m), t in least.items() if _peer(s) and (dt, m) == (1800, n)
        )
        for n in (1, 16)
    }
    print(
        "| system | step (min) | ms per member-day, 1 / 16 members | times faster "
        "than dinosaur at 30 min | error of vorticity / height |"
    )
    print("|---|---|---|---|---|")
    for name, (_, steps) in SYSTEMS.items():
        for step in steps:
            one, many = least[name, step, 1], least[name, step, 16]
            times = f"{1e3 * one:.1f} / {1e3 * many / 16:.1f}"
            ratio = f"{base[1] / one:.2f} / {base[16] / many:.2f}"
            wrong = errors.get((name, step), "")
            print(f"| {name} | {step / 60:.0f} | {times} | {ratio} | {wrong} |")


def _peer(name: str) -> bool:
    return name.startswith("dinosaur, SIL3")


def error(make, step: float, duration: float) -> str:
    """The relative departure from a run with steps of 3 minutes."""
    results = []
    for delta in (step, 180.0):
        state, advance, fields = make(delta)
        batch = jax.tree.map(lambda x: x[None], state)
        whole = round(duration / step) * step
        results.append([np.asarray(f) for f in fields(advance(whole)(batch))])
    parts = []
    for value, truth in zip(*results, strict=True):
        truth, value = np.array(truth), np.array(value)
        truth[..., 0, 0] = value[..., 0, 0] = 0
        wrong = np.linalg.norm(value - truth) / np.linalg.norm(truth)
        parts.append(f"{wrong:.1e}")
    return " / ".join(parts)


if __name__ == "__main__":
    main()
