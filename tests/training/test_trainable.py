import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jaxtyping import Array

from skyens.nn import Normaliser
from skyens.training import trainable


class Table(eqx.Module):
    values: Array
    scale: Array


class Smoother(eqx.Module):
    rate: Array
    table: Table = eqx.field(metadata={"trainable": False})
    other: Table = eqx.field(metadata={"trainable": True})


class Pair(NamedTuple):
    first: Any
    second: Any


def smoother():
    table = Table(jnp.ones(3), jnp.ones(()))
    return Smoother(jnp.ones(2), table, table)


def test_a_field_marked_untrained_is_so_with_all_below_it():
    spec = trainable(smoother())
    assert spec.rate is True
    assert (spec.table.values, spec.table.scale) == (False, False)
    assert (spec.other.values, spec.other.scale) == (True, True)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: {"a": [m, (None, m)], "b": m},
        lambda m: Pair({"name": m}, None),
        lambda m: [{}, eqx.nn.Identity(), eqx.nn.Lambda(m)],
    ],
)
def test_marks_are_honoured_inside_any_container(wrap):
    model = wrap(smoother())
    spec = trainable(model)
    assert jax.tree.structure(spec) == jax.tree.structure(model)
    parameters = jax.tree.leaves(eqx.filter(model, spec))
    copies = len(jax.tree.leaves(model)) // len(jax.tree.leaves(smoother()))
    assert len(parameters) == 3 * copies
    assert all(leaf.shape != (3,) for leaf in parameters[::3])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64", "complex64"])
def test_inexact_arrays_are_parameters(dtype):
    assert trainable(jnp.ones(2, dtype)) is True


@pytest.mark.parametrize(
    "leaf", [jnp.arange(3), jnp.ones(2, bool), jr.key(0), np.arange(3), 0.5, jnp.tanh]
)
def test_all_else_is_not(leaf):
    assert trainable([leaf]) == [False]


def test_a_normaliser_is_never_trained():
    model = {"net": jnp.ones(3), "normaliser": Normaliser(np.zeros(3), np.ones(3))}
    parameters = eqx.filter(model, trainable(model))
    assert [leaf.shape for leaf in jax.tree.leaves(parameters)] == [(3,)]
    assert parameters["net"] is not None


def test_plain_dataclasses_registered_with_jax_may_mark_fields_too():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Plain:
        weight: Array
        mask: Array = dataclasses.field(metadata={"trainable": False})

    spec = trainable(Plain(jnp.ones(1), jnp.ones(1)))
    assert (spec.weight, spec.mask) == (True, False)


def test_a_library_model_is_trained_whole():
    mlp = eqx.nn.MLP(2, 1, 4, 2, key=jr.key(0))
    count = sum(p.size for p in jax.tree.leaves(eqx.filter(mlp, trainable(mlp))))
    assert count == (2 * 4 + 4) + (4 * 4 + 4) + (4 * 1 + 1)


def test_gradients_follow_the_filter():
    model = smoother()
    parameters, rest = eqx.partition(model, trainable(model))
    total = lambda p: sum(x.sum() for x in jax.tree.leaves(eqx.combine(p, rest)))
    gradient = jax.grad(total)(parameters)
    assert gradient.table.values is None
    np.testing.assert_array_equal(gradient.rate, np.ones(2))
