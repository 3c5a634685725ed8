"""Station tables: from labelled reports to observations, also hour by hour."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Array, Float

from skyens.data._fields import shown
from skyens.data._names import conventional_names
from skyens.data._times import as_nanoseconds
from skyens.observations import Diagonal, Error, Observation

if TYPE_CHECKING:
    import xarray

_UNITS: dict[str, tuple[str, float, float]] = {  # units: (SI, factor, offset)
    "K": ("K", 1.0, 0.0),
    "kelvin": ("K", 1.0, 0.0),
    "degC": ("K", 1.0, 273.15),
    "degree_Celsius": ("K", 1.0, 273.15),
    "celsius": ("K", 1.0, 273.15),
    "degF": ("K", 5 / 9, 459.67 * 5 / 9),
    "Pa": ("Pa", 1.0, 0.0),
    "hPa": ("Pa", 100.0, 0.0),
    "mbar": ("Pa", 100.0, 0.0),
    "m": ("m", 1.0, 0.0),
    "km": ("m", 1000.0, 0.0),
    "mm": ("m", 1e-3, 0.0),
    "m s-1": ("m s-1", 1.0, 0.0),
    "m/s": ("m s-1", 1.0, 0.0),
    "km h-1": ("m s-1", 1 / 3.6, 0.0),
    "knot": ("m s-1", 1852 / 3600, 0.0),
    "degree": ("degree", 1.0, 0.0),
    "degrees": ("degree", 1.0, 0.0),
    "m2 s-2": ("m2 s-2", 1.0, 0.0),
    "kg kg-1": ("1", 1.0, 0.0),
    "g kg-1": ("1", 1e-3, 0.0),
    "1": ("1", 1.0, 0.0),
    "%": ("1", 0.01, 0.0),
}

_HALF_AN_HOUR = np.timedelta64(30, "m")
_ELEVATION = ("elevation", "station_height", "altitude", "surface_altitude", "height")


def station_observation(
    table: "xarray.Dataset",
    variable: str,
    *,
    operator: Callable[[dict[str, Float[Array, "..."]]], Callable[[Any], Array]],
    error: Error | float,
    width: int | None = None,
) -> Observation:
    """Return the observation of one variable of a table of stations.

    Values are converted to SI by their `units` (K, Pa, m, m s-1, 1; directions stay in
    degrees), NaN is masked, and the observation knows where its stations are.

    Args:
        table: a dataset with one dimension, whatever its name, and latitude, longitude
            and perhaps elevation along it, as coordinates or variables: found by name
            or by their CF `standard_name`.
        variable: the name of what was measured.
        operator: `operator(coordinates)` makes the observation operator from
            `latitude`, `longitude` (degrees) and, if the table has it, `elevation` (m):
            `lambda place: Interpolate(grid, place["latitude"], place["longitude"])`.
        error: law of the errors, or their standard deviation in SI units.
        width: number of entries to fill up to, masked and at NaN: tables of different
            lengths then have one shape. As many as there are stations if left out.

    Raises:
        ValueError: the variable, its units or a coordinate is missing or unknown, the
            table has not exactly one dimension, a latitude lies outside [-90, 90], a
            value has no place, or there are more stations than `width`.
    """
    import jax.numpy as jnp

    table = _named(table)
    values = si_values(table, variable)
    if values.ndim != 1:
        raise ValueError(
            f"`table[{variable!r}]` must have one dimension, got "
            f"{table[variable].dims}; select a time first."
        )
    places = {name: _along(table, name, variable) for name in _coordinates_of(table)}
    _check_places(places, values, variable)
    number = values.size
    width = number if width is None else width
    if number > width:
        raise ValueError(
            f"`table` has {number} stations, which is more than the width of {width}."
        )
    fill = lambda x: jnp.asarray(np.pad(x, (0, width - number), constant_values=np.nan))
    coordinates = {name: fill(place) for name, place in places.items()}
    law = Diagonal(float(error)) if isinstance(error, int | float) else error
    return Observation(
        fill(values), operator(coordinates), law, coordinates=coordinates
    )


def station_windows(
    table: "xarray.Dataset",
    variables: str | Sequence[str],
    times: Any,
    *,
    before: np.timedelta64 = _HALF_AN_HOUR,
    after: np.timedelta64 = _HALF_AN_HOUR,
    width: int | None = None,
    outside: bool = False,
) -> "xarray.Dataset":
    """Sort the reports of many stations into windows of time: `(time, station)`.

    Each station has one column, so that arrays of one shape can be stacked, scanned and
    compared from time to time. Of several reports of a station in one window the latest
    that has a value counts, for each variable apart. Values are in SI units, NaN where
    there is none.

    Args:
        table: reports along one dimension, with `station` (identifiers), `time`,
            latitude, longitude and perhaps elevation.
        variables: names of what to keep.
        times: of the analyses, rising, `datetime64`.
        before: how long before an analysis its window begins, and
        after: how long after it ends; a report at the very beginning is not in it.
        width: number of columns, filled up with stations named `""` at NaN. As many as
            there are stations if left out.
        outside: leave out reports that lie in no window; an error otherwise.

    Raises:
        ValueError: a name, units or a coordinate is missing, `times` do not rise,
            windows overlap, reports lie in no window, a station moves by more than 0.1
            degrees, a latitude lies outside [-90, 90], or there are more stations than
            `width`.
    """
    import xarray

    names = [variables] if isinstance(variables, str) else list(variables)
    table = _named(table)
    times = as_nanoseconds(times)
    before, after = (np.timedelta64(w).astype("m8[ns]") for w in (before, after))
    if times.ndim != 1 or np.any(np.diff(times) <= np.timedelta64(0)):
        raise ValueError("`times` must be a vector that rises.")
    if np.any(np.diff(times) < before + after):
        raise ValueError(
            "windows overlap: `before` + `after` is longer than the step of `times`."
        )
    for name in ("station", "time"):
        if name not in table.variables:
            raise ValueError(
                f"`table` has no {name!r}, only {sorted(map(str, table.variables))}."
            )
    seen = as_nanoseconds(table["time"].values)
    window = np.searchsorted(times + after, seen)  # the first that ends no earlier
    inside = window < times.size
    inside &= seen > times[np.minimum(window, times.size - 1)] - before
    if not outside and (count := int(np.sum(~inside))):
        raise ValueError(
            f"`table` has {count} of {seen.size} reports outside of all windows, the "
            f"first at {shown(seen[~inside][0])}; `outside=True` leaves them out."
        )
    station, column = np.unique(table["station"].values[inside], return_inverse=True)
    width = station.size if width is None else width
    if station.size > width:
        raise ValueError(
            f"`table` has {station.size} stations, {station.size - width} more than "
            f"the width of {width}."
        )
    window, seen = window[inside], seen[inside]
    order = np.argsort(seen, kind="stable")  # of those at one place the last is kept
    coordinates = {}
    for name in _coordinates_of(table):
        whole = _along(table, name, names[0])[inside]
        first = np.full(width, np.nan)
        known = np.flatnonzero(np.isfinite(whole))[::-1]
        first[column[known]] = whole[known]
        coordinates[name] = first
        turn = np.abs(whole - first[column])
        if name != "elevation" and np.any(moved := np.minimum(turn, 360 - turn) > 0.1):
            raise ValueError(
                f"station {str(station[column[moved][0]])!r} moves: its {name} is "
                f"{first[column[moved][0]]:g} and {whole[moved][0]:g}; give each place "
                "a name of its own."
            )
    fields = {}
    for name in names:
        values = si_values(table, name)[inside]
        if name == names[0]:
            latitude = {"latitude": coordinates["latitude"][column]}
            longitude = {"longitude": coordinates["longitude"][column]}
            _check_places(latitude | longitude, values, name)
        filled = order[np.isfinite(values[order])]
        stacked = np.full((times.size, width), np.nan)
        stacked[window[filled], column[filled]] = values[filled]
        attributes = dict(table[name].attrs) | {"units": _si_units(table, name)}
        fields[name] = (("time", "station"), stacked, attributes)
    identifiers = np.concatenate([station, np.full(width - station.size, "")])
    along = {name: ("station", where) for name, where in coordinates.items()}
    return xarray.Dataset(
        fields, {"time": times, "station": identifiers, **along}, dict(table.attrs)
    )


def si_values(table: "xarray.Dataset", variable: str) -> np.ndarray:
    """Return a variable in SI units, in its own precision.

    Raises:
        ValueError: it is missing, or has no or unknown units.
    """
    _si_units(table, variable)
    values = table[variable].values
    if values.dtype.kind not in "fiu":
        raise ValueError(f"`{variable}` must hold numbers, got {values.dtype}.")
    values = values if values.dtype.kind == "f" else values.astype(np.float64)
    _, factor, offset = _UNITS[str(table[variable].attrs["units"])]
    return values * values.dtype.type(factor) + values.dtype.type(offset)


def _si_units(table: "xarray.Dataset", variable: str) -> str:
    if variable not in table.variables:
        raise ValueError(
            f"`table` has no variable {variable!r}, only {sorted(map(str, table))}."
        )
    units = table[variable].attrs.get("units")
    if units is None:
        raise ValueError(
            f"`{variable}` has no units; set them: table[{variable!r}].attrs['units'] "
            "= 'K', say."
        )
    if str(units) not in _UNITS:
        raise ValueError(
            f"`{variable}` has the unknown units {units!r}; known are "
            f"{', '.join(_UNITS)}."
        )
    return _UNITS[str(units)][0]


def _named(table: "xarray.Dataset") -> "xarray.Dataset":
    """Return the table with its places as coordinates under the usual names."""
    places = [
        name
        for name in table.data_vars
        if name in ("lat", "lon", "latitude", "longitude", "time", "station")
        or name in _ELEVATION
        or table[name].attrs.get("standard_name") in ("latitude", "longitude")
    ]
    table = conventional_names(table.set_coords(places))
    if "elevation" not in table.coords:
        other = [name for name in _ELEVATION if name in table.coords]
        table = table.rename({other[0]: "elevation"}) if other else table
    for name in ("latitude", "longitude"):
        if name not in table.coords:
            raise ValueError(
                f"`table` has no {name}, only the coordinates "
                f"{sorted(map(str, table.coords))}; rename yours, or give it the CF "
                f"standard_name {name!r}."
            )
    return table


def _coordinates_of(table: "xarray.Dataset") -> list[str]:
    return ["latitude", "longitude"] + ["elevation"] * ("elevation" in table.coords)


def _along(table: "xarray.Dataset", name: str, variable: str) -> np.ndarray:
    """Return a coordinate along the stations, float64."""
    if table[name].dims != table[variable].dims:
        raise ValueError(
            f"`{name}` must lie along {table[variable].dims}, the dimensions of "
            f"{variable!r}, got {table[name].dims}."
        )
    return table[name].values.astype(np.float64)


def _check_places(
    places: Mapping[str, np.ndarray], values: np.ndarray, variable: str
) -> None:
    """Check that latitudes are possible, and that each value has a place.

    Raises:
        ValueError: one is not, or one has none.
    """
    latitude = places["latitude"]
    if count := int(np.sum(wrong := np.abs(latitude) > 90 + 1e-6)):
        raise ValueError(
            f"`latitude` must lie in [-90, 90] degrees: {count} of {latitude.size} do "
            f"not, the first, number {np.argmax(wrong)}, is {latitude[wrong][0]:g}."
        )
    somewhere = np.isfinite(latitude) & np.isfinite(places["longitude"])
    if count := int(np.sum(lost := np.isfinite(values) & ~somewhere)):
        raise ValueError(
            f"{count} values of `{variable}` have no place, the first is number "
            f"{np.argmax(lost)}; leave them out."
        )
