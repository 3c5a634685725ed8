from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.dynamics import TwoLayerQG, rollout
from skyens.nn import RandomFourierFeatures
from skyens.sparse import (
    Library,
    SpectralDerivative,
    Term,
    Trapezoid,
    backward_path,
    compress,
    elbow,
    model_error_pairs,
)

SHAPE, LENGTHS, DT, STATES = (96, 64), (40.0, 24.0), 0.2, 8
NATURE: dict[str, Any] = {"relaxation": 0.11, "drag": 0.07}


def world(**terms: Any):
    return TwoLayerQG(SHAPE, LENGTHS, DT, hyperviscosity=1e-3, **NATURE | terms)


EARTH = world()
NORTH, EAST = (
    SpectralDerivative(length, axis=axis)
    for axis, length in zip((-2, -1), LENGTHS, strict=True)
)


def laplacian(field):
    return NORTH(field, 2) + EAST(field, 2)


def relax(psi, q):
    pull = psi[0] - psi[1] - EARTH.equilibrium()
    return jnp.stack([pull, -pull])


def term(name, tendency):
    return Term(name, lambda q: tendency(EARTH.streamfunction(q), q))


LIBRARY = Library(
    [
        term("advection", lambda p, q: NORTH(p) * EAST(q) - EAST(p) * NORTH(q)),
        term("beta", lambda p, q: -EAST(p)),
        term("relaxation", relax),
        term("drag", lambda p, q: jnp.stack([0 * p[0], -laplacian(p[1])])),
        term("lap psi", lambda p, q: laplacian(p)),
        term("lap q", lambda p, q: laplacian(q)),
        term("q", lambda p, q: q),
        term("psi", lambda p, q: p),
    ]
)


@pytest.fixture(scope="module")
def flows():
    """Storms on a jet: streamfunctions, and what features make of a quarter of them."""
    noise = 0.1 * np.random.default_rng(0).normal(size=(2, *SHAPE))
    start = EARTH.potential_vorticity(jnp.asarray(noise))
    flow = eqx.filter_jit(rollout)(EARTH, start, 1000 + 40 * STATES)
    both = jnp.concatenate([flow[1000::40], flow[1001::40]])
    psi = jax.vmap(EARTH.streamfunction)(both)
    points = np.stack(np.meshgrid(EARTH.y, EARTH.x, indexing="ij"), axis=-1)
    points = jnp.asarray(points.reshape(-1, 2))
    ids = np.random.default_rng(1).permutation(len(points))[: len(points) // 4]
    values = psi.reshape(-1, len(points)).T
    net = RandomFourierFeatures(
        2, values.shape[1], scale=1.1, periods=LENGTHS, width=8192, depth=0,
        key=jr.key(0),
    )  # fmt: skip

    @eqx.filter_jit
    def interpolated(net):
        net = net.fitted(points[ids], values[ids])
        return jax.lax.map(net, points, batch_size=256)

    return psi, interpolated(net).T.reshape(psi.shape)


@pytest.mark.published
def test_features_of_a_quarter_of_the_points_tell_the_vorticity(flows):
    true, seen = (jax.vmap(laplacian)(psi) for psi in flows)
    assert np.sqrt(np.mean((seen - true) ** 2) / np.var(true)) < 0.05


@pytest.mark.published
@pytest.mark.parametrize(
    ("wrong", "lacks"),
    [
        ({"relaxation": 0.01, "drag": 0.37}, {"relaxation": 0.1, "drag": -0.3}),
        ({"jacobian": 0.5}, {"advection": 0.5}),
        ({"beta": 0.0}, {"beta": 0.196}),
    ],
    ids=["linear", "nonlinear", "beta"],
)
def test_a_quarter_of_the_points_tells_what_a_model_of_storms_lacks(
    flows, wrong, lacks
):
    q = jax.vmap(EARTH.potential_vorticity)(flows[1])
    pairs = model_error_pairs(
        world(**wrong), q[:STATES], q[STATES:], LIBRARY, dt=DT, quadrature=Trapezoid()
    )
    bend = elbow(backward_path(compress(pairs.matrix, pairs.values)))
    found = dict(zip(LIBRARY.names, bend.mean.tolist(), strict=True))
    assert {name for name, value in found.items() if value} == set(lacks)
    for name, value in lacks.items():
        assert abs(found[name] - value) < 0.1 * abs(value)
