import cartopy.crs as ccrs
import numpy as np
import pytest

from skyens import sphere
from skyens.plot._raster import Raster, coordinates, raster

EXTENT = (-180.0, 180.0, -90.0, 90.0)


def smooth(latitude, longitude):
    """A field that is smooth on the sphere, poles and date line included."""
    x, y = np.deg2rad(longitude), np.deg2rad(latitude)
    return np.sin(y) + np.cos(y) ** 2 * np.cos(2 * x - 0.3)


@pytest.mark.parametrize(
    "grid",
    [
        sphere.equiangular(61, 120),
        sphere.equiangular(61, 120, north_first=True, longitude_origin=-180.0),
        sphere.gauss_legendre(64, 128, longitude_origin=1.4),
        sphere.cell_centred(64, 129),
    ],
)
@pytest.mark.parametrize(
    "projection", [ccrs.PlateCarree(), ccrs.Robinson(), ccrs.NorthPolarStereo()]
)
def test_a_smooth_field_is_seen_as_it_is(grid, projection):
    if isinstance(projection, ccrs.NorthPolarStereo):
        pixels = Raster(projection, (-9e6, 9e6, -9e6, 9e6), 60)
    else:
        (west, east), (south, north) = projection.x_limits, projection.y_limits
        extent = float(west), float(east), float(south), float(north)
        pixels = Raster(projection, extent, 60)
    latitude, longitude = coordinates(grid, grid.shape)
    field = smooth(latitude[:, None], longitude[None, :])
    sampled = pixels.sample(field, latitude, longitude)
    # Bilinear would be off by h^2 / 8 times the two second derivatives (4 and 3):
    # 2e-3. What is left is the clipping at the extremes of the grid's values, and the
    # uneven step across the pole of a Gauss-Legendre grid.
    error = np.abs(sampled - smooth(pixels.latitude, pixels.longitude))
    assert error.max() < 1e-3
    assert np.median(error) < 1e-4


def test_grid_points_are_hit_exactly_and_batches_are_equal():
    grid = sphere.equiangular(7, 12)
    pixels = Raster(ccrs.PlateCarree(), EXTENT, 10)
    pixels.latitude = np.repeat(grid.latitude[:, None], 12, axis=1)
    pixels.longitude = np.repeat(grid.longitude[None], 7, axis=0)
    fields = np.random.default_rng(0).normal(size=(3, 7, 12))
    sampled = pixels.sample(fields, grid.latitude, grid.longitude)
    np.testing.assert_allclose(sampled, fields, atol=1e-12)
    one = pixels.sample(fields[1], grid.latitude, grid.longitude)
    np.testing.assert_array_equal(one, sampled[1])


def test_nothing_goes_beyond_the_extremes():
    grid = sphere.equiangular(13, 24)
    field = np.zeros(grid.shape)
    field[6, 12] = 1.0
    pixels = Raster(ccrs.PlateCarree(), EXTENT, 200)
    sampled = pixels.sample(field, grid.latitude, grid.longitude)
    assert sampled.min() == 0
    assert sampled.max() <= 1


def test_missing_values_and_the_rest_of_the_globe_stay_blank():
    latitude, longitude = np.arange(30.0, 61, 5), np.arange(-20.0, 41, 5) % 360
    field = np.ones((7, 13))
    field[3, 6] = np.nan  # 45 N, 10 E
    pixels = Raster(ccrs.PlateCarree(), EXTENT, 120)
    sampled = pixels.sample(field, *coordinates((latitude, longitude), field.shape))
    north, east = pixels.latitude, pixels.longitude
    inside = (north >= 30) & (north <= 60) & (east >= -20) & (east <= 40)
    hole = (np.abs(north - 45) < 5) & (np.abs(east - 10) < 5)
    np.testing.assert_array_equal(np.isfinite(sampled), inside & ~hole)


def test_pixels_outside_the_globe_take_the_place_of_their_neighbour():
    pixels = Raster(
        ccrs.Robinson(), (*ccrs.Robinson().x_limits, *ccrs.Robinson().y_limits), 80
    )
    assert np.isfinite(pixels.latitude).all()
    assert np.abs(pixels.latitude).max() <= 90
    corner = pixels.longitude[0, 0], pixels.latitude[0, 0]
    assert -181 < corner[0] < -170
    assert corner[1] < -85


def test_rasters_are_kept():
    assert raster(ccrs.Robinson(), EXTENT, 30) is raster(ccrs.Robinson(), EXTENT, 30)


def test_wrong_coordinates_are_reported():
    with pytest.raises(ValueError, match=r"shape \(3, 4\) does not lie .* \(5, 8\)"):
        coordinates(sphere.equiangular(5, 8), (3, 4))
    with pytest.raises(ValueError, match=r"the shapes \(2, 2\) and \(2,\)"):
        coordinates((np.zeros((2, 2)), np.zeros(2)), (2, 2))
    with pytest.raises(ValueError, match="rise or fall strictly"):
        coordinates((np.array([0.0, 2, 1]), np.array([0.0, 1])), (3, 2))
    with pytest.raises(ValueError, match=r"at least 2 latitudes .* got 1 and 3"):
        coordinates((np.zeros(1), np.arange(3.0)), (1, 3))
    with pytest.raises(ValueError, match="run east, once around"):
        coordinates((np.array([0.0, 1]), np.array([3.0, 2, 1])), (2, 3))
