"""What a scorecard of one variable has to do: its axes, its fields, its weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from skyens.data._areas import Regions, point_weights
from skyens.data._match import Companion, Times, companion, times_of
from skyens.data._names import usual_name
from skyens.data._times import START, STARTS, block_starts
from skyens.scores import Statistic

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class Task:
    """One variable of a forecast, all that it is verified with, and what is kept.

    Statistics keep the axes `(block, lead_time, *kept, region)`, each where it is
    wanted, and sum over starts and `points`.
    """

    forecast: "xarray.DataArray"
    truth: Companion
    arguments: dict[str, dict[str, Companion]]
    times: Times
    by: tuple[str, ...]
    kept: tuple[str, ...]  # of the dimensions besides times
    points: tuple[str, ...]
    blocks: list[np.ndarray]  # indices of the starts in each
    block_axis: tuple[str, np.ndarray] | None
    weights: np.ndarray  # ([region,] *points)
    regions: tuple[str, ...] | None

    @property
    def axes(self) -> dict[str, np.ndarray | None]:
        """The axes that are kept, with their coordinates, as states are indexed."""
        axes: dict[str, np.ndarray | None] = {}
        if self.block_axis is not None:
            axes[self.block_axis[0]] = self.block_axis[1]
        if "lead_time" in self.by:
            axes["lead_time"] = self.times.lead
        for dim in self.kept:
            known = dim in self.forecast.coords
            axes[dim] = self.forecast[dim].values if known else None
        if self.regions is not None:
            axes["region"] = np.array(self.regions)
        return axes

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of `axes`."""
        sizes = {
            "lead_time": self.times.shape[1],
            "region": len(self.regions or ()),
            **{dim: self.forecast.sizes[dim] for dim in self.kept},
        }
        if self.block_axis is not None:
            sizes[self.block_axis[0]] = len(self.blocks)
        return tuple(sizes[dim] for dim in self.axes)

    @property
    def order(self) -> tuple[str, ...]:
        """The axes as the result shall have them."""
        first = [] if self.block_axis is None else [self.block_axis[0]]
        first = [dim for dim in first if dim not in self.by]
        return (*first, *self.by, *(("region",) if self.regions is not None else ()))


def make_task(
    forecast: "xarray.DataArray",
    truth: "xarray.DataArray",
    arguments: "Mapping[str, Mapping[str, xarray.DataArray]]",
    *,
    by: Sequence[str] | str | None,
    bounds: Mapping[str, np.ndarray],
    regions: Regions | None = None,
    blocks: Any = None,
    weights: "xarray.DataArray | None" = None,
    allow_missing: bool = False,
) -> Task:
    """Return the task of one variable, after checking that everything fits.

    Raises:
        ValueError: something does not; see `scorecard`.
    """
    name = "`forecast`" if forecast.name is None else f"`{forecast.name}`"
    if 0 in forecast.shape:
        raise ValueError(f"{name} is empty: its shape is {dict(forecast.sizes)}.")
    if forecast.dtype.kind not in "fiu" and forecast.dtype.name != "bfloat16":
        raise ValueError(f"{name} must be numbers, got {forecast.dtype}.")
    times = times_of(forecast)
    dims = [str(dim) for dim in forecast.dims]
    by = _by(by, dims, name)
    starts = times.start
    if starts is None:
        starts = np.zeros(1)
    block_axis = None
    if times.start_name in by:
        if blocks is not None:
            raise ValueError(
                f"`by` keeps each start ({times.start_name!r}): leave out `blocks`."
            )
        groups = [np.array([i]) for i in range(starts.size)]
        block_axis = times.start_name, starts
    else:
        labels, groups = block_starts(starts, blocks)
        if blocks is not None:
            block_axis = str(getattr(blocks, "name", None) or "block"), labels
            if block_axis[0] in (*dims, "region", "variable"):
                raise ValueError(
                    f"The labels `blocks` must not be called {block_axis[0]!r}, which "
                    "is a dimension: rename them."
                )
    others = [dim for dim in dims if dim not in ("member", START, "time", "lead_time")]
    kept = tuple(dim for dim in by if dim in others)
    points = [dim for dim in others if dim not in kept]
    last = [dim for dim in ("latitude", "longitude") if dim in points]
    points = [dim for dim in points if dim not in last] + last
    match = lambda field, what, of_truth: companion(
        field, forecast, times, what, allow_missing=allow_missing, truth=of_truth
    )
    return Task(
        forecast=forecast,
        truth=match(truth, "truth", True),
        arguments={
            score: {
                keyword: match(field, f"arguments[{score!r}][{keyword!r}]", False)
                for keyword, field in more.items()
            }
            for score, more in arguments.items()
        },
        times=times,
        by=by,
        kept=kept,
        points=tuple(points),
        blocks=groups,
        block_axis=block_axis,
        weights=point_weights(forecast, points, regions, weights, bounds),
        regions=None if regions is None else tuple(regions),
    )


def check_alike(tasks: Mapping[str, Task]) -> None:
    """Check that all variables keep the same axes, so that they fit in one dataset.

    Raises:
        ValueError: they do not.
    """
    (first, one), *rest = tasks.items()
    for name, other in rest:
        if tuple(one.axes) != tuple(other.axes) or one.shape != other.shape:
            raise ValueError(
                f"`{first}` keeps the axes {tuple(one.axes)} of sizes {one.shape}, "
                f"and `{name}` {tuple(other.axes)} of sizes {other.shape}: they do not "
                f"fit in one result. Score them apart (`forecast[[{name!r}]]`)."
            )


def check_events(task: Task, scores: Mapping[str, Statistic]) -> None:
    """Check that what some scores take as a whole is whole, and on their grid.

    Raises:
        ValueError: `by` keeps, `regions` divide or the forecast lacks axes that a score
            takes as a whole, or it is for another grid.
    """
    for name, statistic in scores.items():
        events = getattr(statistic, "event_axes", 0)
        if not events:
            continue
        if task.regions is not None or events > len(task.points):
            raise ValueError(
                f"`scores[{name!r}]` takes the last {events} dimensions of points as a "
                f"whole: leave out `regions`, and do not keep them by `by`; there are "
                f"{task.points}."
            )
        grid = getattr(statistic, "grid", None)
        if grid is None:
            continue
        here = {dim: task.forecast[dim].values for dim in task.points[-2:]}
        if (
            tuple(here) != ("latitude", "longitude")
            or grid.shape != tuple(len(values) for values in here.values())
            or not np.allclose(grid.latitude, here["latitude"], rtol=0, atol=1e-3)
        ):
            raise ValueError(
                f"`scores[{name!r}]` is for fields on {grid}, which is not the grid of "
                "`forecast`: make it with `data.grid_of(forecast)`."
            )


def _by(by: Sequence[str] | str | None, dims: list[str], owner: str) -> tuple[str, ...]:
    """Return the names of the dimensions to keep as they are called here.

    Raises:
        ValueError: the forecast lacks one, or it cannot be kept.
    """
    if by is None:
        by = ("lead_time",) if "lead_time" in dims else ()
    names = []
    for name in (by,) if isinstance(by, str) else by:
        usual = name if name in dims else usual_name(name)
        if usual not in dims and name in ("time", "start", *STARTS) and START in dims:
            usual = START
        if usual not in dims or usual == "member":
            raise ValueError(
                f"`by` must name dimensions of {owner} to keep, {name!r} is none of "
                f"{[dim for dim in dims if dim != 'member']}. Variables that lack a "
                "dimension are scored apart (`forecast[['name']]`) from those that "
                "have it."
            )
        names.append(usual)
    if len(set(names)) < len(names):
        raise ValueError(f"`by` names a dimension twice: {tuple(names)}.")
    return tuple(names)
