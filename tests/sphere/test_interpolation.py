import jax.numpy as jnp
import numpy as np
import pytest
import scipy.interpolate
from hypothesis import given, settings, strategies as st

from skyens import sphere
from skyens.sphere._interpolation import column_polynomials, evaluate

MAKERS = [sphere.gauss_legendre, sphere.equiangular, sphere.cell_centred]
FRACTIONS = np.linspace(0, 1, 9)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.1, 3), min_size=4, max_size=9), st.integers(0, 2**31))
def test_cubic_pieces_are_scipys_hermite_spline(steps, seed):
    places = np.cumsum(steps)
    value = np.random.default_rng(seed).normal(size=places.size)
    # NumPy's gradient is the slope of the parabola through three points.
    spline = scipy.interpolate.CubicHermiteSpline(
        places, value, np.gradient(value, places)
    )
    pieces = sphere.Bicubic().polynomials(places)
    assert pieces.shape == (places.size - 3, 4, 4)
    for i, piece in enumerate(pieces):
        weights = np.stack(evaluate(piece.T[..., None], FRACTIONS))
        at = places[i + 1] + FRACTIONS * (places[i + 2] - places[i + 1])
        np.testing.assert_allclose(value[i : i + 4] @ weights, spline(at), atol=1e-10)


def test_linear_pieces_are_numpys():
    places, value = np.array([0.0, 1, 3, 4]), np.array([2.0, -1, 5, 0])
    for i, piece in enumerate(sphere.Bilinear().polynomials(places)):
        weights = np.stack(evaluate(piece.T[..., None], FRACTIONS))
        at = places[i] + FRACTIONS * (places[i + 1] - places[i])
        np.testing.assert_allclose(
            value[i : i + 2] @ weights, np.interp(at, places, value), atol=1e-14
        )


@pytest.mark.parametrize("method", [sphere.Bilinear(), sphere.Bicubic()])
def test_column_weights_are_those_of_equal_steps(method):
    weights = np.stack(evaluate(column_polynomials(method).T[..., None], FRACTIONS))
    np.testing.assert_allclose(weights.sum(0), 1, rtol=1e-15)
    reach = np.arange(len(weights)) - len(weights) // 2 + 1
    np.testing.assert_allclose(reach @ weights, FRACTIONS, atol=1e-15)


def around(grid, function):
    """A function of latitude and longitude, on rows that go on over the poles."""
    latitude, longitude = np.meshgrid(grid.latitude, grid.longitude, indexing="ij")
    return jnp.asarray(function(np.deg2rad(latitude), np.deg2rad(longitude)))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("north_first", [False, True])
@pytest.mark.parametrize("columns", [36, 37])
def test_rows_beyond_the_poles_are_those_of_the_other_side(make, north_first, columns):
    grid = make(24, columns, north_first=north_first, longitude_origin=11.0)
    # Latitudes beyond 90 degrees are right of themselves in Cartesian coordinates; a
    # component of the wind of a solid rotation about an axis in the equator changes
    # sign: both are one analytic expression, over the pole too.
    scalar = lambda lat, lon: np.cos(lat) * np.cos(lon - 1) + np.sin(lat)
    east = lambda lat, lon: -np.sin(lat) * np.cos(lon - 1)
    for function, vector in ((scalar, False), (east, True)):
        method = sphere.Bicubic(vector=vector)
        field = around(grid, function)
        rows = jnp.concatenate(method.beyond(grid, field), axis=-2)
        places = method.places(grid)
        assert (np.diff(places) > 0).all()
        beyond = (places.size - 24) // 2
        latitude = np.r_[places[:beyond], places[-beyond:]]
        latitude = -latitude if north_first else latitude
        angles = np.meshgrid(
            np.deg2rad(latitude), np.deg2rad(grid.longitude), indexing="ij"
        )
        # Odd numbers of columns interpolate: half a step in, to third order.
        atol = 1e-13 if columns % 2 == 0 else (2 * np.pi / columns) ** 3
        np.testing.assert_allclose(rows, function(*angles), atol=atol)


@pytest.mark.parametrize("make", [sphere.gauss_legendre, sphere.cell_centred])
def test_poles_that_are_left_out_are_filled_from_the_nearest_row(make):
    grid = make(24, 36, longitude_origin=11.0)
    latitude = np.deg2rad(grid.latitude)
    scalar = around(grid, lambda lat, lon: np.cos(lat) * np.cos(lon - 1) + np.sin(lat))
    south, north = sphere.Bilinear().beyond(grid, scalar)
    np.testing.assert_allclose(north, np.sin(latitude[-1]), atol=1e-14)
    np.testing.assert_allclose(south, np.sin(latitude[0]), atol=1e-14)
    # A vector's component: wavenumber 1 stays, the mean and all others cannot.
    east = around(grid, lambda lat, lon: 1 + np.cos(lon - 1) + np.cos(3 * lon))
    south, north = sphere.Bilinear(vector=True).beyond(grid, east)
    wave = np.cos(np.deg2rad(grid.longitude) - 1)
    np.testing.assert_allclose(north[0], wave, atol=1e-14)
    np.testing.assert_allclose(south[0], wave, atol=1e-14)


@pytest.mark.parametrize("columns", [1, 2])
def test_few_columns_have_the_wave_that_they_can_hold(columns):
    grid = sphere.cell_centred(4, columns)
    field = jnp.asarray(np.tile([2.0, -2.0][:columns], (4, 1)))
    north = sphere.Bilinear(vector=True).beyond(grid, field)[1]
    expected = np.zeros((1, 1)) if columns == 1 else field[:1]
    np.testing.assert_allclose(north, expected, atol=1e-15)
