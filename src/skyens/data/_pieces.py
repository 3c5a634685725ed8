"""How a forecast is cut: into pieces that are read, and units that are scored."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from skyens.data._names import usual_name
from skyens.data._task import Task
from skyens.data._times import STARTS

_UNIT = 2**22  # values of an ensemble that one update sees: 16 MB in float32


class Unit(NamedTuple):
    """What one update sees: starts of one block, at one lead time, of one place."""

    block: int
    first: int  # where its starts stand in what was read
    size: int


class Piece(NamedTuple):
    """What is read at a time."""

    starts: np.ndarray
    leads: np.ndarray
    kept: dict[str, np.ndarray]  # indices along kept axes; empty for all
    places: list[tuple[int, ...]] | None  # along kept axes, one a unit; None: together
    units: list[Unit]


class Cut(NamedTuple):
    """All pieces, and the number of starts to which each unit is padded."""

    pieces: list[Piece]
    width: int
    together: bool  # whether a unit holds all of the kept axes


def cut(task: Task, memory: int) -> Cut:
    """Return the pieces of a task, none of which needs more than about `memory` bytes.

    Units depend on sizes alone, and pieces on chunks: rounding is thus the same however
    the data are chunked.

    Raises:
        ValueError: `memory` is not positive.
    """
    if memory <= 0:
        raise ValueError(f"`memory` must be above 0 bytes, got {memory}.")
    sizes = {str(dim): size for dim, size in task.forecast.sizes.items()}
    place = sizes.get("member", 1) * math.prod(sizes[dim] for dim in task.points)
    kept = [sizes[dim] for dim in task.kept]
    together = place * math.prod(kept) <= _UNIT
    values = place * (math.prod(kept) if together else 1)
    longest = max(block.size for block in task.blocks)
    width = min(max(1, _UNIT // values), longest)

    chunks = _chunks(task)
    itemsize = task.forecast.dtype.itemsize
    # All places at a time where a chunk holds several of them, to read it once.
    shared = any(chunks.get(dim, 1) > 1 for dim in task.kept)
    every = together or (shared and place * math.prod(kept) * itemsize <= memory)
    room = max(1, memory // (place * (math.prod(kept) if every else 1) * itemsize))
    n_leads = task.times.shape[1]
    lead_step = min(chunks.get("lead_time", 1), n_leads, room)
    target = min(chunks.get(task.times.start_name, 1), max(1, room // lead_step))

    places = list(np.ndindex(*kept))
    if together:
        selections = [({}, None)]
    elif every:
        selections = [({}, places)]
    else:
        selections = [
            ({dim: np.array([i]) for dim, i in zip(task.kept, one, strict=True)}, [one])
            for one in places
        ]
    groups = _grouped(task.blocks, width, target)
    steps = [
        np.arange(n_leads)[i : i + lead_step] for i in range(0, n_leads, lead_step)
    ]
    pieces = [
        Piece(starts, leads, kept_index, one, units)
        for (kept_index, one), (starts, units), leads in itertools.product(
            selections, groups, steps
        )
    ]
    return Cut(pieces, width, together)


def _grouped(
    blocks: Sequence[np.ndarray], width: int, target: int
) -> list[tuple[np.ndarray, list[Unit]]]:
    """Return units, in the order of their starts, in groups of `target` starts."""
    parts = [
        (i, block[first : first + width])
        for i, block in enumerate(blocks)
        for first in range(0, block.size, width)
    ]
    parts.sort(key=lambda part: part[1][0])
    groups: list[tuple[np.ndarray, list[Unit]]] = []
    starts: list[np.ndarray] = []
    units: list[Unit] = []
    total = 0
    for i, part in parts:
        units.append(Unit(i, total, part.size))
        starts.append(part)
        total += part.size
        if total >= target:
            groups.append((np.concatenate(starts), units))
            starts, units, total = [], [], 0
    if units:
        groups.append((np.concatenate(starts), units))
    return groups


def _chunks(task: Task) -> dict[str, int]:
    """Return the sizes of chunks, of dask or of the file, by dimension."""
    if task.forecast.chunksizes:
        return {str(dim): max(sizes) for dim, sizes in task.forecast.chunksizes.items()}
    stored = task.forecast.encoding.get("preferred_chunks", {})
    chunks = {}
    for dim, size in stored.items():
        usual = usual_name(dim)
        starts = usual == "time" or usual in STARTS
        chunks[task.times.start_name if starts else usual] = int(size)
    return chunks
