import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens import sphere
from skyens.assimilation import Localisation, Plane, Sphere, gaspari_cohn


def weights(table, points, count):
    """The table's weights as an array (point, observation)."""
    dense = np.zeros((points, count))
    index, taper = (
        np.asarray(x).reshape(points, -1) for x in (table.index, table.taper)
    )
    np.add.at(dense, (np.arange(points)[:, None], index), taper)
    return dense


def places(seed, count, low, high):
    # Clusters, duplicates, ends of the axes: what a search by bands may get wrong.
    generator = np.random.default_rng(seed)
    x = generator.uniform(low, high, (2, count))
    x[:, 1] = x[:, 0]
    x[:, 2:6] = x[:, :1] + 1e-3 * generator.normal(size=(2, 4))
    x[:, 6], x[:, 7] = low, high
    return x


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 2**31),
    length=st.sampled_from([0.01, 0.1, 0.3, 0.7, 1.6, 4.0, np.inf]),
)
def test_the_sphere_finds_all_in_reach(seed, length):
    latitude, longitude = places(seed, 24, -90.0, 90.0)
    longitude = 4 * longitude
    here = places(seed + 1, 16, -90.0, 90.0)
    geometry = Sphere((here[0], 2 * here[1] + 180), radius=1.0)
    where = {"latitude": latitude, "longitude": longitude}
    table = Localisation(geometry, where, length=length, width=24)
    distance = sphere.great_circle_distance(
        *(jnp.asarray(x)[:, None] for x in (here[0], 2 * here[1] + 180)),
        *(jnp.asarray(x)[None, :] for x in (latitude, longitude)),
    )
    expected = gaspari_cohn(distance / length)
    np.testing.assert_allclose(weights(table, 16, 24), expected, atol=1e-9)


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 2**31),
    length=st.sampled_from([1e-3, 0.3, 1.0, 2.4, 20.0, np.inf]),
    periods=st.sampled_from([(None, None), (10.0, None), (None, 7.0), (10.0, 7.0)]),
)
def test_the_plane_finds_all_in_reach(seed, length, periods):
    x, y = places(seed, 24, 0.0, 10.0)
    here = places(seed + 1, 16, -3.0, 12.0)
    period, period_y = periods
    geometry = Plane(*here, period=period, period_y=period_y, scattered=True)
    table = Localisation(geometry, {"x": x, "y": y}, length=length, width=24)
    gap_x, gap_y = here[0][:, None] - x, here[1][:, None] - y
    if period is not None:
        gap_x = gap_x - period * np.round(gap_x / period)
    if period_y is not None:
        gap_y = gap_y - period_y * np.round(gap_y / period_y)
    expected = gaspari_cohn(jnp.asarray(np.hypot(gap_x, gap_y) / length))
    np.testing.assert_allclose(weights(table, 16, 24), expected, atol=1e-9)


def test_a_large_table_holds_what_a_search_of_everything_finds():
    generator = np.random.default_rng(0)
    latitude = np.rad2deg(np.arcsin(generator.uniform(-1, 1, 2000)))
    longitude = generator.uniform(-180, 180, 2000)
    grid = sphere.equiangular(19, 36)
    where = {"latitude": latitude, "longitude": longitude}
    table = Localisation(grid, where, length=9e5)
    rows, columns = np.meshgrid(grid.latitude, grid.longitude, indexing="ij")
    distance = 6.371e6 * sphere.great_circle_distance(
        *(jnp.asarray(x.reshape(-1, 1)) for x in (rows, columns)),
        *(jnp.asarray(x[None, :]) for x in (latitude, longitude)),
    )
    expected = gaspari_cohn(distance / 9e5)
    np.testing.assert_allclose(weights(table, 684, 2000), expected, atol=1e-9)
    assert table.index.shape[-1] == int((expected > 0).sum(-1).max())


def test_lines_and_planes_say_the_shape_of_their_fields():
    x, y = np.arange(4.0), np.arange(3.0)
    assert Plane(x).shape == (4,)
    assert Plane(x, y).shape == (3, 4)
    assert Plane(x, x, scattered=True).shape == (4,)
    assert Sphere(sphere.equiangular(5, 8)).shape == (5, 8)
    assert Sphere((x, x)).shape == (4,)
    # x is the last axis, y the one before it.
    near = Localisation(
        Plane(x, y), {"x": np.ones(1) * 3, "y": np.zeros(1)}, length=0.4
    )
    np.testing.assert_array_equal(np.argwhere(near.taper[..., 0] > 0), [[0, 3]])


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="`radius` must be above 0, got -1"):
        Sphere(sphere.equiangular(5, 8), radius=-1.0)
    with pytest.raises(ValueError, match="`period` must be above 0, got 0"):
        Plane(np.arange(4.0), period=0.0)
    with pytest.raises(ValueError, match="as many ys as xs, got 3 and 4"):
        Plane(np.arange(4.0), np.arange(3.0), scattered=True)
    with pytest.raises(eqx.EquinoxRuntimeError, match="the first, at 0, is 91"):
        Sphere((np.asarray([91.0]), np.zeros(1)))
