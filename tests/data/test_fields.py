import jax.numpy as jnp
import numpy as np
import pytest
import xarray
from hypothesis import given, settings, strategies as st

from skyens import sphere
from skyens.data import (
    check_coordinates,
    check_finite,
    from_xarray,
    grid_of,
    open_sample,
    to_arrays,
    to_dataset,
    to_xarray,
)
from skyens.nn import Channels

GRID = sphere.equiangular(5, 8)
CHANNELS = Channels(("geopotential_500", "temperature_850"), ("m2 s-2", "K"))


def labelled(dims=("member", "latitude", "longitude"), dtype=np.float32):
    sizes = {"member": 3, "time": 2, "latitude": 5, "longitude": 8}
    shape = [sizes[dim] for dim in dims]
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    coordinates = {
        "member": [0, 1, 2],
        "time": np.array(["2017-01-01T00", "2017-01-01T12"], "datetime64[ns]"),
        "latitude": GRID.latitude,
        "longitude": GRID.longitude,
    }
    coordinates = {dim: coordinates[dim] for dim in dims}
    return xarray.DataArray(values, coordinates, dims, name="height")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_axes_come_by_name_whatever_their_order(dtype):
    field = labelled(("longitude", "time", "latitude", "member"), dtype)
    array = from_xarray(field)
    assert array.shape == (3, 2, 5, 8)
    assert array.dtype == dtype
    assert array[2, 1, 4, 7] == field.sel(
        member=2, time="2017-01-01T12", latitude=90, longitude=315
    )
    other = from_xarray(field, ("time", "member"), grid=GRID)
    np.testing.assert_array_equal(other, jnp.swapaxes(array, 0, 1))


@settings(deadline=None, max_examples=15)
@given(
    grid=st.sampled_from(
        [
            sphere.gauss_legendre(6, 12),
            sphere.equiangular(7, 9, north_first=True, longitude_origin=-180.0),
            sphere.cell_centred(4, 8, longitude_origin=22.5),
        ]
    ),
    members=st.integers(1, 3),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_a_field_survives_the_round_trip(grid, members, dtype):
    values = np.random.default_rng(members).normal(size=(members, *grid.shape))
    array = values.astype(dtype)
    coordinates = {"member": np.arange(members), "level": 500.0}
    field = to_xarray(array, grid, coordinates, name="geopotential")
    assert field["level"] == 500
    assert field.attrs["units"] == "m2 s-2"
    assert grid_of(field) == grid
    back = from_xarray(field, ("member",), grid=grid)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, array)


def test_channels_survive_the_round_trip():
    sample = open_sample("era5_eda")
    array = to_arrays(sample, CHANNELS)
    assert array.shape == (10, 4, 2, 61, 120)
    expected = sample["temperature"].sel(level=850)
    np.testing.assert_array_equal(array[:, :, 1], expected)
    coordinates = {"member": sample["member"], "time": sample["time"]}
    dataset = to_dataset(array, CHANNELS, grid_of(sample), coordinates)
    assert dataset["geopotential_500"].attrs["standard_name"] == "geopotential"
    assert dataset["temperature_850"].attrs["units"] == "K"
    np.testing.assert_array_equal(to_arrays(dataset, CHANNELS), array)
    check_coordinates(dataset, sample)


def test_float64_values_are_not_rounded_on_the_way_out():
    values = np.full((1, 5, 8), 1 + 1e-12)
    channel = Channels(("geopotential",), ("m2 s-2",))
    dataset = to_dataset(values, channel, GRID)
    np.testing.assert_array_equal(dataset["geopotential"], values[0])


def test_values_that_are_not_finite_are_counted_and_placed():
    field = labelled(("member", "time", "latitude", "longitude"))
    check_finite(field)
    field[1, 1, 4, 2] = np.nan
    field[2, 0, 0, 0] = np.inf
    place = "member = 1, time = 2017-01-01T12:00, latitude = 90, longitude = 90"
    with pytest.raises(ValueError, match=f"`height` has 2 of 240 .*{place}"):
        from_xarray(field)


def test_dimensions_that_do_not_fit_are_reported():
    with pytest.raises(ValueError, match=r"lacks the dimensions \['time'\]"):
        from_xarray(labelled(), ("time",))
    with pytest.raises(ValueError, match=r"has the dimensions \['member'\] besides"):
        from_xarray(labelled(), ())
    with pytest.raises(ValueError, match="no coordinate latitude and no longitude"):
        grid_of(labelled().rename(latitude="lat", longitude="lon"))
    with pytest.raises(ValueError, match="no known grid"):
        grid_of(labelled().isel(latitude=[0, 1, 4]))
    with pytest.raises(ValueError, match=r"`values` .*last two axes"):
        to_xarray(np.zeros((5, 7)), GRID, name="geopotential")
    with pytest.raises(ValueError, match=r"axes \('member',\) of sizes \(2,\)"):
        to_xarray(np.zeros((3, 5, 8)), GRID, {"member": [0, 1]}, name="geopotential")
    with pytest.raises(ValueError, match=r"channels .*got \(3, 5, 8\)"):
        to_dataset(np.zeros((3, 5, 8)), CHANNELS, GRID)


def test_another_grid_is_never_accepted():
    flipped = labelled().isel(latitude=slice(None, None, -1))
    with pytest.raises(ValueError, match=r"index 0 is 90 and should be -90; flip it"):
        from_xarray(flipped, grid=GRID)
    with pytest.raises(ValueError, match="5 values of latitude, `grid` has 7"):
        from_xarray(labelled(), grid=sphere.equiangular(7, 8))
    with pytest.raises(ValueError, match=r"latitude at index 0 is -90 .*interpolate"):
        from_xarray(labelled(), grid=sphere.cell_centred(5, 8))
    shifted = sphere.equiangular(5, 8, longitude_origin=22.5)
    with pytest.raises(ValueError, match=r"longitude at index 0 is 0 and should be 22"):
        from_xarray(labelled(), grid=shifted)
    # 0 and 360 degrees are one meridian.
    around = sphere.equiangular(5, 8, longitude_origin=360.0)
    assert from_xarray(labelled(), grid=around).shape == (3, 5, 8)


def test_coordinates_are_compared_and_never_aligned():
    field = labelled(("member", "time", "latitude", "longitude"))
    check_coordinates(field, field.astype(np.float64).isel(member=0, drop=True))
    near = field.assign_coords(latitude=field["latitude"].astype(np.float32))
    check_coordinates(field, near)
    with pytest.raises(ValueError, match="`time` has 2 values in the first and 1"):
        check_coordinates(field, field.isel(time=[0]))
    with pytest.raises(ValueError, match=r"`member` at index 0 is 0 .* 2 in the"):
        check_coordinates(field, field.isel(member=[2, 1, 0]))
    later = field.assign_coords(time=field["time"] + np.timedelta64(12, "h"))
    with pytest.raises(ValueError, match="01T00:00 in the first and 2017-01-01T12:00"):
        check_coordinates(field, later)
    low, high = (field.assign_coords(level=level) for level in (850.0, 500.0))
    with pytest.raises(ValueError, match="`level` is 850 in the first and 500"):
        check_coordinates(low, high)


def test_channels_that_do_not_fit_are_reported():
    sample = open_sample("era5_eda")
    with pytest.raises(ValueError, match="no variable 'humidity_500', only"):
        to_arrays(sample, Channels(("humidity_500",), ("1",)))
    with pytest.raises(ValueError, match=r"no level 700 for .*\[850.0, 500.0\]"):
        to_arrays(sample, Channels(("temperature_700",), ("K",)))
    with pytest.raises(ValueError, match=r"units 'K', .*'degC'"):
        to_arrays(sample, Channels(("temperature_850",), ("degC",)))
