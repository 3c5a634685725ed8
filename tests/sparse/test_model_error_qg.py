from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens.dynamics import TwoLayerQG, rollout
from skyens.sparse import Library, Simpson, Term, model_error_pairs

SHAPE, LENGTHS, DT = (32, 24), (40.0, 24.0), 0.2
OFF = ("jacobian", "beta", "relaxation", "drag", "hyperviscosity", "sponge_rate")
BASE: dict[str, Any] = {"hyperviscosity": 1e-3}


def world(dt=DT, **settings: Any):
    return TwoLayerQG(SHAPE, LENGTHS, dt, **BASE | settings)


def term(name, **settings):
    """A world in which nothing happens but one thing."""
    alone: dict[str, Any] = dict.fromkeys(OFF, 0.0) | settings
    return Term(name, TwoLayerQG(SHAPE, LENGTHS, **alone).tendency)


LIBRARY = Library(
    [
        term("advection", jacobian=1.0),
        term("beta", beta=1.0),
        term("relaxation", relaxation=1.0),
        term("drag", drag=1.0),
        term("viscosity", hyperviscosity=1.0, order=1),
        Term("itself", lambda q: q),
        Term("flow", world().streamfunction),
    ]
)


@pytest.fixture(scope="module")
def states():
    """The truth, far apart: storms of a strong jet."""
    truth = world(relaxation=0.11, drag=0.37)
    noise = np.random.default_rng(0).normal(size=(2, *SHAPE))
    start = truth.potential_vorticity(jnp.asarray(noise) * 0.1)
    return eqx.filter_jit(rollout)(truth, start, 1000)[500::100]


CASES = {
    "rates": ({"relaxation": 0.01, "drag": 0.07}, {"relaxation": 0.1, "drag": 0.3}),
    "advection": (
        {"relaxation": 0.11, "drag": 0.37, "jacobian": 0.5},
        {"advection": 0.5},
    ),
    "beta": ({"relaxation": 0.11, "drag": 0.37, "beta": 0.0}, {"beta": 0.196}),
}


@pytest.mark.parametrize("case", CASES)
def test_wrong_terms_of_a_two_layer_flow_are_found(states, case):
    settings, lacked = CASES[case]
    short = world(DT / 8, relaxation=0.11, drag=0.37)
    after = eqx.filter_jit(jax.vmap(lambda q: rollout(short, q, 8)[-1]))(states)
    half = world(DT / 2, **settings)
    pairs = model_error_pairs(
        world(**settings), states, after, LIBRARY, dt=DT, quadrature=Simpson(half)
    )
    # One layer alone has all columns: the model carries the drag's work upwards.
    lower = pairs.of(lambda q: q[1])
    for part in (pairs, lower):
        scale = np.sqrt(np.mean(np.asarray(part.matrix) ** 2, axis=0))
        found = np.linalg.lstsq(part.matrix / scale[None], part.values, rcond=None)[0]
        size = np.abs(found).max()
        coefficients = dict(zip(LIBRARY.names, found / scale, strict=True))
        for i, name in enumerate(LIBRARY.names):
            if name in lacked:
                assert abs(coefficients[name] - lacked[name]) < 0.01 * lacked[name]
            else:
                assert abs(found[i]) < 0.01 * size
