"""The work of a scorecard: read a piece, update every statistic, read the next."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from skyens.data._match import Companion
from skyens.data._pieces import Piece, cut
from skyens.data._task import Task
from skyens.scores import Statistic

COUNTS = ("count", "missing", "missing_members")

Index = tuple[int | slice, ...]


class Tally(NamedTuple):
    """The states of each score, with their place on the axes of the task; counts."""

    states: dict[str, dict[str, tuple[Index, Any]]]
    counts: dict[str, np.ndarray]


@eqx.filter_jit
def _update(statistic, state, ensemble, truth, weights, where, arguments):
    return statistic.update(state, ensemble, truth, weights, where, **arguments)


def make_tally(
    task: Task,
    scores: Mapping[str, Statistic],
    memory: int,
    progress: bool,
    name: str,
) -> Tally:
    """Return what all pieces of one variable add up to."""
    from skyens import training

    pieces, width, together = cut(task, memory)
    kept_shape = tuple(task.forecast.sizes[dim] if together else 1 for dim in task.kept)
    regions = () if task.regions is None else (len(task.regions),)
    dtype = _working_dtype(task)
    weights = jnp.asarray(np.expand_dims(task.weights, -1 - len(task.points)), dtype)
    weights_of = {
        score: _whole_events(statistic, weights) for score, statistic in scores.items()
    }
    states: dict[str, dict[str, tuple[Index, Any]]] = {score: {} for score in scores}
    counts = {what: np.zeros(task.shape, np.int64) for what in COUNTS}
    axis = -1 - len(task.points)  # of the starts
    shown = training.progress(pieces, description=f"score {name}")
    for piece in shown if progress else pieces:
        read = _Reader(task, piece)
        for block, lead, place, starts in _units(piece):
            at = lead, place, starts
            ensemble = read.unit(read.members, *at)
            truth = np.broadcast_to(read.unit(read.truth, *at), ensemble.shape[1:])
            valid = np.isfinite(ensemble) & np.isfinite(truth)
            index = _index(task, block, int(piece.leads[lead]), place)
            _count(task, counts, index, valid)
            pad = width - (starts.stop - starts.start)
            for score, statistic in scores.items():
                given, where = {}, valid
                for keyword, values in read.arguments.get(score, {}).items():
                    values = read.unit(values, *at)
                    known = np.isfinite(values)
                    if not known.all():  # left out for this score alone
                        values = np.where(known, values, 0)
                        where = where & known.all(tuple(range(known.ndim - truth.ndim)))
                    # Of size 1: the same for all starts, or broadcast like that.
                    short = pad if values.shape[axis] > 1 else 0
                    given[keyword] = jnp.asarray(_pad(values, axis, short), dtype)
                inputs = _masked(ensemble, truth, where, axis, pad)
                if (known := states[score].get(str(index))) is None:
                    known = index, statistic.init(kept_shape + regions, dtype)
                state = _update(
                    statistic,
                    known[1],
                    jnp.asarray(inputs[0], dtype),
                    jnp.asarray(inputs[1], dtype),
                    weights_of[score],
                    None if inputs[2] is None else jnp.asarray(inputs[2]),
                    given,
                )
                states[score][str(index)] = index, state
    return Tally(states, counts)


def _whole_events(statistic: Statistic, weights: jax.Array) -> jax.Array:
    """Return the weights for a statistic that takes trailing axes as a whole."""
    events = getattr(statistic, "event_axes", 0)
    axes = tuple(range(-events, 0))
    return weights.mean(axes, keepdims=True) if events else weights


def _masked(
    ensemble: np.ndarray, truth: np.ndarray, where: np.ndarray, axis: int, pad: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return what an update takes; without a mask, which costs, where all is valid."""
    if pad == 0 and where.all():
        return ensemble, truth, None
    ensemble = np.where(where, ensemble, np.zeros((), ensemble.dtype))
    truth = np.where(where.any(axis=0), truth, np.zeros((), truth.dtype))
    return (
        _pad(ensemble, axis, pad),
        _pad(truth, axis, pad),
        _pad(where, axis, pad),
    )


def _working_dtype(task: Task) -> np.dtype:
    """Return float64 where forecast or truth are so and x64 is on, else float32."""
    found = np.promote_types(task.forecast.dtype, task.truth.field.dtype)
    return np.dtype(jax.dtypes.canonicalize_dtype(np.promote_types(found, np.float32)))


def _units(piece: Piece):
    """Yield block, lead time, place on kept axes and starts, of each unit of a piece.

    The last three count within the piece.
    """
    for unit in piece.units:
        starts = slice(unit.first, unit.first + unit.size)
        for lead in range(piece.leads.size):
            for place in piece.places or [None]:
                yield unit.block, lead, place, starts


def _index(task: Task, block: int, lead: int, place: tuple[int, ...] | None) -> Index:
    """Return where a unit stands on the axes of the task."""
    index: list[int | slice] = []
    if task.block_axis is not None:
        index.append(block)
    if "lead_time" in task.by:
        index.append(lead)
    if place is None:
        index += [slice(None)] * len(task.kept)
    else:
        index += [slice(i, i + 1) for i in place]
    return tuple(index)


def _count(
    task: Task, counts: dict[str, np.ndarray], index: Index, valid: np.ndarray
) -> None:
    """Count the points with a truth and any member, those without, and lost members."""
    axis = -1 - len(task.points)
    inside = (task.weights > 0).astype(np.int64)
    starts, members = valid.shape[axis], valid.shape[0]
    if valid.all():  # the common case, at no cost
        seen = lost = None
    else:
        any_member = valid.any(axis=0)
        seen = any_member.sum(axis, dtype=np.int64)
        here = valid.sum(axis=0, dtype=np.int64)
        lost = np.where(any_member, members - here, 0).sum(axis)
    points = tuple(range(-len(task.points), 0))
    over = lambda values: (values * inside).sum(points) if points else values * inside
    everywhere = over(np.int64(starts))
    scored = everywhere if seen is None else over(seen)
    counts["count"][index] += scored
    counts["missing"][index] += everywhere - scored
    if lost is not None:
        counts["missing_members"][index] += over(lost)


class _Reader:
    """One piece in memory, and its units as arrays.

    These are `([member,] *kept, [1,] start, *points)`: the 1 is for the regions, an
    axis of the weights alone.
    """

    def __init__(self, task: Task, piece: Piece):
        """Read a piece."""
        self.task = task
        dims = (*task.kept, *task.points)
        order = "member", "lead_time", *task.kept, task.times.start_name, *task.points
        index: dict[str, Any] = {
            task.times.start_name: as_slice(piece.starts),
            "lead_time": as_slice(piece.leads),
            **piece.kept,
        }
        field = task.forecast.variable
        field = field.isel({dim: at for dim, at in index.items() if dim in field.dims})
        shape = [field.sizes.get(dim, 1) for dim in order]
        field = field.transpose(*[dim for dim in order if dim in field.dims])
        self.members = field.values.reshape(shape)

        def read(other: Companion) -> np.ndarray:
            values = other.read(piece.starts, piece.leads, piece.kept, dims)
            start = len(other.leading)  # before the lead; to stand after what is kept
            return np.moveaxis(values, start, start + 1 + len(task.kept))

        self.truth = read(task.truth)
        self.arguments = {
            score: {keyword: read(other) for keyword, other in given.items()}
            for score, given in task.arguments.items()
        }

    def unit(
        self,
        values: np.ndarray,
        lead: int,
        place: tuple[int, ...] | None,
        starts: slice,
    ) -> np.ndarray:
        """Return one unit of `(..., lead, *kept, start, *points)`; size 1 stays 1."""
        kept = len(self.task.kept)
        first = values.ndim - len(self.task.points) - kept - 2
        at: list[int | slice] = [slice(None)] * first
        at.append(lead if values.shape[first] > 1 else 0)
        for axis in range(kept):
            if place is None or values.shape[first + 1 + axis] == 1:
                at.append(slice(None))
            else:
                at.append(slice(place[axis], place[axis] + 1))
        at.append(starts if values.shape[first + 1 + kept] > 1 else slice(None))
        values = values[tuple(at)]
        if self.task.regions is not None:
            values = np.expand_dims(values, first + kept)
        return values


def as_slice(index: np.ndarray) -> slice | np.ndarray:
    """Return successive indices as a slice, which copies and computes less."""
    if index.size and np.array_equal(index, np.arange(index[0], index[-1] + 1)):
        return slice(int(index[0]), int(index[-1]) + 1)
    return index


def _pad(values: np.ndarray, axis: int, amount: int) -> np.ndarray:
    """Return `values` with zeros behind an axis, so that all units have one shape."""
    if amount == 0:
        return values
    widths = [(0, 0)] * values.ndim
    widths[axis] = (0, amount)
    return np.pad(values, widths)
