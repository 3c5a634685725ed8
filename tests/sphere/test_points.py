from functools import partial

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens import sphere

MAKERS = [sphere.gauss_legendre, sphere.equiangular, sphere.cell_centred]


def smooth(latitude, longitude):
    lat, lon = jnp.deg2rad(latitude), jnp.deg2rad(longitude)
    return jnp.sin(lat) + jnp.cos(lat) * jnp.cos(lon - 1)


def on_grid(grid):
    latitude, longitude = np.meshgrid(grid.latitude, grid.longitude, indexing="ij")
    return smooth(jnp.asarray(latitude), jnp.asarray(longitude))


@settings(deadline=None, max_examples=20)
@given(
    make=st.sampled_from(MAKERS),
    north_first=st.booleans(),
    origin=st.sampled_from([0.0, -180.0, 33.0]),
    latitude=st.floats(-90, 90),
    longitude=st.floats(-720, 720),
)
def test_a_smooth_field_is_met_to_second_order(
    make, north_first, origin, latitude, longitude
):
    grid = make(61, 120, north_first=north_first, longitude_origin=origin)
    point = jnp.array([latitude]), jnp.array([longitude])
    value = jax.jit(partial(sphere.interpolate, grid))(on_grid(grid), *point)
    # Bilinear error: at most h^2 / 8 of each second derivative (here at most 1.5).
    chex.assert_trees_all_close(value, smooth(*point), atol=2e-3)


@pytest.mark.parametrize("make", MAKERS)
def test_grid_points_come_back(make):
    grid = make(9, 16, longitude_origin=-180.0)
    field = jr.normal(jr.key(0), (2, *grid.shape))
    latitude, longitude = np.meshgrid(grid.latitude, grid.longitude, indexing="ij")
    points = jnp.asarray(latitude.ravel()), jnp.asarray(longitude.ravel())
    values = sphere.interpolate(grid, field, *points)
    chex.assert_trees_all_close(values.reshape(field.shape), field, atol=1e-11)


def test_moving_points_work_under_jit_in_float32():
    grid = sphere.equiangular(13, 24)
    field = jr.normal(jr.key(0), grid.shape, jnp.float32)
    at = jax.jit(lambda lat, lon: sphere.interpolate(grid, field, lat, lon))
    latitude = jnp.array([0.0, 90.0], jnp.float32)
    values = at(latitude, jnp.array([6.0, 75.0], jnp.float32))
    assert values.dtype == jnp.float32
    expected = jnp.stack([0.6 * field[6, 0] + 0.4 * field[6, 1], field[12, 5]])
    chex.assert_trees_all_close(values, expected, rtol=1e-5)


def test_the_gradient_in_the_field_is_the_weights():
    grid = sphere.gauss_legendre(8, 16)
    latitude, longitude = jnp.array([41.0, 89.9]), jnp.array([1.0, 200.0])
    total = lambda f: sphere.interpolate(grid, f, latitude, longitude).sum()
    weights = jax.grad(total)(jnp.ones(grid.shape))
    chex.assert_trees_all_close(weights.sum(), jnp.asarray(2.0))
    assert (weights >= 0).all()


def test_distances_are_those_of_closed_forms():
    distance = lambda *x: sphere.great_circle_distance(*map(jnp.asarray, x))
    chex.assert_trees_all_close(distance(0.0, 0.0, 0.0, 90.0), jnp.pi / 2)
    chex.assert_trees_all_close(distance(90.0, 3.0, -90.0, 80.0), jnp.pi)
    # One metre on the Earth, where an arc cosine would return 0.
    near = jnp.rad2deg(1 / 6.371e6)
    chex.assert_trees_all_close(
        distance(45.0, 7.0, 45.0 + near, 7.0), 1 / 6.371e6, rtol=1e-6
    )
    gradient = jax.grad(lambda x: distance(x, x, x, x))(5.0)
    assert gradient == 0


def test_wrong_use_is_reported():
    grid = sphere.equiangular(13, 24)
    with pytest.raises(ValueError, match="does not lie on this"):
        sphere.interpolate(grid, jnp.zeros((12, 24)), jnp.zeros(1), jnp.zeros(1))
