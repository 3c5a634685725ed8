import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens import sphere

LATITUDES = st.floats(-90, 90)
LONGITUDES = st.floats(-360, 360)


def unit(latitude, longitude):
    """Unit vectors of points in degrees."""
    lat, lon = np.deg2rad(latitude), np.deg2rad(longitude)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])


@settings(deadline=None, max_examples=100)
@given(LATITUDES, LONGITUDES, LATITUDES, LONGITUDES)
def test_distances_are_the_angles_between_unit_vectors(lat1, lon1, lat2, lon2):
    distance = sphere.great_circle_distance(lat1, lon1, lat2, lon2)
    a, b = unit(lat1, lon1), unit(lat2, lon2)
    # Kahan's angle, accurate for near and opposite vectors alike.
    angle = 2 * np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b))
    np.testing.assert_allclose(distance, angle, atol=1e-14)


@settings(deadline=None, max_examples=100)
@given(LATITUDES, LONGITUDES, LATITUDES, LONGITUDES)
def test_going_along_the_bearing_by_the_distance_arrives(lat1, lon1, lat2, lon2):
    distance = sphere.great_circle_distance(lat1, lon1, lat2, lon2)
    direction = sphere.bearing(lat1, lon1, lat2, lon2)
    assert 0 <= direction < 360
    end = sphere.destination(lat1, lon1, direction, distance)
    np.testing.assert_allclose(unit(*end), unit(lat2, lon2), atol=1e-13)
    assert abs(end[1] - lon1) <= 180 + 1e-9


@settings(deadline=None, max_examples=50)
@given(LATITUDES, LONGITUDES, st.floats(0, 360), st.floats(0, 3.1))
def test_destinations_lie_at_their_distance(latitude, longitude, direction, distance):
    end = sphere.destination(latitude, longitude, direction, distance)
    assert abs(end[0]) <= 90
    back = sphere.great_circle_distance(latitude, longitude, *end)
    np.testing.assert_allclose(back, distance, atol=1e-13)


def test_bearings_of_closed_forms():
    bearing = lambda *x: float(sphere.bearing(*x))
    assert bearing(0.0, 10.0, 5.0, 10.0) == 0
    assert np.isclose(bearing(0.0, 10.0, 0.0, 11.0), 90)
    assert np.isclose(bearing(5.0, 10.0, 0.0, 10.0), 180)
    assert bearing(0.0, 1e-290, 5.0, 0.0) == 0
    assert np.isclose(bearing(0.0, -179.0, 0.0, 179.0), 270)
    # To the pole's other side along the 45th meridian pair: straight over the pole.
    assert np.isclose(bearing(60.0, 45.0, 60.0, -135.0) % 360, 0, atol=1e-12)
    # From the north pole everything is south: the longitudes' difference tells where.
    assert np.isclose(bearing(90.0, 20.0, 0.0, 50.0), 150)
    # One eighth of a great circle inclined by 45 degrees (Napier's rules).
    assert np.isclose(
        bearing(0.0, 0.0, np.rad2deg(np.arcsin(0.5)), 35.264389682754654), 45
    )


def test_a_path_is_straight_and_evenly_spaced():
    latitude, longitude = sphere.great_circle_path(40.0, 170.0, -30.0, -120.0, 33)
    points = unit(latitude, longitude).T
    normal = np.cross(points[0], points[-1])
    np.testing.assert_allclose(points @ normal, 0, atol=1e-15)
    steps = sphere.great_circle_distance(
        latitude[:-1], longitude[:-1], latitude[1:], longitude[1:]
    )
    whole = sphere.great_circle_distance(40.0, 170.0, -30.0, -120.0)
    np.testing.assert_allclose(steps, whole / 32, rtol=1e-12)
    # It crosses the date line without a jump.
    assert (jnp.diff(longitude) > 0).all()
    np.testing.assert_allclose([longitude[0], longitude[-1]], [170, 240])


def test_a_path_between_opposite_points_and_one_of_no_length():
    latitude, longitude = sphere.great_circle_path(20.0, 0.0, -20.0, 180.0, 5)
    np.testing.assert_allclose(
        unit(latitude, longitude)[:, -1], unit(-20, 180), atol=1e-14
    )
    latitude, longitude = sphere.great_circle_path(20.0, 3.0, 20.0, 3.0, 5)
    np.testing.assert_allclose(latitude, 20)
    np.testing.assert_allclose(longitude, 3)


def test_single_precision_stays_and_near_points_keep_their_digits():
    # One kilometre on the Earth: an arc cosine in single precision sees 0 or 2 km.
    near = np.float32(np.rad2deg(1 / 6371))
    lat, lon, north = jnp.float32(45), jnp.float32(7), jnp.float32(0)
    distance = sphere.great_circle_distance(lat, lon, lat + near, lon)
    exact = np.deg2rad(float(lat + near) - 45)
    assert distance.dtype == jnp.float32
    np.testing.assert_allclose(distance, exact, rtol=1e-6)
    end = sphere.destination(lat, lon, jnp.float32(30), jnp.float32(0.1))
    path = sphere.great_circle_path(lat, lon, end[0], end[1], points=4)
    assert {x.dtype for x in (*end, *path)} == {jnp.dtype("float32")}
    top = sphere.destination(lat, lon, north, jnp.float32(np.pi / 4))
    assert top[0] <= 90


def test_the_gradients_are_the_unit_directions_of_closed_forms():
    # Moving the second point north by dlat changes the distance by cos(bearing back).
    lat1, lon1, lat2, lon2 = 10.0, 20.0, 50.0, 80.0
    slope = jax.grad(sphere.great_circle_distance, 2)(lat1, lon1, lat2, lon2)
    back = np.deg2rad(sphere.bearing(lat2, lon2, lat1, lon1))
    np.testing.assert_allclose(slope, -np.cos(back) * np.pi / 180, rtol=1e-12)


@pytest.mark.parametrize("end", [(30.0, 40.0), (-30.0, 220.0), (90.0, 0.0)])
@pytest.mark.parametrize("start", [(30.0, 40.0), (90.0, 0.0), (-90.0, 7.0)])
def test_gradients_are_finite_at_equal_and_opposite_points_and_poles(start, end):
    for function in (
        sphere.great_circle_distance,
        sphere.bearing,
        lambda *x: sum(y.sum() for y in sphere.great_circle_path(*x, points=3)),
    ):
        gradient = jax.grad(function, (0, 1, 2, 3))(*start, *end)
        chex.assert_tree_all_finite(gradient)
    assert jax.grad(lambda x: sphere.great_circle_distance(x, x, x, x))(5.0) == 0


def test_they_broadcast_and_run_under_jit_and_vmap():
    latitude, longitude = jnp.linspace(-80, 80, 5), jnp.linspace(0, 300, 5)
    to = lambda lat, lon: sphere.bearing(lat, lon, 10.0, 20.0)
    chex.assert_trees_all_close(
        jax.jit(to)(latitude, longitude), jax.vmap(to)(latitude, longitude), rtol=1e-12
    )
    grid = sphere.great_circle_distance(
        latitude[:, None], longitude[:, None], latitude[None], longitude[None]
    )
    chex.assert_trees_all_close(grid, grid.T, atol=1e-14)
    ends = sphere.destination(latitude[:, None], 0.0, longitude[None], 0.5)
    chex.assert_shape(ends, (5, 5))


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="at least 2, got 1"):
        sphere.great_circle_path(0.0, 0.0, 1.0, 1.0, points=1)
