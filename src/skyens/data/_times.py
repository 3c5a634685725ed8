"""Times of forecasts and of what verifies them: starts, lead times, valid times."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from skyens.data._fields import shown
from skyens.data._names import conventional_names

if TYPE_CHECKING:
    import xarray

START = "forecast_reference_time"
STARTS = ("init_time", "initial_time", "reference_time", "start_time", "issue_time")
_UNITS = {"days": "D", "hours": "h", "minutes": "m", "seconds": "s"}


def forecast_times(dataset: "xarray.Dataset") -> "xarray.Dataset":
    """Return a forecast whose times are the dimensions it is iterated over.

    With a lead time they are `forecast_reference_time` and `lead_time`, whatever their
    names were: `init_time`, or the `time` beside a `prediction_timedelta` or `step`.
    Without, `time` is the time of validity. A scalar becomes a dimension of size 1.

    Raises:
        ValueError: two coordinates could be the start, a start has no lead time, or
            times are not `datetime64` and `timedelta64`.
    """
    dataset = conventional_names(dataset)
    starts = _start_names(dataset)
    if "lead_time" not in _names(dataset):
        if starts and "time" not in _names(dataset):
            raise ValueError(
                f"`forecast` has the start {starts[0]!r} but no lead time: assign it, "
                "`forecast.assign_coords(lead_time=np.timedelta64(24, 'h'))`."
            )
        return _dimension(_valid_time(dataset), "time", "forecast")
    if not starts and "time" in _names(dataset):
        starts = ["time"]
    if len(starts) > 1:
        raise ValueError(
            f"`forecast` has {len(starts)} coordinates that could be its start: "
            f"{starts}; rename the right one to {START!r}."
        )
    for old in starts:
        dataset = dataset.drop_vars(START, errors="ignore") if old != START else dataset
        dataset = dataset.rename({old: START}) if old != START else dataset
        dataset = _dimension(dataset, START, "forecast")
    return _dimension(_lead_as_timedelta(dataset), "lead_time", "forecast")


def truth_times(dataset: "xarray.Dataset", name: str) -> "xarray.Dataset":
    """Return what verifies a forecast, on starts and lead times or on valid `time`.

    Raises:
        ValueError: as `forecast_times`.
    """
    named = conventional_names(dataset)
    if "lead_time" in _names(named):
        return forecast_times(named)
    return _dimension(_valid_time(named), "time", name)


def same_times(
    first: np.ndarray, second: np.ndarray, dimension: str, name: str
) -> None:
    """Check that `name` has the times that the forecast has.

    Raises:
        ValueError: it has not; the message names the first difference.
    """
    if first.size != second.size:
        raise ValueError(
            f"`forecast` and `{name}` do not match: `{dimension}` has {first.size} "
            f"values in `forecast` and {second.size} in `{name}`."
        )
    if np.any(other := first != second):
        i = int(np.argmax(other))
        raise ValueError(
            f"`forecast` and `{name}` do not match: `{dimension}` at index {i} is "
            f"{shown(first[i])} in `forecast` and {shown(second[i])} in `{name}`."
        )


def rows_of(
    wanted: np.ndarray, known: np.ndarray, name: str, *, allow_missing: bool
) -> np.ndarray:
    """Return where each of the times `wanted` stands in `known`, -1 where it does not.

    Raises:
        ValueError: times are missing and may not be, or `known` has one twice.
    """
    order = np.argsort(known, kind="stable")
    ordered = known[order]
    if np.any(twice := ordered[1:] == ordered[:-1]):
        raise ValueError(
            f"`{name}` has the time {shown(ordered[int(np.argmax(twice))])} more than "
            "once."
        )
    place = np.clip(np.searchsorted(ordered, wanted), 0, known.size - 1)
    found = ordered[place] == wanted
    if not (found.all() or allow_missing):
        absent = np.unique(wanted[~found])
        raise ValueError(
            f"`{name}` lacks {absent.size} of the {np.unique(wanted).size} times at "
            f"which the forecasts are valid, the first {shown(absent[0])}; leave those"
            " forecasts out, or pass `allow_missing=True` to count them as missing."
        )
    return np.where(found, order[place], -1)


def block_starts(
    starts: np.ndarray, blocks: "int | str | xarray.DataArray | None"
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the labels of the blocks of time and the indices of the starts in each.

    Raises:
        ValueError: `blocks` is no such choice, or labels do not fit the starts.
    """
    everything = np.arange(starts.size)
    if blocks is None:
        return starts[:1], [everything]
    if isinstance(blocks, int):
        if blocks < 1:
            raise ValueError(f"`blocks` must be at least 1 start, got {blocks}.")
        groups = np.split(everything, everything[blocks::blocks])
        return starts[::blocks], groups
    if isinstance(blocks, str):
        unit = {"day": "D", "month": "M", "year": "Y"}.get(blocks)
        if unit is None:
            raise ValueError(
                "`blocks` must be a number of starts, 'day', 'month', 'year', or "
                f"labels of the starts, got {blocks!r}."
            )
        if starts.dtype.kind != "M":
            raise ValueError(f"`blocks={blocks!r}` needs forecasts with times.")
        labels = starts.astype(f"datetime64[{unit}]").astype("datetime64[ns]")
    else:
        labels = np.asarray(blocks)
        if labels.shape != starts.shape:
            raise ValueError(
                f"`blocks` must have one label for each of the {starts.size} starts, "
                f"got the shape {labels.shape}."
            )
    known, which = np.unique(labels, return_inverse=True)
    return known, [np.flatnonzero(which == i) for i in range(known.size)]


def _names(dataset: "xarray.Dataset") -> list[str]:
    return [str(name) for name in dict.fromkeys([*dataset.dims, *dataset.coords])]


def _start_names(dataset: "xarray.Dataset") -> list[str]:
    names = _names(dataset)
    if START in names:
        return [START]
    standard = lambda name: (
        name in dataset.coords and dataset[name].attrs.get("standard_name") == START
    )
    return [name for name in names if name in STARTS or standard(name)]


def _valid_time(dataset: "xarray.Dataset") -> "xarray.Dataset":
    """Return `dataset` with its time of validity, if it has one, called `time`."""
    names = _names(dataset)
    if "time" in names or "valid_time" not in names:
        return dataset
    return dataset.rename({"valid_time": "time"})


def _lead_as_timedelta(dataset: "xarray.Dataset") -> "xarray.Dataset":
    """Return `dataset` with lead times as `timedelta64`, converted by their units."""
    lead = dataset["lead_time"]
    if "lead_time" not in dataset.coords or lead.dtype.kind not in "iuf":
        return dataset
    unit = _UNITS.get(str(lead.attrs.get("units", "")).rstrip("s") + "s")
    if unit is None:
        raise ValueError(
            f"`lead_time` must be timedelta64 or have units of {', '.join(_UNITS)}, "
            f"got {lead.dtype} with the units {lead.attrs.get('units')!r}."
        )
    step = np.timedelta64(1, unit).astype("timedelta64[ns]")
    values = np.rint(lead.values * step.astype(np.int64)).astype(np.int64)
    return dataset.assign_coords(
        lead_time=(lead.dims, values.astype("timedelta64[ns]"))
    )


def _dimension(dataset: "xarray.Dataset", name: str, owner: str) -> "xarray.Dataset":
    """Return `dataset` with the times `name`, if it has them, as a dimension."""
    if name not in dataset.coords:
        if name in dataset.dims:
            raise ValueError(f"`{owner}` has the dimension {name!r} without times.")
        return dataset
    times = dataset[name]
    kind = "m" if name == "lead_time" else "M"
    if times.dtype.kind != kind:
        wish = "timedelta64" if kind == "m" else "datetime64"
        raise ValueError(f"`{name}` of `{owner}` must be {wish}, got {times.dtype}.")
    if np.isnat(times.values).any():
        raise ValueError(f"`{name}` of `{owner}` has times that are missing (NaT).")
    if times.ndim == 0:
        return dataset.expand_dims(name)
    if times.ndim > 1:
        raise ValueError(
            f"`{name}` of `{owner}` must be a vector, got the dimensions {times.dims}."
        )
    if times.dims != (name,):
        return dataset.swap_dims({times.dims[0]: name})
    return dataset


def as_nanoseconds(times: Any) -> np.ndarray:
    """Return times or time differences in one unit, so that they compare exactly."""
    times = np.asarray(times)
    return times.astype("datetime64[ns]" if times.dtype.kind == "M" else "m8[ns]")


def day_and_hour(times: np.ndarray) -> dict[str, np.ndarray]:
    """Return the day of the year, 1 to 366, and the hour of each time."""
    day = times.astype("datetime64[D]")
    year = times.astype("datetime64[Y]")
    number = (day - year.astype("datetime64[D]")).astype(np.int64) + 1
    return {
        "dayofyear": number,
        "hour": (times - day).astype("timedelta64[h]").astype(np.int64),
    }


def positions(
    wanted: np.ndarray, known: Sequence[Any] | np.ndarray, what: str
) -> np.ndarray:
    """Return where each of `wanted` stands in `known`.

    Raises:
        ValueError: one does not.
    """
    known = np.asarray(known)
    if np.any(absent := ~np.isin(wanted, known)):
        raise ValueError(f"{what} lacks {wanted[absent].flat[0]}, which is wanted.")
    order = np.argsort(known)
    return order[np.searchsorted(known[order], wanted)]
