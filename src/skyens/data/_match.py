"""Fields that verify a forecast: on its points, in its units, at its times."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from skyens.data._fields import check_coordinates
from skyens.data._names import conventional_names
from skyens.data._times import (
    START,
    as_nanoseconds,
    day_and_hour,
    positions,
    rows_of,
    same_times,
    truth_times,
)

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class Times:
    """When forecasts start, and how far they go; of size 1 where it is not known."""

    start_name: str  # `forecast_reference_time`, or `time`, which is the valid time
    start: np.ndarray | None  # datetime64[ns]
    lead: np.ndarray | None  # timedelta64[ns]

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of starts and of lead times."""
        size = lambda times: 1 if times is None else times.size
        return size(self.start), size(self.lead)

    @property
    def valid(self) -> np.ndarray | None:
        """The valid times, `(start, lead)`."""
        if self.start is None:
            return None
        if self.lead is None:
            return self.start[:, None]
        return self.start[:, None] + self.lead[None, :]


def times_of(forecast: "xarray.Dataset | xarray.DataArray") -> Times:
    """Return the times of a forecast that `forecast_times` has named."""
    name = START if START in forecast.dims else "time"
    read = lambda dim: (
        as_nanoseconds(forecast[dim].values) if dim in forecast.dims else None
    )
    return Times(name, read(name), read("lead_time"))


@dataclass(frozen=True)
class Companion:
    """A field read at the starts and lead times of forecasts: truth, climatology.

    `rows` holds, for each dimension of time of `field`, its index at each `(start,
    lead)`, -1 where there is none; it is empty for a field that is the same at all.
    """

    field: "xarray.DataArray"
    rows: Mapping[str, np.ndarray]
    leading: tuple[str, ...]  # dimensions of its own, such as thresholds

    def read(
        self,
        starts: np.ndarray,
        leads: np.ndarray,
        others: Mapping[str, np.ndarray],
        dimensions: Sequence[str],
    ) -> np.ndarray:
        """Return `(*leading, start, lead, *dimensions)` in memory.

        Axes on which it does not depend have size 1. Each time is read once.
        """
        import xarray

        own = {dim: index for dim, index in others.items() if dim in self.field.dims}
        field = self.field.variable.isel(own)
        order = [dim for dim in dimensions if dim in field.dims]
        shape = [field.sizes.get(dim, 1) for dim in dimensions]
        if not self.rows:
            values = field.transpose(*self.leading, *order).values
            lead_shape = values.shape[: len(self.leading)]
            return values.reshape(*lead_shape, 1, 1, *shape)
        sizes = {dim: field.sizes[dim] for dim in self.rows}
        table = [index[np.ix_(starts, leads)] for index in self.rows.values()]
        known = np.all([index >= 0 for index in table], axis=0)
        flat = np.ravel_multi_index(
            [np.where(known, index, 0) for index in table], tuple(sizes.values())
        )
        wanted, inverse = np.unique(flat, return_inverse=True)
        picks = np.unravel_index(wanted, tuple(sizes.values()))
        # Together: one index for each time, not all combinations.
        pick = {
            dim: xarray.Variable("_pick", index)
            for dim, index in zip(sizes, picks, strict=True)
        }
        values = field.isel(pick).transpose(*self.leading, "_pick", *order).values
        lead_shape = values.shape[: len(self.leading)]
        values = values.reshape(*lead_shape, wanted.size, *shape)
        values = np.take(values, inverse.reshape(known.shape), axis=len(lead_shape))
        if not known.all():
            values = np.array(values, np.result_type(values, np.float32))
            values[(slice(None),) * len(lead_shape) + (~known,)] = np.nan
        return values


def companion(
    field: "xarray.DataArray",
    forecast: "xarray.DataArray",
    times: Times,
    name: str,
    *,
    allow_missing: bool,
    truth: bool,
) -> Companion:
    """Return `field` as a companion of `forecast`, after checking that it is one.

    Raises:
        ValueError: dimensions, coordinates, units or times do not match.
    """
    dataset = field.to_dataset(name="_")
    if "dayofyear" in field.dims:
        named, rows = _calendar(dataset, times, name)
    else:
        named, rows = _by_time(
            truth_times(dataset, name), times, name, allow_missing, truth
        )
    field = named["_"]
    points = [str(d) for d in forecast.dims if d not in ("member", *_TIMES)]
    own = [str(dim) for dim in field.dims if dim not in rows]
    leading = tuple(dim for dim in own if dim not in points)
    absent = [dim for dim in points if dim not in own]
    if truth and (leading or absent):
        raise ValueError(
            f"`truth` must have the dimensions {points} of `forecast` besides times, "
            f"it has {own}: select or rename."
        )
    same_points(forecast, field, name)
    same_units(forecast, field, name)
    return Companion(field, rows, leading)


_TIMES = (START, "time", "lead_time")


def _by_time(
    dataset: "xarray.Dataset",
    times: Times,
    name: str,
    allow_missing: bool,
    truth: bool,
) -> tuple["xarray.Dataset", dict[str, np.ndarray]]:
    """Return where each start and lead time stands in `dataset`."""
    dims = dataset["_"].dims
    rows: dict[str, np.ndarray] = {}
    if "lead_time" in dims or START in dims:
        for dim, own, axis in ((START, times.start, 0), ("lead_time", times.lead, 1)):
            if dim not in dims:
                continue
            if own is None or (dim == START and times.start_name != START):
                raise ValueError(
                    f"`{name}` has the dimension {dim!r}, which `forecast` lacks."
                )
            same_times(own, as_nanoseconds(dataset[dim].values), dim, name)
            index = np.arange(own.size)
            shape = (-1, 1) if axis == 0 else (1, -1)
            rows[dim] = np.broadcast_to(index.reshape(shape), times.shape)
    elif "time" in dims:
        valid = times.valid
        if valid is None:
            raise ValueError(
                f"`{name}` has times, but `forecast` has no start and none of validity."
            )
        known = as_nanoseconds(dataset["time"].values)
        rows["time"] = rows_of(valid, known, name, allow_missing=allow_missing)
    elif truth and max(times.shape) > 1:
        raise ValueError(
            "`truth` has no times: it must have `time`, at which it is valid, or the "
            f"starts and lead times of `forecast`; its dimensions are {dims}."
        )
    return dataset, rows


def _calendar(
    dataset: "xarray.Dataset", times: Times, name: str
) -> tuple["xarray.Dataset", dict[str, np.ndarray]]:
    """Return where each valid time stands in a climatology by day of the year."""
    if times.valid is None:
        raise ValueError(f"`{name}` is given by day of the year, `forecast` has none.")
    rows = {}
    for dim, wanted in day_and_hour(times.valid).items():
        if dim in dataset["_"].dims:
            what = f"`{name}` by {dim}"
            if dim in dataset.coords:
                rows[dim] = positions(wanted, dataset[dim].values, what)
            else:
                raise ValueError(f"{what} needs the coordinate {dim!r}.")
    return conventional_names(dataset), rows


def same_points(
    forecast: "xarray.DataArray", field: "xarray.DataArray", name: str
) -> None:
    """Check that `field` has the points of `forecast`, in the same order.

    Raises:
        ValueError: a size or a coordinate differs; the first difference is named.
    """
    for dim in field.dims:
        if dim in forecast.dims and dim not in _TIMES:
            one, other = forecast.sizes[dim], field.sizes[dim]
            if one != other:
                raise ValueError(
                    f"`forecast` and `{name}` do not match: `{dim}` has {one} values "
                    f"in `forecast` and {other} in `{name}`."
                )
    shared = {*map(str, forecast.dims), "latitude", "longitude", "level"}
    shared -= {"member", *_TIMES}
    keep = lambda array: array.drop_vars(
        [coord for coord in array.coords if coord not in shared]
    ).coords.to_dataset()
    try:
        check_coordinates(keep(forecast), keep(field))
    except ValueError as error:
        text = str(error).replace("the first", "`forecast`")
        text = text.replace("the second", f"`{name}`")
        raise ValueError(text) from None


def same_units(
    forecast: "xarray.DataArray", field: "xarray.DataArray", name: str
) -> None:
    """Check that both have the same units, where both say them.

    Raises:
        ValueError: they differ.
    """
    here, there = forecast.attrs.get("units"), field.attrs.get("units")
    if None in (here, there) or units_key(str(here)) == units_key(str(there)):
        return
    if name != "truth" and units_key(str(there)) == ():  # a probability, an index
        return
    of = "" if forecast.name is None else f" of {forecast.name!r}"
    raise ValueError(
        f"`forecast` and `{name}`{of} have different units, {here!r} and {there!r}: "
        "convert one of them."
    )


_UNIT = r"([A-Za-z%°_]+)([-+]?\d*)"
_SYNONYMS = {
    "kelvin": "K", "degk": "K", "degc": "degC", "celsius": "degC", "°c": "degC",
    "degrees_celsius": "degC", "degree_celsius": "degC", "pascal": "Pa",
    "metre": "m", "meter": "m", "metres": "m", "meters": "m", "second": "s",
    "seconds": "s", "percent": "%",
}  # fmt: skip


def units_key(units: str) -> tuple[tuple[str, int], ...]:
    """Return units as powers, the same for `m2 s-2`, `m**2 s**-2` and `m^2/s^2`."""
    powers: dict[str, int] = {}
    text = units.replace("**", "").replace("^", "")
    for i, part in enumerate(text.split("/")):
        if re.sub(_UNIT, "", part).strip(" .") not in ("", "1"):  # with a factor
            return ((units, 1),)
        for found in re.finditer(_UNIT, part):
            base, power = str(found[1]), found[2]
            base = _SYNONYMS.get(base.lower(), base)
            signed = int(power or 1) * (-1 if i else 1)
            powers[base] = powers.get(base, 0) + signed
    return tuple(sorted((base, power) for base, power in powers.items() if power))
