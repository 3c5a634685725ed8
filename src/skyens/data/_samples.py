"""Samples: small real data sets that are shipped with the package."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from skyens.data._names import COORDINATE_ATTRIBUTES, conventional_names

if TYPE_CHECKING:
    import xarray

_REPORTS = {
    "t2m": "temperature",
    "td2m": "dew_point_temperature",
    "slp": "mean_sea_level_pressure",
    "station_height": "elevation",
}

_SAMPLES: dict[str, tuple[str, dict[str, str]]] = {  # name: (file, new names)
    "coads": (
        "coads_november.nc",
        {"slp": "mean_sea_level_pressure", "airt": "temperature"},
    ),
    "ecmwf_ens": (
        "ecmwf_ens_z500.nc",
        {"z": "geopotential", "init_time": "forecast_reference_time"},
    ),
    "era5_eda": (
        "era5_eda_members_3deg.nc",
        {"z": "geopotential", "t": "temperature"},
    ),
    "glosea4": ("glosea4_november.nc", {"ts": "surface_temperature"}),
    "navy_wind": (
        "navy_wind_monthly_5deg.nc",
        {"u10": "10m_u_component_of_wind", "v10": "10m_v_component_of_wind"},
    ),
    "radiosonde": (
        "radiosonde_20081208T12.nc",
        {
            "gph": "geopotential_height",
            "t": "temperature",
            "td": "dew_point_temperature",
        },
    ),
    "sao": ("sao_stations_19950318.nc", _REPORTS),
    "synop": ("synop_20181102T12.nc", _REPORTS | {"ps": "surface_pressure"}),
    "topography": ("topography_20min.nc", {}),
}


def open_sample(name: str) -> "xarray.Dataset":
    """Return one of the data sets that are shipped with the package, in memory.

    - `"coads"`: air temperature (degC) and pressure at sea level (Pa) over the oceans
      in November, a climatology of ships' reports of 1946 to 1989, `(latitude,
      longitude)`: 90 x 180 points every 2 degrees, NaN where no ship went.
    - `"ecmwf_ens"`: geopotential at 500 hPa (m2 s-2) of the 51 members of an ECMWF
      forecast (member 0 is the control), four days from 20 September 2012, 00 UTC,
      `(member, latitude, longitude)`: 46 x 71 points every degree over the North
      Atlantic and Europe, longitude from -50 to 20.
    - `"era5_eda"`: geopotential (m2 s-2) and temperature (K) of the ten members of
      ERA5's ensemble of data assimilations (member 0 is the control),
      `(member, time, level, latitude, longitude)`: 00 and 12 UTC of 1 and 2 January
      2017, 850 and 500 hPa (in this order: select levels by value), 61 x 120 points
      every 3 degrees with both poles.
    - `"glosea4"`: surface temperature (K) in November, the mean of 13 seasonal
      forecasts of July 2011 for November 2011, `(latitude, longitude)`: 145 x 192
      points with both poles. For want of an observed one, a climatology of the globe.
    - `"navy_wind"`: monthly means of the wind 10 m above the surface (m s-1) by the
      analyses of the US Navy, 1982 to 1992, `(time, latitude, longitude)`: 37 x 72
      points every 5 degrees with both poles, `time` the first day of each month.
    - `"radiosonde"`: 420 soundings of the whole globe on 8 December 2008, 12 UTC,
      `(profile, level)`, where `level` is the order of report and NaN is missing.
    - `"sao"`: 33,634 hourly reports of 1,415 stations, most in North America, on 18
      March 1995, `(obs,)`: temperature and dew point (K), pressure at sea level (Pa)
      and wind (m s-1, degree), with `station`, `time` and `elevation` (m).
    - `"synop"`: 7,848 surface reports of the whole globe on 2 November 2018, 12 UTC,
      `(obs,)`: as `"sao"`, and the pressure at the station (Pa). No quality control was
      made: gross errors are in it.
    - `"topography"`: height of land above and of the sea floor below the sea (m), on
      540 x 1080 cells of 20 minutes, `(latitude, longitude)`.

    Latitude runs from south to north, longitude east, from Greenwich (0 to 360 degrees)
    where the whole globe is covered; times are UTC. Each has `license` and
    `attribution` among its attributes, which anyone who publishes the data has to
    repeat; `ATTRIBUTION.md` beside the files says more.

    Raises:
        ValueError: there is no such sample.
        ImportError: no package that reads netCDF-4 is installed.
    """
    if name not in _SAMPLES:
        raise ValueError(f"`name` must be one of {sorted(_SAMPLES)}, got {name!r}.")
    import xarray

    file, new_names = _SAMPLES[name]
    path = Path(__file__).parent / "samples" / file
    dataset = xarray.load_dataset(path, engine=_netcdf_engine())
    dataset = conventional_names(dataset).rename(new_names)
    if name == "ecmwf_ens":
        lead_time = dataset["lead_hours"].values * np.timedelta64(
            3_600_000_000_000, "ns"
        )
        dataset = dataset.drop_vars("lead_hours").transpose("member", ...)
        dataset = dataset.assign_coords(lead_time=lead_time, level=500.0)
        for coordinate in ("lead_time", "level", "forecast_reference_time"):
            dataset[coordinate].attrs |= COORDINATE_ATTRIBUTES[coordinate]
    if name == "era5_eda":  # the source calls the time of an analysis its start
        dataset["time"].attrs |= {"standard_name": "time", "long_name": "time"}
    if name in ("radiosonde", "sao", "synop"):  # fixed-width bytes
        dataset["station"] = dataset["station"].astype(str)
    return dataset


def station_positions() -> "xarray.Dataset":
    """Return where the radiosonde stations of the sample stand, one entry each.

    Coordinates `latitude` (degrees north), `longitude` (degrees east, 0 to 360) and
    `station_height` (m) along the dimension `station`, which holds the identifiers of
    the World Meteorological Organization. Of stations at the same position, and of
    reports of the same station, the first is kept; those without a position are
    left out.

    Raises:
        ImportError: no package that reads netCDF-4 is installed.
    """
    import xarray

    soundings = open_sample("radiosonde")
    # One station is given as -90.00000000000001 degrees north.
    latitude = np.clip(soundings["latitude"].values, -90, 90)
    longitude = soundings["longitude"].values % 360
    positions = np.stack([latitude, longitude], axis=1)
    rows = np.flatnonzero(np.isfinite(positions).all(axis=1))
    for key in (soundings["station"].values, positions):
        first = np.unique(key[rows], axis=0, return_index=True)[1]
        rows = rows[np.sort(first)]
    height = {"long_name": "height above the sea", "units": "m"}
    return xarray.Dataset(
        coords={
            "station": soundings["station"].values[rows],
            "latitude": ("station", latitude[rows], soundings["latitude"].attrs),
            "longitude": ("station", longitude[rows], soundings["longitude"].attrs),
            "station_height": (
                "station",
                soundings["station_height"].values[rows],
                height,
            ),
        },
        attrs=soundings.attrs,
    )


def _netcdf_engine() -> str:
    """Return the name of an installed engine of xarray that reads netCDF-4."""
    if find_spec("netCDF4"):
        return "netcdf4"
    if find_spec("h5netcdf") and find_spec("h5py"):
        return "h5netcdf"
    raise ImportError(
        "Reading the samples needs netCDF4, or h5netcdf with h5py: "
        'pip install "skyens[io]"'
    )
