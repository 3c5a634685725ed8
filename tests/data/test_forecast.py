import jax.numpy as jnp
import numpy as np
import pytest

from skyens import sphere
from skyens.data import forecast_dataset, from_xarray, grid_of

GRID = sphere.equiangular(5, 8)
LEAD = np.arange(1, 4) * np.timedelta64(12, "h")


def forecast(**changes):
    members = jnp.arange(2 * 3 * 40.0, dtype=jnp.float32).reshape(2, 3, 5, 8)
    arguments = {
        "fields": {"geopotential_height": members, "temperature": members[0]},
        "grid": GRID,
        "start": "2017-01-01T12",
        "lead_time": LEAD,
        "level": 500,
        "attributes": {"title": "a test"},
    }
    return forecast_dataset(**(arguments | changes))


def test_a_forecast_says_who_when_and_where():
    dataset = forecast()
    height = dataset["geopotential_height"]
    assert height.dims == ("member", "lead_time", "latitude", "longitude")
    assert height.dtype == np.float32
    assert height.attrs["standard_name"] == "geopotential_height"
    assert height.attrs["units"] == "m"
    assert dataset["temperature"].dims == ("lead_time", "latitude", "longitude")
    assert dataset["valid_time"].values[1] == np.datetime64("2017-01-02T12")
    assert dataset["forecast_reference_time"] == np.datetime64("2017-01-01T12")
    assert dataset["member"].values.tolist() == [0, 1]
    assert dataset["level"] == 500
    assert dataset.attrs["title"] == "a test"
    assert dataset.attrs["Conventions"].startswith("CF-")
    assert grid_of(dataset) == GRID
    array = from_xarray(height, ("member", "lead_time"), grid=GRID)
    assert array[1, 2, 4, 7] == 239
    standard = {
        "latitude": "latitude",
        "longitude": "longitude",
        "member": "realization",
        "level": "air_pressure",
        "lead_time": "forecast_period",
        "valid_time": "time",
        "forecast_reference_time": "forecast_reference_time",
    }
    for name, standard_name in standard.items():
        assert dataset[name].attrs["standard_name"] == standard_name
    assert dataset["latitude"].attrs["units"] == "degrees_north"
    assert dataset["longitude"].attrs["units"] == "degrees_east"


def test_failed_members_stay_as_nan_and_members_may_be_named():
    fields = {"tracer": jnp.full((2, 3, 5, 8), jnp.nan)}
    dataset = forecast(fields=fields, member=[7, 3], units={"tracer": "1"})
    assert dataset["tracer"].isnull().all()
    assert dataset["tracer"].attrs["units"] == "1"
    assert dataset["member"].values.tolist() == [7, 3]


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match=r"vector of numpy.timedelta64 .* got int64"):
        forecast(lead_time=[12, 24, 36])
    with pytest.raises(ValueError, match="`lead_time` must rise"):
        forecast(lead_time=LEAD[::-1])
    with pytest.raises(ValueError, match=r"\('lead_time',\) of sizes \(2,\)|sizes"):
        forecast(lead_time=LEAD[:2])
    with pytest.raises(ValueError, match="`start` must be a time, got 'NaT'"):
        forecast(start="NaT")
    with pytest.raises(ValueError, match=r"at least one field, .* got \{\}"):
        forecast(fields={})
    field = jnp.zeros((2, 3, 5, 8))
    with pytest.raises(ValueError, match="as many members, got"):
        forecast(fields={"temperature": field, "geopotential": field[:1]})
    with pytest.raises(ValueError, match=r"got \{'temperature': \(5, 8\)\}"):
        forecast(fields={"temperature": field[0, 0]})
    with pytest.raises(ValueError, match="units of 'tracer'"):
        forecast(fields={"tracer": field})
    with pytest.raises(ValueError, match="last two axes must be"):
        forecast(fields={"temperature": field}, grid=sphere.equiangular(6, 8))
