"""The leaves of a tree on disk: a record of each, and the arrays by Orbax."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PyTree

Record = dict[str, Any]


def describe(name: str, tree: PyTree) -> list[Record]:
    """Return path, kind, dtype and shape of each leaf that is kept, in tree order.

    Kept are arrays, typed keys and Python numbers, these by value; other leaves, such
    as functions, leave no trace. All paths begin with `name`.
    """
    return [record for record, _ in _kept(name, tree)]


def difference(mine: list[Record], theirs: list[Record]) -> str | None:
    """Say where two descriptions first differ, or None where they do not."""
    ours = {record["path"]: record for record in mine}
    others = {record["path"]: record for record in theirs}
    for path in [*ours, *(path for path in others if path not in ours)]:
        here, there = (_words(side.get(path)) for side in (ours, others))
        if here != there:
            return f"at `{path}` it has {here}, the builder's model has {there}"
    return None


def write(folder: Path, trees: dict[str, PyTree]) -> None:
    """Write the arrays of `trees` as the new folder `folder`, each under its path."""
    arrays = {
        record["path"]: jr.key_data(leaf) if record["kind"] == "key" else leaf
        for name, tree in trees.items()
        for record, leaf in _kept(name, tree)
        if _stored(record)
    }
    if not arrays:
        folder.mkdir()
        return
    with _checkpointer() as checkpointer:
        checkpointer.save(folder, arrays)


def read(
    folder: Path, records: dict[str, list[Record]], likes: dict[str, PyTree]
) -> dict[str, PyTree]:
    """Return trees like `likes` with the leaves that `records` and `folder` hold.

    The records must be those of `likes`, apart from their order and the values of
    numbers. An array lies on the devices its like is committed to, else on the default
    one.
    """
    targets = {
        record["path"]: _target(record, leaf)
        for name, like in likes.items()
        for record, leaf in _kept(name, like)
        if _stored(record)
    }
    arrays = {}
    if targets:
        with _checkpointer() as checkpointer:
            arrays = checkpointer.restore(folder, targets)

    trees = {}
    for name, like in likes.items():
        known = {record["path"]: record for record in records[name]}
        leaves, structure = jax.tree_util.tree_flatten_with_path(like)
        trees[name] = structure.unflatten(
            _value(known.get(name + jax.tree_util.keystr(path)), arrays, leaf)
            for path, leaf in leaves
        )
    return trees


def _kept(name: str, tree: PyTree) -> Iterator[tuple[Record, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if record := _record(leaf):
            yield {"path": name + jax.tree_util.keystr(path), **record}, leaf


def _record(leaf: Any) -> Record | None:
    """Return the record of a leaf without its path, or None where it is not kept."""
    if isinstance(leaf, bool | int | float) and not isinstance(leaf, np.generic):
        return {"kind": "number", "dtype": type(leaf).__name__, "value": leaf}
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
        return None
    record = {"kind": "array", "dtype": str(leaf.dtype), "shape": list(leaf.shape)}
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        record["kind"] = "key"
    return record


def _stored(record: Record) -> bool:
    """Say whether a leaf has words to store: Orbax takes no empty array."""
    return record["kind"] != "number" and 0 not in record["shape"]


def _words(record: Record | None) -> str:
    if record is None:
        return "nothing"
    if record["kind"] == "number":
        return f"a Python {record['dtype']}"
    return f"{record['dtype']} {tuple(record['shape'])}"


def _target(record: Record, like: Any) -> Any:
    """Return what Orbax restores into: devices where these are chosen, else NumPy."""
    if record["kind"] == "key":
        like = jax.eval_shape(jr.key_data, like)
    chosen = isinstance(like, jax.ShapeDtypeStruct) or getattr(like, "committed", False)
    if chosen and like.sharding is not None:
        return jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=like.sharding)
    return np.broadcast_to(np.zeros((), like.dtype), like.shape)  # costs no memory


def _value(record: Record | None, arrays: dict[str, Any], like: Any) -> Any:
    """Return the leaf as it was, of the class its like has."""
    if record is None:
        return like
    if record["kind"] == "number":
        return record["value"]
    value = arrays.get(record["path"])
    if record["kind"] == "key":
        impl = jr.key_impl(jnp.empty((), like.dtype))  # `like` may be a shape alone
        empty = jax.eval_shape(jr.key_data, like)
        words = jnp.zeros(empty.shape, empty.dtype) if value is None else value
        return jr.wrap_key_data(jnp.asarray(words), impl=impl)
    if value is None:
        value = np.zeros(like.shape, like.dtype)
    if isinstance(like, np.ndarray | np.generic):
        return value[()] if isinstance(like, np.generic) else np.asarray(value)
    if like.weak_type and not like.shape:
        return jnp.asarray(value.item())  # a weakly typed scalar stays one
    return jnp.asarray(value)


def _checkpointer() -> Any:
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ImportError(
            "checkpoints need Orbax: pip install 'skyens[train]'."
        ) from error
    return ocp.Checkpointer(ocp.StandardCheckpointHandler())
