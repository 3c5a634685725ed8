"""A two-layer flow known at a quarter of its points: whose Laplacian is right?

    python benchmarks/accuracy_interpolation.py [steps]

The streamfunction of `dynamics.TwoLayerQG`, storms on a strong jet in a channel of 40
by 24 deformation radii with 96 by 64 points, is known at a random quarter of these.
Each row is an interpolator: the errors of its streamfunction and Laplacian over all
points and both layers, relative to their standard deviation. Wavenumbers, lengths and
nuggets are chosen by a tenth of the known points, held out. Features without layers
are fitted, networks with layers trained by Adam for `steps` (4,000 unless told) of a
fading rate, in float32. The linear interpolators then look for what a model of this
flow lacks, in 10 pairs of states of which a quarter of the points is known: the terms
at the elbow, and the largest error of a coefficient.
"""

import itertools
import sys
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import scipy.linalg

from skyens.dynamics import TwoLayerQG, rollout
from skyens.nn import RandomFourierFeatures
from skyens.sparse import (
    Library,
    Simpson,
    Term,
    backward_path,
    compress,
    elbow,
    model_error_pairs,
)
from skyens.training import trainable

jax.config.update("jax_enable_x64", True)

SHAPE, LENGTHS, DT, PAIRS = (96, 64), (40.0, 24.0), 0.2, 10
NATURE: dict[str, Any] = {"relaxation": 0.11, "drag": 0.07, "hyperviscosity": 1e-3}
OFF = ("jacobian", "beta", "relaxation", "drag", "hyperviscosity", "sponge_rate")
RIDGES = (1e-10, 1e-7, 1e-4)
STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 4000


def world(dt=DT, **settings: Any):
    return TwoLayerQG(SHAPE, LENGTHS, dt, **NATURE | settings)


def alone(name, **settings: Any):
    """A candidate term: a world in which nothing else happens."""
    return Term(name, world(**dict.fromkeys(OFF, 0.0) | settings).tendency)


LIBRARY = Library(
    [
        alone("advection", jacobian=1.0),
        alone("beta", beta=1.0),
        alone("relaxation", relaxation=1.0),
        alone("drag", drag=1.0),
        alone("viscosity", hyperviscosity=1.0, order=1),
        Term("itself", lambda q: q),
        Term("flow", world().streamfunction),
    ]
)
ERRORS = {
    "rates": (
        {"relaxation": 0.01, "drag": 0.37},
        {"relaxation": 0.1, "drag": -0.3},
    ),
    "advection": ({"jacobian": 0.5}, {"advection": 0.5}),
    "beta": ({"beta": 0.0}, {"beta": 0.196}),
}
POINTS = np.stack(np.meshgrid(world().y, world().x, indexing="ij"), -1).reshape(-1, 2)


def states():
    noise = np.random.default_rng(0).normal(size=(2, *SHAPE))
    start = world().potential_vorticity(jnp.asarray(0.1 * noise))
    return eqx.filter_jit(rollout)(world(), start, 1000 + 50 * PAIRS)[1049::50]


def table(fields):
    """Fields `(..., y, x)`, points first."""
    return np.asarray(fields).reshape(-1, len(POINTS)).T


def pull(psi):
    """What stretching takes from the vorticity: potential vorticity is the rest."""
    shear = psi[:, :1] - psi[:, 1:]
    return shear * jnp.array([1.0, -1.0])[None, :, None, None]


class Waves:
    """Sines and cosines, of a common spread (least squares) or a covariance's."""

    def __init__(self, longest, power=np.ones_like):
        side = np.arange(-60, 61)
        pairs = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
        half = (pairs[:, 0] > 0) | ((pairs[:, 0] == 0) & (pairs[:, 1] > 0))
        wavenumbers = pairs[half] * (2 * np.pi / np.asarray(LENGTHS))
        near = np.sum(wavenumbers**2, axis=1) <= longest**2
        self.wavenumbers = wavenumbers[near]
        self.squares = np.tile(np.sum(self.wavenumbers**2, axis=1), 2)
        self.spread = np.sqrt(power(self.squares))

    def fit(self, points, values, ridge):
        """Return a function of points: values and Laplacians there."""

        def design(points):
            phase = points @ self.wavenumbers.T
            return np.concatenate([np.cos(phase), np.sin(phase)], axis=1) * self.spread

        known, level = design(points), values.mean(0)
        middle = known.mean(0)
        known, above = known - middle, values - level
        # The smaller of both normal matrices; both have the same solution.
        dual = len(known) < known.shape[1]
        gram = known @ known.T if dual else known.T @ known
        gram = gram + ridge * np.sum(known**2) / len(known) * np.eye(len(gram))
        solve = lambda right: scipy.linalg.solve(gram, right, assume_a="pos")
        head = known.T @ solve(above) if dual else solve(known.T @ above)

        def at(points):
            there = design(points)
            return (there - middle) @ head + level, -(there * self.squares) @ head

        return at


class Features:
    """Random Fourier features, fitted."""

    def __init__(self, scale):
        self.scale = scale

    def fit(self, points, values, ridge):
        """Return a function of points: values and Laplacians there."""
        net = RandomFourierFeatures(
            2,
            values.shape[1],
            scale=self.scale,
            periods=LENGTHS,
            width=8192,
            depth=0,
            key=jr.key(0),
        )
        known = jnp.asarray(points), jnp.asarray(values)
        net = fitted(net, *known, jnp.asarray(ridge))
        return lambda points: look(net, jnp.asarray(points))


@eqx.filter_jit
def fitted(net, points, values, ridge):
    return net.fitted(points, values, ridge=ridge)


@eqx.filter_jit
def look(net, points):
    """Return values and Laplacians of a network."""

    def second(point, axis):
        slope = lambda point: jax.jvp(net, (point,), (axis,))[1]
        return jax.jvp(slope, (point,), (axis,))[1]

    def one(point):
        axes = jnp.eye(2, dtype=point.dtype)
        return net(point), second(point, axes[0]) + second(point, axes[1])

    return jax.lax.map(one, points, batch_size=256)


class Plain(eqx.Module):
    """A network of coordinates, brought to [-1, 1]."""

    net: eqx.nn.MLP

    def __call__(self, point):
        """Return the values at a point."""
        return self.net(2 * point / jnp.asarray(LENGTHS, point.dtype) - 1)


@eqx.filter_jit
def trained(net, points, values):
    parameters, rest = eqx.partition(net, trainable(net))
    optimiser = optax.amsgrad(optax.cosine_decay_schedule(2e-3, STEPS))

    def loss(parameters):
        out = jax.vmap(eqx.combine(parameters, rest))(points)
        return jnp.mean((out - values) ** 2)

    def step(carry, _):
        parameters, memory = carry
        update, memory = optimiser.update(jax.grad(loss)(parameters), memory)
        return (optax.apply_updates(parameters, update), memory), None

    carry = parameters, optimiser.init(parameters)
    return eqx.combine(jax.lax.scan(step, carry, length=STEPS)[0][0], rest)


class Trained:
    """A network, trained on normalised values in float32."""

    def __init__(self, net):
        self.net = jax.tree.map(
            lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, net
        )

    def fit(self, points, values, ridge):
        """Return a function of points: values and Laplacians there."""
        level, scale = values.mean(0), values.std(0)
        single = lambda x: jnp.asarray(x, jnp.float32)
        net = trained(self.net, single(points), single((values - level) / scale))

        def at(points):
            there, curved = look(net, single(points))
            return np.asarray(there) * scale + level, np.asarray(curved) * scale

        return at


def matern(smoothness, length):
    return lambda squares: (1 + squares * length**2) ** -(smoothness + 1.0)


layered: dict[str, Any] = dict(periods=LENGTHS, width=256, depth=2, key=jr.key(1))
METHODS: dict[str, list[Any]] = {
    "kriging": [Waves(4.5, matern(n, l)) for n in (2.5, 4.5) for l in (1.0, 2.0)],
    "spectral least squares": [Waves(k) for k in (2.0, 2.5, 3.0, 3.5)],
    "random features, fitted": [Features(s) for s in (0.8, 1.1, 1.4)],
    "random features, trained": [
        Trained(RandomFourierFeatures(2, 2, scale=s, **layered))
        for s in (0.2, 0.4, 0.8)
    ],
    "plain network, trained": [
        Trained(Plain(eqx.nn.MLP(2, 2, 64, 4, jnp.tanh, key=jr.key(2))))
    ],
}


def relative(found, true):
    return np.sqrt(np.mean((found - true) ** 2) / np.mean((true - true.mean(0)) ** 2))


def chosen(name, points, values):
    """Return the setting and nugget that tell held-out points best."""
    known, held = np.split(np.arange(len(points)), [9 * len(points) // 10])
    ridges = RIDGES if "trained" not in name else RIDGES[:1]

    def wrong(choice: Any):
        kind, ridge = choice
        at = kind.fit(points[known], values[known], ridge)
        return relative(at(points[held])[0], values[held])

    return min(itertools.product(METHODS[name], ridges), key=wrong)


def found(before, after, settings):
    step, half = world(**settings), world(DT / 2, **settings)
    pairs = model_error_pairs(
        step, before, after, LIBRARY, dt=DT, quadrature=Simpson(half)
    )
    bend = elbow(backward_path(compress(pairs.matrix, pairs.values)))
    return dict(zip(LIBRARY.names, bend.mean.tolist(), strict=True))


def main():
    rng = np.random.default_rng(1)
    before = states()
    short = world(DT / 8)
    after = eqx.filter_jit(jax.vmap(lambda q: rollout(short, q, 8)[-1]))(before)
    flow = jax.vmap(world().streamfunction)
    both = jnp.concatenate([before, after])
    psi = flow(both)
    true, curved = table(psi), table(both + pull(psi))
    ids = rng.choice(len(POINTS), len(POINTS) // 4, replace=False)
    for noise in (0.0, 1e-3):
        values = true[ids] + noise * true.std(0) * rng.normal(size=true[ids].shape)
        print(f"noise {noise}: errors of streamfunction and Laplacian")
        for name in METHODS:
            started = time.perf_counter()
            kind, ridge = chosen(name, POINTS[ids], values[:, :2])
            linear = "trained" not in name
            known = values if linear else values[:, :2]
            at = kind.fit(POINTS[ids], known, ridge)
            there, bent = (np.asarray(x) for x in at(POINTS))
            errors = (
                relative(there[:, :2], true[:, :2]),
                relative(bent[:, :2], curved[:, :2]),
            )
            told = ""
            if linear:
                field = lambda x: jnp.asarray(x.T.reshape(2 * PAIRS, 2, *SHAPE))
                q = field(bent) - pull(field(there))
                for case, (settings, lacks) in ERRORS.items():
                    got = found(q[:PAIRS], q[PAIRS:], settings)
                    names = {n for n, value in got.items() if value}
                    off = max(abs(got[n] - v) / abs(v) for n, v in lacks.items())
                    mark = "" if names == set(lacks) else f" {sorted(names)}"
                    told += f"  {case} {off:.3f}{mark}"
            seconds = time.perf_counter() - started
            print(
                f"{name:26}{errors[0]:9.5f}{errors[1]:9.5f}{told}  ({seconds:.0f} s)",
                flush=True,
            )


if __name__ == "__main__":
    main()
