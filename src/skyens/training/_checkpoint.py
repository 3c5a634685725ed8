"""Checkpoints: a run on disk, complete or absent, that resumes exactly.

A checkpoint is a folder:

    manifest.json    format, hyperparameters, channels, metadata; path, dtype and shape
                     of every leaf; size and SHA-256 of every file
    arrays-<n>/      the arrays, by Orbax

Orbax writes arrays of any sharding and dtype, but takes neither the functions among a
model's leaves nor typed keys nor empty arrays, and restores into a structure it is
given. So the structure comes from the code that built the model, called again with the
hyperparameters kept beside the weights; the arrays are Orbax's, under their paths, and
Python numbers stand in the manifest.

A folder is written beside its final place and renamed. A later save moves in
`arrays-<n+1>` before it replaces the manifest, which alone says what counts: a process
killed at any moment leaves the checkpoint it had, or the new one.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from skyens.nn import Channels, Normaliser
from skyens.training import _leaves

_FORMAT, _VERSION = "skyens checkpoint", 1
_MANIFEST = "manifest.json"


class Checkpoint(NamedTuple):
    """What `load` returns: all that was given to `save`."""

    state: PyTree
    hyperparameters: dict[str, Any]
    channels: Channels | None
    normaliser: Normaliser | None
    metadata: dict[str, Any]


def save(
    path: str | Path,
    state: PyTree,
    *,
    hyperparameters: Mapping[str, Any] | None = None,
    channels: Channels | None = None,
    normaliser: Normaliser | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write `state`, any tree, as the checkpoint `path`, replacing one that is there.

    Arrays (JAX's and NumPy's), typed keys and Python numbers are kept bit by bit; all
    else, such as functions, is what the builder given to `load` makes of the
    `hyperparameters`, which map names to what JSON can hold. `channels` and
    `normaliser` say which fields the model takes, `metadata` is for readers. A
    `TrainState` and its key, `save(path, (state, key))`, resume a run exactly. One
    process at a time may write to a `path`.

    Raises:
        ValueError: `path` holds anything but a checkpoint (nothing is touched), or
            JSON would change `hyperparameters` or `metadata`.
        ImportError: Orbax is not installed.
    """
    path = Path(path).absolute()
    generation = _next_generation(path)
    trees = {"state": state, "normaliser": normaliser}
    manifest = {
        "format": _FORMAT,
        "version": _VERSION,
        "generation": generation,
        "hyperparameters": _json("hyperparameters", hyperparameters),
        "metadata": _json("metadata", metadata),
        "channels": channels and {"names": channels.names, "units": channels.units},
        "leaves": {name: _leaves.describe(name, tree) for name, tree in trees.items()},
    }
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    partial.mkdir(parents=True)
    arrays = f"arrays-{generation}"
    _leaves.write(partial / arrays, trees)
    files = sorted(file for file in partial.rglob("*") if file.is_file())
    manifest["files"] = {f.relative_to(partial).as_posix(): _digest(f) for f in files}
    for file in files:
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())  # on the disk before the older one goes
    with open(partial / _MANIFEST, "w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())

    if not generation:
        os.rename(partial, path)
        return
    shutil.rmtree(path / arrays, ignore_errors=True)  # likewise
    os.rename(partial / arrays, path / arrays)
    os.replace(partial / _MANIFEST, path / _MANIFEST)
    for old in path.glob("arrays-*"):
        if old.name != arrays and old.name.removeprefix("arrays-").isdigit():
            shutil.rmtree(old)
    partial.rmdir()


def load(path: str | Path, builder: Callable[..., PyTree]) -> Checkpoint:
    """Read the checkpoint `path` into the structure that `builder` makes.

    `builder(**hyperparameters)` returns a tree like the one saved. Its arrays give
    shapes, dtypes and devices, their values are not used: for a large model it may be
    the result of `eqx.filter_eval_shape`.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: it is no checkpoint, or a later version's; a file of it is missing,
            truncated or altered (says which); or it holds another model than the
            builder makes (names the first leaf that differs, and both shapes).
        ImportError: Orbax is not installed.
    """
    path = Path(path).absolute()
    if not path.exists():
        raise FileNotFoundError(f"`path` {path} does not exist.")
    manifest = _read_manifest(path)
    _verify(path, manifest["files"])
    channels, records = manifest["channels"], manifest["leaves"]
    like = builder(**manifest["hyperparameters"])
    if found := _leaves.difference(records["state"], _leaves.describe("state", like)):
        raise ValueError(f"{path} holds another model: {found}.")
    normaliser = None
    if tables := records["normaliser"]:
        mean, std = (np.ones(t["shape"], jnp.dtype(t["dtype"])) for t in tables)
        normaliser = Normaliser(mean, std)
    likes = {"state": like, "normaliser": normaliser}
    arrays = path / f"arrays-{manifest['generation']}"
    return Checkpoint(
        **_leaves.read(arrays, records, likes),
        hyperparameters=manifest["hyperparameters"],
        channels=channels and Channels(channels["names"], channels["units"]),
        metadata=manifest["metadata"],
    )


def _next_generation(path: Path) -> int:
    """Return the number of the next arrays at `path`, 0 where nothing is there yet."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return 0
    try:
        return _read_manifest(path)["generation"] + 1
    except ValueError as error:
        raise ValueError(
            f"`path` holds something else than a checkpoint and stays as it is; give "
            f"another path or remove it. {error}"
        ) from error


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / _MANIFEST
    if not file.is_file():
        raise ValueError(f"{path} is not a checkpoint: it has no {_MANIFEST}.")
    try:
        manifest = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is truncated or altered: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise ValueError(f"{path} is not a checkpoint: {_MANIFEST} is something else.")
    if manifest["version"] > _VERSION:
        raise ValueError(
            f"{path} is a checkpoint of version {manifest['version']}; this release "
            f"reads up to {_VERSION}: update skyens."
        )
    return manifest


def _digest(file: Path) -> dict[str, Any]:
    """Return the size and the SHA-256 of a file."""
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"bytes": stream.tell(), "sha256": digest}


def _verify(path: Path, files: dict[str, Any]) -> None:
    """Raise unless every file is what it was when it was written."""
    for name, expected in files.items():
        if not (path / name).is_file():
            raise ValueError(f"checkpoint {path} is incomplete: {name} is missing.")
        found = _digest(path / name)
        if found["bytes"] != expected["bytes"]:
            raise ValueError(
                f"checkpoint {path} is damaged: {name} is truncated or altered, "
                f"{found['bytes']} bytes instead of {expected['bytes']}."
            )
        if found != expected:
            raise ValueError(
                f"checkpoint {path} is damaged: the content of {name} was altered."
            )


def _json(argument: str, values: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return `values` as a dict, or raise where JSON would not give the same back."""
    values = dict(values or {})
    for name, value in values.items():
        try:
            again = json.loads(json.dumps({name: value}, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"`{argument}[{name!r}]` is not JSON: {error}.") from error
        if again != {name: value}:
            raise ValueError(
                f"`{argument}[{name!r}]` is {value!r}, which JSON gives back as "
                f"{next(iter(again.values()))!r}; give that."
            )
    return values
