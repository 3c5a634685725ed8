import sys
from pathlib import Path

import numpy as np
import pytest
import xarray

import skyens.data
from skyens.data import _samples, open_sample, station_positions

FOLDER = Path(skyens.data.__file__).parent / "samples"


def test_era5_eda_is_what_it_says():
    sample = open_sample("era5_eda")
    dims = ("member", "time", "level", "latitude", "longitude")
    assert sample["geopotential"].dims == sample["temperature"].dims == dims
    assert sample["geopotential"].attrs["units"] == "m2 s-2"
    assert sample["temperature"].attrs["units"] == "K"
    assert sample["time"].attrs["standard_name"] == "time"
    hours = np.diff(sample["time"].values) / np.timedelta64(1, "h")
    np.testing.assert_array_equal(hours, [12, 12, 12])
    assert sample["latitude"].values[0] == -90
    assert sample["latitude"].values[-1] == 90
    height = sample["geopotential"].sel(level=500) / 9.80665
    assert 4500 < height.min() < height.max() < 6100  # m, the range the Earth shows
    assert 180 < sample["temperature"].min() < sample["temperature"].max() < 330
    # A pole is one point.
    pole = sample["geopotential"].isel(latitude=[0, -1])
    np.testing.assert_array_equal(pole, pole.isel(longitude=[0] * 120))


def test_ecmwf_ens_is_what_it_says():
    sample = open_sample("ecmwf_ens")
    field = sample["geopotential"]
    assert field.dims == ("member", "latitude", "longitude")
    assert field.shape == (51, 46, 71)
    assert field.attrs["units"] == "m2 s-2"
    assert sample["level"] == 500
    assert sample["lead_time"] == np.timedelta64(96, "h")
    assert sample["forecast_reference_time"] == np.datetime64("2012-09-20")
    assert sample["longitude"].values[[0, -1]].tolist() == [-50, 20]
    height = field / 9.80665
    assert 5000 < height.min() < height.max() < 6100
    # After four days members differ by tens of metres, most where storms are.
    assert 5 < height.std("member").mean() < 60


def test_radiosonde_and_topography_are_what_they_say():
    soundings = open_sample("radiosonde")
    assert soundings["geopotential_height"].dims == ("profile", "level")
    assert soundings["geopotential_height"].attrs["units"] == "m"
    assert soundings["station"].dtype.kind == "U"
    relief = open_sample("topography")["elevation"]
    assert relief.shape == (540, 1080)
    assert relief.attrs["units"] == "m"
    # Mount Everest's cell is high, the Mariana trench's deep, Denver's in between.
    at = lambda latitude, longitude: relief.sel(
        latitude=latitude, longitude=longitude, method="nearest"
    ).item()
    assert at(28, 87) > 4000
    assert at(11.4, 142.3) < -5000
    assert 1400 < at(39.7, 255) < 2500


def test_reports_are_what_they_say():
    synop, sao = open_sample("synop"), open_sample("sao")
    assert synop["temperature"].dims == sao["temperature"].dims == ("obs",)
    assert synop.sizes["obs"] == 7848
    assert sao.sizes["obs"] == 33634
    assert np.unique(sao["station"].values).size == 1415
    assert abs(synop["latitude"]).max() <= 90
    # Warm at the equator, cold at the poles; no quality control was made.
    by = synop["temperature"].groupby_bins("latitude", [-90, -60, -30, 30, 60, 90])
    mean = by.mean()
    assert mean[2] > mean[3] > mean[4]
    assert synop["temperature"].max() > 370
    assert sao["time"].min() >= np.datetime64("1995-03-17T23")
    assert sao["time"].max() < np.datetime64("1995-03-19")


def test_climatologies_are_what_they_say():
    globe, ocean = open_sample("glosea4"), open_sample("coads")
    assert globe["surface_temperature"].shape == (145, 192)
    assert np.isfinite(globe["surface_temperature"]).all()
    assert ocean["temperature"].attrs["units"] == "degC"
    # Where both know the sea, they agree within what seasonal forecasts err.
    there = globe["surface_temperature"].interp(
        latitude=ocean["latitude"], longitude=ocean["longitude"]
    )
    tropics = (there - 273.15 - ocean["temperature"]).sel(latitude=slice(-20, 20))
    assert abs(tropics.median()) < 2
    pressure = ocean["mean_sea_level_pressure"]
    assert 96_000 < pressure.min() < pressure.max() < 105_000


def test_winds_are_what_they_say():
    sample = open_sample("navy_wind")
    east = sample["10m_u_component_of_wind"]
    assert east.dims == ("time", "latitude", "longitude")
    assert east.shape == (132, 37, 72)
    assert east.attrs["units"] == "m s-1"
    assert sample["time"].values[[0, -1]].astype("M8[M]").astype(str).tolist() == [
        "1982-01",
        "1992-12",
    ]
    # Trades blow from the east, the winds of middle latitudes from the west.
    zonal = east.mean(["time", "longitude"])
    assert zonal.sel(latitude=[-15, 15]).max() < -1
    assert zonal.sel(latitude=[-50, 50]).min() > 0.5
    # The monsoon turns over the Arabian Sea.
    north = sample["10m_v_component_of_wind"].sel(latitude=15, longitude=60)
    by_month = north.groupby("time.month").mean()
    assert by_month.sel(month=7) > 3 > -1 > by_month.sel(month=1)


@pytest.mark.parametrize("name", sorted(_samples._SAMPLES))
def test_samples_are_in_memory_and_attributed(name):
    sample = open_sample(name)
    assert sample.attrs["license"]
    assert sample.attrs["attribution"]
    assert all(variable._in_memory for variable in sample.variables.values())
    attribution = (FOLDER / "ATTRIBUTION.md").read_text("utf-8")
    assert f"`{name}`" in attribution
    assert f"`{_samples._SAMPLES[name][0]}`" in attribution


def test_no_file_is_shipped_without_a_name():
    shipped = {path.name for path in FOLDER.glob("*.nc")}
    assert shipped == {file for file, _ in _samples._SAMPLES.values()}


def test_both_engines_read_the_same(monkeypatch):
    expected = open_sample("era5_eda")
    monkeypatch.setattr(_samples, "_netcdf_engine", lambda: "h5netcdf")
    xarray.testing.assert_identical(open_sample("era5_eda"), expected)


def test_stations_are_real_and_unique():
    stations = station_positions()
    latitude, longitude = stations["latitude"].values, stations["longitude"].values
    assert stations.sizes["station"] == len(set(stations["station"].values.tolist()))
    assert len(set(zip(latitude, longitude, strict=True))) == latitude.size > 400
    assert latitude.min() == -90  # Amundsen-Scott
    assert latitude.max() <= 90
    assert longitude.min() >= 0
    assert longitude.max() < 360
    tampa = stations.sel(station="72210")
    assert abs(tampa["latitude"] - 27.7) < 0.1
    assert abs(tampa["longitude"] - (360 - 82.4)) < 0.1


def test_stations_without_position_or_twice_are_left_out(monkeypatch):
    soundings = open_sample("radiosonde").isel(profile=[0, 1, 1, 2, 3, 4]).copy(True)
    latitude = soundings["latitude"].values.copy()
    latitude[3] = np.nan
    soundings["latitude"] = ("profile", latitude, soundings["latitude"].attrs)
    longitude = soundings["longitude"].values.copy()
    latitude[5], longitude[5] = latitude[0], longitude[0]
    soundings["longitude"] = ("profile", longitude, soundings["longitude"].attrs)
    monkeypatch.setattr(_samples, "open_sample", lambda name: soundings)
    expected = soundings["station"].values[[0, 1, 4]]
    np.testing.assert_array_equal(station_positions()["station"], expected)


def test_wrong_use_is_reported(monkeypatch):
    with pytest.raises(ValueError, match=r"one of .*'era5_eda'.*got 'era6'"):
        open_sample("era6")
    monkeypatch.setitem(sys.modules, "netCDF4", None)
    monkeypatch.setattr(_samples, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "skyens\[io\]"'):
        open_sample("era5_eda")
