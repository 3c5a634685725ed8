"""Stores: write a dataset to Zarr whole or not at all, and never over others' data."""

import json
import math
import os
import shutil
import warnings
from glob import escape
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from skyens import __version__

if TYPE_CHECKING:
    import xarray

_MARK = "written_by"  # the attribute by which we know a store as ours
_CHUNK = 2**20  # values; a few megabytes, so that one field is read without the rest


def check_output(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Check that a store can be written to `path`; call it before the work starts.

    Raises:
        FileExistsError: there is something that `skyens` did not write, or a store that
            it did and `overwrite` is False.
        NotADirectoryError: a parent of `path` is a file.
        PermissionError: the folder that would hold it cannot be written.
    """
    path = Path(path)
    if os.path.lexists(path) and not _is_empty_folder(path):
        if not _is_ours(path):
            raise FileExistsError(
                f"`path` holds data that skyens did not write and will not replace: "
                f"{path}. Choose another path or move them away."
            )
        if not overwrite:
            raise FileExistsError(
                f"`path` holds a store already: {path}. Pass `overwrite=True` to "
                "replace it."
            )
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise NotADirectoryError(f"`path` lies below a file, {parent}: {path}.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"`path` lies in a folder that is read-only: {parent}.")


def write_zarr(
    dataset: "xarray.Dataset",
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> None:
    """Write `dataset` as a Zarr store (format 3) that plain `xarray.open_zarr` opens.

    It is written beside `path` under a hidden name and renamed when complete: a run
    that is killed leaves the former store, or none, never a part of one. What such a
    run left under the hidden name, the next write to the same path removes, so no two
    processes may write to one path. Fields stay whole in latitude and longitude; chunks
    are of about a million values.

    Raises:
        FileExistsError, NotADirectoryError, PermissionError: see `check_output`.
        ImportError: zarr is not installed.
    """
    check_output(path, overwrite=overwrite)
    try:
        import zarr  # noqa: F401  (xarray's own message would not name the extra)
    except ImportError as error:
        raise ImportError(
            'Writing Zarr stores needs zarr: pip install "skyens[io]"'
        ) from error

    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{escape(path.name)}.*.partial"):
        shutil.rmtree(left)
    work = Path(mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        with warnings.catch_warnings():
            # Without consolidated metadata plain `open_zarr` warns; with them, writing
            # warns that Zarr 3 has not standardised them (readers may ignore them).
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            dataset.assign_attrs({_MARK: f"skyens {__version__}"}).to_zarr(
                work / "new",
                zarr_format=3,
                consolidated=True,
                encoding={
                    name: {"chunks": _chunks(variable.shape)}
                    for name, variable in dataset.data_vars.items()
                    if variable.ndim and variable.chunks is None
                },
            )
        # Whoever wrote here meanwhile is not to lose it.
        check_output(path, overwrite=overwrite)
        if path.exists():
            path.rename(work / "old")
        try:
            (work / "new").rename(path)
        except BaseException:
            if (work / "old").exists():
                (work / "old").rename(path)
            raise
    finally:
        shutil.rmtree(work)


def _chunks(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a chunk: whole trailing axes as far as `_CHUNK` goes."""
    chunks: list[int] = []
    for i, size in enumerate(reversed(shape)):
        room = _CHUNK // math.prod(chunks)
        chunks.insert(0, max(1, size if i < 2 else min(size, room)))
    return tuple(chunks)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _is_ours(path: Path) -> bool:
    """Whether `path` is a Zarr store that bears our mark."""
    try:
        metadata = json.loads((path / "zarr.json").read_text("utf-8"))
        mark = metadata["attributes"][_MARK]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return isinstance(mark, str) and mark.startswith("skyens ")
