"""Names: what coordinates and variables are called here, and their CF attributes."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray

COORDINATE_ATTRIBUTES: dict[str, dict[str, str]] = {
    "latitude": {
        "standard_name": "latitude",
        "long_name": "latitude",
        "units": "degrees_north",
        "axis": "Y",
    },
    "longitude": {
        "standard_name": "longitude",
        "long_name": "longitude",
        "units": "degrees_east",
        "axis": "X",
    },
    "member": {
        "standard_name": "realization",
        "long_name": "ensemble member",
        "units": "1",
        "axis": "E",
    },
    "level": {
        "standard_name": "air_pressure",
        "long_name": "pressure",
        "units": "hPa",
        "positive": "down",
        "axis": "Z",
    },
    # Their units (hours since ...) are set where they are encoded.
    "time": {"standard_name": "time", "long_name": "time", "axis": "T"},
    "valid_time": {"standard_name": "time", "long_name": "time of validity"},
    "lead_time": {
        "standard_name": "forecast_period",
        "long_name": "time since the start of the forecast",
    },
    "forecast_reference_time": {
        "standard_name": "forecast_reference_time",
        "long_name": "start of the forecast",
    },
}

_VARIABLES: dict[str, tuple[str, str]] = {  # name: (CF standard name, SI units)
    "geopotential": ("geopotential", "m2 s-2"),
    "geopotential_height": ("geopotential_height", "m"),
    "temperature": ("air_temperature", "K"),
    "u_component_of_wind": ("eastward_wind", "m s-1"),
    "v_component_of_wind": ("northward_wind", "m s-1"),
    "specific_humidity": ("specific_humidity", "1"),
    "vorticity": ("atmosphere_relative_vorticity", "s-1"),
    "streamfunction": ("atmosphere_horizontal_streamfunction", "m2 s-1"),
    "mean_sea_level_pressure": ("air_pressure_at_mean_sea_level", "Pa"),
}

_ALIASES = {
    "latitude": ("lat",),
    "longitude": ("lon",),
    "member": ("number", "realization", "ensemble", "ens"),
    "level": ("isobaricInhPa", "pressure_level", "plev"),
    "lead_time": ("prediction_timedelta", "step", "forecast_period"),
}


def conventional_names(dataset: "xarray.Dataset") -> "xarray.Dataset":
    """Return `dataset` with its coordinates called as this library calls them.

    `latitude`, `longitude`, `member`, `level` and `lead_time` are found by their CF
    `standard_name` (`realization`, `air_pressure`, `forecast_period`) or by a common
    name (`lat`, `number`, `isobaricInhPa`, `prediction_timedelta`, ...); what already
    has such a name keeps it. Values, units and order stay as they are.

    Raises:
        ValueError: two coordinates would get the same name.
    """
    new_names: dict[Any, str] = {}
    for name, aliases in _ALIASES.items():
        if name in dataset.coords or name in dataset.dims:
            continue
        standard = COORDINATE_ATTRIBUTES[name]["standard_name"]
        found = [
            old
            for old in dict.fromkeys([*dataset.coords, *dataset.dims])
            if old in aliases
            or (
                old in dataset.coords
                and dataset[old].attrs.get("standard_name") == standard
            )
        ]
        if len(found) > 1:
            raise ValueError(
                f"`dataset` has {len(found)} coordinates that could be {name!r}: "
                f"{found}; rename the right one to {name!r}."
            )
        new_names |= {old: name for old in found}
    return dataset.rename(new_names)


def usual_name(name: str) -> str:
    """Return what a dimension called `name` is called here: `level` for `plev`."""
    for usual, aliases in _ALIASES.items():
        if name in (*aliases, COORDINATE_ATTRIBUTES[usual]["standard_name"]):
            return usual
    return name


def variable_attributes(name: str, units: str | None = None) -> dict[str, str]:
    """Return the CF attributes of the variable `name`; `units` overrule the usual.

    A level may follow the name: `geopotential_500` is a geopotential.

    Raises:
        ValueError: `name` is unknown and `units` are missing.
    """
    stem = split_level(name)[0] if name not in _VARIABLES else name
    standard_name, usual = _VARIABLES.get(stem, (None, None))
    if (units := units or usual) is None:
        known = ", ".join(_VARIABLES)
        raise ValueError(
            f"`units` must give the units of {name!r}; known without it: {known}."
        )
    attributes = {"long_name": name.replace("_", " "), "units": units}
    if standard_name is not None:
        attributes["standard_name"] = standard_name
    return attributes


def split_level(name: str) -> tuple[str, float | None]:
    """Split `geopotential_500` into `geopotential` and 500 (None without a level)."""
    stem, _, end = name.rpartition("_")
    return (stem, float(end)) if stem and end.isdecimal() else (name, None)
