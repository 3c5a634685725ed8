"""Scorecards: statistics of forecasts against truth, by the names of dimensions."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from skyens.data._areas import Regions
from skyens.data._names import conventional_names
from skyens.data._scorecard_result import result_of, stack_states
from skyens.data._tally import COUNTS, Tally, make_tally
from skyens.data._task import Task, check_alike, check_events, make_task
from skyens.data._times import forecast_times
from skyens.scores import Statistic

if TYPE_CHECKING:
    import xarray

    Data = xarray.Dataset | xarray.DataArray

States = dict[str, dict[str, Any]]
Arguments = Mapping[str, Mapping[str, "xarray.Dataset | xarray.DataArray"]]


def scorecard(
    forecast: "xarray.Dataset | xarray.DataArray",
    truth: "xarray.Dataset | xarray.DataArray",
    scores: Mapping[str, Statistic],
    by: Sequence[str] | str | None = None,
    *,
    regions: Regions | None = None,
    blocks: "int | str | xarray.DataArray | None" = None,
    weights: "xarray.DataArray | None" = None,
    arguments: Arguments | None = None,
    allow_missing: bool = False,
    memory: int = 2**28,
    progress: bool = True,
) -> "xarray.Dataset":
    """Return statistics of `forecast` against `truth`, one variable a score.

    Dimensions are found by their CF or usual names, as `conventional_names` does, and
    starts by `forecast_reference_time`, `init_time` or the `time` beside a lead time
    (WeatherBench). Without lead times, `time` is that of validity. Nothing is aligned:
    points must have the same coordinates in the same order. Latitudes and longitudes
    count by the area of their cells, all other points equally.

    A statistic that scores fields as a whole (`Spectra`, a `MeanScore` with
    `event_axes`) takes the last dimensions of the points, of which latitude and
    longitude come last, and is given no weights along them.

    Values that are not finite are left out, member by member, and counted: `count` is
    the number of points that were scored, `missing` of those left out, for want of a
    truth or of any member, and `missing_members` that of members left out elsewhere.
    What nothing was scored for is NaN, and one warning at the end says how much is.

    Data in dask arrays, or in files opened lazily, are read in pieces that follow their
    chunks of starts and lead times, each once, and never whole. Sums are compensated:
    a result does not depend on the pieces.

    Args:
        forecast: with or without members. Of a dataset all variables are scored, and
            the result has the dimension `variable`.
        truth: the same variables, at valid `time` (selected at start + lead time) or
            at the starts and lead times of `forecast`. Two arrays need not share a
            name.
        scores: statistics by the name that they shall have in the result
            (`{"crps": scores.CRPS()}`). One of several fields gives variables
            `name_field`.
        by: the dimensions to keep, `("lead_time", "level")`. The lead time, if there is
            one, if left out; the start itself may be kept too.
        regions: by name, `(west, east, south, north)` in degrees, or a mask (or
            fractions) of points. Cells at the border of a box count by the part of
            them inside. They become the dimension `region`.
        blocks: keep blocks of starts apart: so many successive starts, `"day"`,
            `"month"`, `"year"`, or labels of the starts (`starts.dt.month`). They
            become the dimension `block`, labelled by its first time.
        weights: of points, in place of the areas.
        arguments: by score and keyword, further fields that the updates of a statistic
            take: `{"acc": {"climatology": climatology}}`. They are selected as the
            truth is, or by `dayofyear` and `hour` of the valid time; dimensions that
            `forecast` lacks lead (thresholds).
        allow_missing: count valid times that `truth` lacks as missing, and do not
            raise.
        memory: bytes of `forecast` to be read at a time. Chunks larger than that are
            read more than once.
        progress: show a bar on standard error if it takes more than five seconds.

    Raises:
        ValueError: names, dimensions, coordinates (the first difference is named),
            times or units do not match, or an argument is none of the above.
    """
    return _verify(
        forecast,
        truth,
        scores,
        by,
        regions=regions,
        blocks=blocks,
        weights=weights,
        arguments=arguments,
        allow_missing=allow_missing,
        memory=memory,
        progress=progress,
    )[0]


def scorecard_states(
    forecast: "xarray.Dataset | xarray.DataArray",
    truth: "xarray.Dataset | xarray.DataArray",
    scores: Mapping[str, Statistic],
    by: Sequence[str] | str | None = None,
    **settings: Any,
) -> "tuple[xarray.Dataset, States]":
    """Return the scorecard and the states behind it, by variable and score.

    Arguments and errors are those of `scorecard`. States have the axes of the result in
    front of all their leaves, `(block, *by, region)`: to be merged, saved, or resampled
    block by block.

    Raises:
        ValueError: as `scorecard`, or leaves of a state do not lead with what it keeps.
    """
    result, tasks, tallies = _verify(forecast, truth, scores, by, **settings)
    return result, {
        name: {
            score: stack_states(task, states)
            for score, states in tallies[name].states.items()
        }
        for name, task in tasks.items()
    }


def _verify(
    forecast: "Data",
    truth: "Data",
    scores: Mapping[str, Statistic],
    by: Sequence[str] | str | None,
    *,
    arguments: Arguments | None = None,
    memory: int = 2**28,
    progress: bool = True,
    **settings: Any,
) -> "tuple[xarray.Dataset, dict[str, Task], dict[str, Tally]]":
    """Return the scorecard, and what it was made of, by variable."""
    _check_scores(scores, arguments or {})
    tasks: dict[str, Task] = {}
    for name, field in _variables(forecast).items():
        given = {
            score: {
                keyword: _variable(values, name, f"arguments[{score!r}][{keyword!r}]")
                for keyword, values in more.items()
            }
            for score, more in (arguments or {}).items()
        }
        tasks[name] = make_task(
            field,
            _variable(truth, name, "truth"),
            given,
            by=by,
            bounds=_bounds(forecast),
            **settings,
        )
    check_alike(tasks)
    for task in tasks.values():
        check_events(task, scores)
    tallies = {
        name: make_tally(task, scores, memory, progress, name)
        for name, task in tasks.items()
    }
    result = result_of(tasks, tallies, scores, not _is_array(forecast))
    _report(result)
    return result, tasks, tallies


def _check_scores(
    scores: Mapping[str, Statistic], arguments: Mapping[str, Mapping[str, Any]]
) -> None:
    """Check names, statistics and the keywords of their updates, before hours of work.

    Raises:
        ValueError: one does not fit.
    """
    if not scores:
        raise ValueError("`scores` must hold at least one statistic, got none.")
    if taken := [name for name in scores if name in COUNTS]:
        raise ValueError(f"`scores` must not use the name {taken[0]!r}: it is a count.")
    if unknown := [name for name in arguments if name not in scores]:
        raise ValueError(
            f"`arguments` names {unknown[0]!r}, which is not among `scores`: "
            f"{sorted(scores)}."
        )
    for name, statistic in scores.items():
        if isinstance(statistic, type) or not isinstance(statistic, Statistic):
            raise ValueError(
                f"`scores[{name!r}]` must be a statistic, such as `scores.RMSE()`, got "
                f"{statistic!r}."
            )
        given = arguments.get(name, {})
        try:
            wanted = inspect.signature(statistic.update)
            wanted.bind(None, None, None, None, None, **given)
        except TypeError as error:
            raise ValueError(
                f"`arguments[{name!r}]` must fit the update of "
                f"{type(statistic).__name__}, got {sorted(given)}: {error}."
            ) from None


def _is_array(field: "Data") -> bool:
    import xarray

    return isinstance(field, xarray.DataArray)


def _variables(
    forecast: "Data",
) -> "dict[str, xarray.DataArray]":
    """Return the variables to score, by name, their times as dimensions.

    Raises:
        ValueError: there are none.
    """
    import xarray

    if isinstance(forecast, xarray.DataArray):
        name = str(forecast.name or "forecast")
        return {name: forecast_times(forecast.to_dataset(name=name))[name]}
    dataset = forecast_times(forecast)
    bounds = {values.attrs.get("bounds") for values in dataset.coords.values()}
    names = [name for name in dataset.data_vars if name not in bounds]
    if not names:
        raise ValueError("`forecast` has no variable to score.")
    return {str(name): dataset[name] for name in names}


def _bounds(forecast: "Data") -> dict[str, np.ndarray]:
    """Return the edges of cells that a CF dataset brings, by coordinate."""
    import xarray

    if isinstance(forecast, xarray.DataArray):
        return {}
    named = conventional_names(forecast)
    found = {}
    for name in ("latitude", "longitude"):
        bounds = named[name].attrs.get("bounds") if name in named.coords else None
        if bounds in named:
            found[name] = named[bounds].values
    return found


def _variable(field: "Data", name: str, owner: str) -> "xarray.DataArray":
    """Return the variable of `field` that belongs to `name` of the forecast.

    Raises:
        ValueError: there is none.
    """
    import xarray

    if isinstance(field, xarray.DataArray):
        return field
    if name not in field:
        raise ValueError(
            f"`{owner}` has no variable {name!r} of `forecast`, only "
            f"{sorted(map(str, field.data_vars))}."
        )
    return field[name]


def _report(result: "xarray.Dataset") -> None:
    """Write into `result` how many of its values are NaN, and warn if any is."""
    empty = {
        str(name): int(values.isnull().sum())
        for name, values in result.items()
        if values.isnull().any()
    }
    result.attrs["not_a_number"] = sum(empty.values())
    if empty:
        warnings.warn(
            "Parts of the scorecard are NaN, for want of valid values: "
            + ", ".join(
                f"{count} of {result[name].size} values of {name!r}"
                for name, count in empty.items()
            )
            + ". `count` and `missing` say where.",
            stacklevel=4,
        )
