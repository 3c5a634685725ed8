import numpy as np
import pytest
import xarray

from skyens.data import conventional_names
from skyens.data._names import split_level, variable_attributes


def test_common_spellings_become_conventional():
    old = xarray.Dataset(
        {"z": (("number", "isobaricInhPa", "lat", "lon"), np.zeros((2, 1, 3, 4)))},
        coords={
            "lat": [0.0, 1, 2],
            "lon": [0.0, 1, 2, 3],
            "isobaricInhPa": [500.0],
            "prediction_timedelta": np.timedelta64(6, "h"),
        },
    )
    new = conventional_names(old)
    assert new["z"].dims == ("member", "level", "latitude", "longitude")
    assert "lead_time" in new.coords
    np.testing.assert_array_equal(new["latitude"], old["lat"])
    xarray.testing.assert_identical(conventional_names(new), new)


def test_standard_names_tell_too():
    coordinate = ("y", [0.0, 1.0], {"standard_name": "latitude"})
    dataset = xarray.Dataset(coords={"y": coordinate})
    assert conventional_names(dataset)["latitude"].dims == ("latitude",)


def test_ambiguous_coordinates_are_reported():
    attributes = {"standard_name": "latitude"}
    coordinates = {"lat": ("lat", [0.0]), "y": ("y", [0.0], attributes)}
    with pytest.raises(ValueError, match=r"2 coordinates .*'latitude'.*'lat', 'y'"):
        conventional_names(xarray.Dataset(coords=coordinates))


def test_variables_have_cf_attributes():
    attributes = variable_attributes("temperature_850")
    assert attributes["standard_name"] == "air_temperature"
    assert attributes["units"] == "K"
    assert variable_attributes("tracer", "kg kg-1")["units"] == "kg kg-1"
    with pytest.raises(ValueError, match="units of 'tracer'"):
        variable_attributes("tracer")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("geopotential_500", ("geopotential", 500.0)),
        ("geopotential", ("geopotential", None)),
        ("2m_temperature", ("2m_temperature", None)),
        ("geopotential_height", ("geopotential_height", None)),
        ("_500", ("_500", None)),
    ],
)
def test_a_level_is_split_from_its_variable(name, parts):
    assert split_level(name) == parts
