from functools import partial

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens import sphere

MAKERS = [sphere.gauss_legendre, sphere.equiangular, sphere.cell_centred]
METHODS = [sphere.Bilinear(), sphere.Bicubic()]
GRIDS = [
    sphere.gauss_legendre(61, 121, north_first=True, longitude_origin=-33.0),
    sphere.equiangular(61, 120),
    sphere.cell_centred(61, 121, longitude_origin=180.0),
]


def smooth(latitude, longitude):
    lat, lon = jnp.deg2rad(latitude), jnp.deg2rad(longitude)
    return jnp.sin(lat) + jnp.cos(lat) * jnp.cos(lon - 1)


def on_grid(grid, function=smooth):
    latitude, longitude = np.meshgrid(grid.latitude, grid.longitude, indexing="ij")
    return function(jnp.asarray(latitude), jnp.asarray(longitude))


def points(count=7):
    latitude = jnp.linspace(-88, 89, count) ** 3 / 90**2
    return latitude, jnp.linspace(-400, 300, count)


@settings(deadline=None, max_examples=40)
@given(
    grid=st.sampled_from(GRIDS),
    method=st.sampled_from(METHODS),
    latitude=st.floats(-90, 90),
    longitude=st.floats(-720, 720),
)
def test_a_smooth_field_is_met_to_the_order_of_the_method(
    grid, method, latitude, longitude
):
    point = jnp.array([latitude]), jnp.array([longitude])
    value = sphere.interpolate(grid, on_grid(grid), *point, method)
    # Bilinear: h^2 / 8 of each second derivative. Bicubic: the slopes' h^2 / 6 of each
    # third derivative, times at most h / 4 inside of a cell, twice (either side).
    h = np.deg2rad(180 / 60)
    bound = 2 * h**2 / 8 if method == METHODS[0] else 2 * h**3 / 12
    chex.assert_trees_all_close(value, smooth(*point), atol=1.5 * bound)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("method", METHODS)
def test_grid_points_come_back(make, method):
    grid = make(9, 16, longitude_origin=-180.0)
    field = jr.normal(jr.key(0), (2, *grid.shape))
    latitude, longitude = np.meshgrid(grid.latitude, grid.longitude, indexing="ij")
    places = jnp.asarray(latitude.ravel()), jnp.asarray(longitude.ravel())
    values = sphere.interpolate(grid, field, *places, method)
    chex.assert_trees_all_close(values.reshape(field.shape), field, atol=1e-11)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("columns", [36, 37])
def test_a_component_of_the_wind_is_met_next_to_the_pole(make, columns):
    # The eastward wind of a solid rotation about an axis in the equator: at the pole
    # it is not 0, and has another value on every meridian.
    east = lambda lat, lon: -jnp.sin(jnp.deg2rad(lat)) * jnp.cos(jnp.deg2rad(lon))
    grid = make(48, columns)
    latitude, longitude = jnp.full(12, 89.5), jnp.linspace(0, 350, 12)
    expected, field = east(latitude, longitude), on_grid(grid, east)
    h = 2 * np.pi / columns
    for method, order in ((sphere.Bilinear, 2), (sphere.Bicubic, 3)):
        value = sphere.interpolate(
            grid, field, latitude, longitude, method(vector=True)
        )
        chex.assert_trees_all_close(value, expected, atol=h**order / 2)
    if make is not sphere.equiangular:  # nothing of it is left in a scalar's mean
        value = sphere.interpolate(grid, field, latitude, longitude)
        assert jnp.abs(value - expected).max() > 0.5


def test_moving_points_work_under_jit_in_float32():
    grid = sphere.equiangular(13, 24)
    field = jr.normal(jr.key(0), grid.shape, jnp.float32)
    at = jax.jit(lambda lat, lon: sphere.interpolate(grid, field, lat, lon))
    latitude = jnp.array([0.0, 90.0], jnp.float32)
    values = at(latitude, jnp.array([6.0, 75.0], jnp.float32))
    assert values.dtype == jnp.float32
    expected = jnp.stack([0.6 * field[6, 0] + 0.4 * field[6, 1], field[12, 5]])
    chex.assert_trees_all_close(values, expected, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_dtype_of_the_field_stays(method):
    grid = sphere.gauss_legendre(8, 15)
    # Numbers that bfloat16 holds, so that all start from the same.
    field = jr.randint(jr.key(0), grid.shape, -100, 100).astype(jnp.float64)
    exact = sphere.interpolate(grid, field, *points(), method)
    for dtype in (jnp.bfloat16, jnp.float32):
        values = sphere.interpolate(grid, field.astype(dtype), *points(), method)
        assert values.dtype == dtype
        error = 100 * 4 * float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(values.astype(np.float64), exact, atol=error)


@pytest.mark.parametrize(
    ("make", "method"),
    [
        (sphere.gauss_legendre, sphere.Bilinear()),
        (sphere.cell_centred, sphere.Bilinear(vector=True)),
        (sphere.equiangular, sphere.Bicubic()),
        (sphere.cell_centred, sphere.Bicubic(vector=True)),
    ],
)
def test_it_is_linear_in_the_field_and_knows_its_adjoint(make, method):
    grid = make(8, 15)
    x, y = jr.normal(jr.key(0), (2, *grid.shape))
    at = jax.jit(lambda x: sphere.interpolate(grid, x, *points(), method))
    chex.assert_trees_all_close(at(2 * x - y), 2 * at(x) - at(y), atol=1e-12)
    weight = jr.normal(jr.key(1), (7,))
    back = jax.jit(lambda x, weight: jax.vjp(at, x)[1](weight)[0])(x, weight)
    chex.assert_trees_all_close(jnp.vdot(weight, at(x)), jnp.vdot(back, x), rtol=1e-12)
    mapped = jax.vmap(at)(jnp.stack([x, y]))
    chex.assert_trees_all_close(mapped, jnp.stack([at(x), at(y)]), rtol=1e-12)


def test_the_gradient_in_the_field_is_the_weights():
    grid = sphere.gauss_legendre(8, 16)
    latitude, longitude = jnp.array([41.0, 89.9]), jnp.array([1.0, 200.0])
    total = lambda f: sphere.interpolate(grid, f, latitude, longitude).sum()
    weights = jax.grad(total)(jnp.ones(grid.shape))
    chex.assert_trees_all_close(weights.sum(), jnp.asarray(2.0))
    assert (weights >= 0).all()


@pytest.mark.parametrize("make", MAKERS[:2])
def test_bicubic_slopes_are_those_of_the_field_and_do_not_jump(make):
    grid = make(61, 120)
    at = lambda lat, lon: sphere.interpolate(
        grid, on_grid(grid), lat[None], lon[None], sphere.Bicubic()
    )[0]
    slope = jax.jit(jax.grad(at, (0, 1)))
    h = np.deg2rad(3)
    for place in ((40.3, 17.2), (-71.0, -100.0), (89.0, 4.0)):
        place = tuple(map(jnp.asarray, place))
        exact = jax.grad(smooth, (0, 1))(*place)
        chex.assert_trees_all_close(slope(*place), exact, atol=h**2 * np.pi / 180)
    row, column = grid.latitude[20], grid.longitude[40]
    for step in ((1e-9, 0), (0, 1e-9)):
        sides = [
            slope(jnp.asarray(row + s * step[0]), jnp.asarray(column + s * step[1]))
            for s in (-1, 1)
        ]
        chex.assert_trees_all_close(*sides, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_places_unknown_or_beyond_the_poles_see_nan_under_jit(method):
    grid = sphere.cell_centred(8, 16)
    at = jax.jit(partial(sphere.interpolate, grid, method=method))
    latitude = jnp.array([10.0, 90.5, jnp.nan, 20, -91, 90])
    longitude = jnp.array([0.0, 0, 0, jnp.nan, 0, jnp.inf])
    field = jnp.ones(grid.shape)
    np.testing.assert_array_equal(
        jnp.isnan(at(field, latitude, longitude)),
        [False, True, True, True, True, True],
    )
    total = lambda f: jnp.nansum(at(f, latitude, longitude))
    chex.assert_tree_all_finite(jax.grad(total)(field))


def test_wrong_use_is_reported():
    grid = sphere.equiangular(13, 24)
    with pytest.raises(ValueError, match="does not lie on this"):
        sphere.interpolate(grid, jnp.zeros((12, 24)), jnp.zeros(1), jnp.zeros(1))
    latitude = jnp.array([0.0, jnp.nan, 95.0, -100.0])
    message = r"2 of 4 values do not, the first, at 2, is 95\.0"
    with pytest.raises(eqx.EquinoxRuntimeError, match=message):
        sphere.interpolate(grid, jnp.zeros((13, 24)), latitude, jnp.zeros(4))
