"""What is trained: one filter for gradients, optimiser and averages."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree


def trainable(model: PyTree) -> PyTree[bool]:
    """Return a tree like `model` that is True at its parameters and False elsewhere.

    A parameter is an array of real or complex floating dtype. Tables, masks and
    normalisers are such arrays too, so their fields say of themselves that they are
    no parameters, where they are declared; that goes for all below such a field:

        class Smoother(eqx.Module):
            rate: Array
            table: Array = eqx.field(metadata={"trainable": False})

    The result goes where Equinox takes a filter: `eqx.partition(model,
    trainable(model))`, `eqx.filter(model, trainable(model))`.
    """
    if jax.tree_util.all_leaves([model]):
        return eqx.is_inexact_array(model)
    children, structure = jax.tree_util.tree_flatten_with_path(
        model, is_leaf=lambda node: node is not model
    )
    frozen = _frozen_fields(model)
    return structure.unflatten(
        jax.tree.map(lambda _: False, child)
        if getattr(path[0], "name", None) in frozen
        else trainable(child)
        for path, child in children
    )


def _frozen_fields(node: Any) -> set[str]:
    """Return the names of the fields of a dataclass that are declared untrained."""
    if not dataclasses.is_dataclass(node):
        return set()
    fields = dataclasses.fields(node)
    return {f.name for f in fields if not f.metadata.get("trainable", True)}
