import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens import sphere
from skyens.assimilation import Localisation, Moving, Plane, Step, gaspari_cohn
from skyens.observations import Diagonal, Interpolate, Observation

GRID = sphere.equiangular(7, 12)


def scattered(count=15, seed=0):
    generator = np.random.default_rng(seed)
    latitude = np.rad2deg(np.arcsin(generator.uniform(-1, 1, count)))
    return {"latitude": latitude, "longitude": generator.uniform(0, 360, count)}


def angles(coordinates):
    """Angles from grid to observations by unit vectors, (latitude, longitude, n)."""

    def unit(latitude, longitude):
        latitude, longitude = np.deg2rad(latitude), np.deg2rad(longitude)
        parts = np.cos(latitude) * np.exp(1j * longitude), np.sin(latitude)
        return np.stack([parts[0].real, parts[0].imag, parts[1] + 0 * longitude], -1)

    grid = unit(GRID.latitude[:, None], GRID.longitude[None, :])
    there = unit(coordinates["latitude"], coordinates["longitude"])
    return np.arccos(np.clip(grid @ there.T, -1, 1))


class GaspariCohnTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_it_is_the_self_convolution_of_a_triangle(self):
        # Gaspari & Cohn (1999), section 4: max(0, 1 - s) convolved with itself in three
        # dimensions, here by the midpoint rule in rings about the axis.
        triangle = lambda s: np.maximum(0, 1 - s)
        across = (np.arange(500)[:, None] + 0.5) / 500
        along = (np.arange(-500, 500)[None, :] + 0.5) / 500

        def convolve(r):
            here, there = np.hypot(across, along), np.hypot(across, along - r)
            return np.sum(across * triangle(here) * triangle(there))

        r = np.asarray([0.0, 0.4, 1.0, 1.3, 1.8, 2.2])
        expected = np.asarray([convolve(x) for x in r]) / convolve(0.0)
        actual = self.variant(gaspari_cohn)(jnp.asarray(r))
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_gaspari_cohn_is_smooth_positive_and_ends_at_two():
    value = jax.jit(gaspari_cohn)
    fine = value(jnp.linspace(0, 2, 4001, dtype=jnp.float32))
    assert fine.dtype == jnp.float32
    assert np.all(fine >= 0)
    assert np.all(np.diff(fine) <= 0)
    points = jnp.asarray([0.0, 1.0, 2.0, 3.0, jnp.inf])
    np.testing.assert_allclose(value(points), [1, 5 / 24, 0, 0, 0], rtol=1e-15)
    slope = jax.jit(jax.vmap(jax.grad(gaspari_cohn)))
    np.testing.assert_array_equal(slope(points)[jnp.asarray([0, 2, 3, 4])], 0)
    sides = slope(jnp.asarray([1 - 1e-9, 1, 1 + 1e-9, 2, 2 + 1e-9]))
    np.testing.assert_allclose(sides[0], sides[2], rtol=1e-7)


def dense(table, count):
    """The table's weights as an array (latitude, longitude, observation)."""
    weights = np.zeros((7, 12, count))
    i, j, _ = np.ogrid[:7, :12, :1]
    np.add.at(weights, (i, j, np.asarray(table.index)), np.asarray(table.taper))
    return weights


def test_the_table_holds_every_observation_in_reach_with_its_weight():
    coordinates = scattered()
    length, radius = 2.0e6, 6.0e6
    table = Localisation(GRID, coordinates, length=length, radius=radius)
    r = angles(coordinates) * radius / length
    assert table.index.shape == (7, 12, (r < 2).sum(-1).max())
    expected = gaspari_cohn(jnp.asarray(r))
    np.testing.assert_allclose(dense(table, 15), expected, atol=1e-12)
    # One at no known place is nobody's neighbour.
    coordinates["latitude"][3] = np.nan
    width = table.index.shape[2]
    without = Localisation(GRID, coordinates, length=length, radius=radius, width=width)
    expected = np.where(np.arange(15) == 3, 0, expected)
    np.testing.assert_allclose(dense(without, 15), expected, atol=1e-12)


def test_an_infinite_length_uses_everything_everywhere():
    table = Localisation(GRID, scattered(), length=jnp.inf)
    assert table.index.shape == (7, 12, 15)
    np.testing.assert_array_equal(table.taper, 1)


def test_it_is_built_under_jit_and_differentiable_in_length():
    coordinates = {name: jnp.asarray(x) for name, x in scattered().items()}

    def total(length):
        table = Localisation(GRID, coordinates, length=length, width=15)
        return jnp.sum(jnp.sqrt(jnp.where(table.taper > 0, table.taper, 1)))

    slope, value = jax.jit(jax.grad(total))(2e6), jax.jit(total)
    step = 20.0
    expected = (value(2e6 + step) - value(2e6 - step)) / (2 * step)
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


def test_tables_keep_single_precision():
    coordinates = {k: v.astype(np.float32) for k, v in scattered().items()}
    table = Localisation(GRID, coordinates, length=2e6)
    assert table.taper.dtype == jnp.float32


def test_it_serves_only_the_observations_it_was_built_for():
    coordinates = scattered()
    table = Localisation(GRID, coordinates, length=2e6, radius=6e6)

    def observation(latitude, mask=None):
        operator = Interpolate(GRID, latitude, coordinates["longitude"] + 360)
        return Observation(np.zeros(15), operator, Diagonal(1.0), mask)

    index, *_ = table.neighbours(observation(coordinates["latitude"]))
    chex.assert_trees_all_equal(index, table.index)
    third = np.arange(15) == 2
    moved = coordinates["latitude"] + np.where(third, 0.1, 0.0)
    with pytest.raises(eqx.EquinoxRuntimeError, match="not where the localisation"):
        eqx.filter_jit(table.neighbours)(observation(moved))
    index, *_ = table.neighbours(observation(moved, ~third))
    chex.assert_trees_all_equal(index, table.index)
    fewer = Observation(np.zeros(3), lambda x: x, Diagonal(1.0))
    with pytest.raises(ValueError, match="built for 15 observations, got 3"):
        table.neighbours(fewer)


def test_a_step_ends_at_the_length_itself():
    line = {"x": np.arange(10.0)}
    table = Localisation(
        Plane(np.arange(10.0), period=10.0), line, length=2.0, taper=Step()
    )
    assert table.index.shape == (10, 5)
    np.testing.assert_array_equal(table.taper, 1)
    near = np.sort(np.asarray(table.index[0]))
    np.testing.assert_array_equal(near, [0, 1, 2, 8, 9])


def test_a_moving_table_is_the_table_built_for_these_stations():
    coordinates = scattered()
    table = Localisation(GRID, coordinates, length=2e6, radius=6e6)
    moving = Moving(GRID, length=2e6, width=table.index.shape[2], radius=6e6)
    seen = Observation(np.zeros(15), lambda x: x, Diagonal(1.0), None, coordinates)
    near = eqx.filter_jit(moving.neighbours)(seen)
    chex.assert_trees_all_close(near.taper, table.taper, rtol=1e-12)
    assert int(near.overflow) == 0
    np.testing.assert_array_equal(near.reached, table.reached)


def test_a_moving_table_without_room_keeps_the_nearest_and_counts_the_others():
    coordinates = scattered(5)
    seen = Observation(np.zeros(5), lambda x: x, Diagonal(1.0), None, coordinates)
    near = Moving(GRID, length=1e8, width=2).neighbours(seen)
    assert int(near.overflow) == 7 * 12 * 3
    expected = np.argsort(angles(coordinates), axis=-1)[..., :2]
    np.testing.assert_array_equal(near.index, expected)
    # Masked stations take no room.
    masked = eqx.tree_at(lambda o: o.mask, seen, np.asarray([1, 0, 0, 1, 0], bool))
    near = Moving(GRID, length=1e8, width=2).neighbours(masked)
    assert int(near.overflow) == 0
    np.testing.assert_array_equal(
        np.sort(near.index), np.broadcast_to([0, 3], (7, 12, 2))
    )


def test_wrong_use_is_reported():
    coordinates = scattered()
    with pytest.raises(ValueError, match=r"\['longitude'\] is missing"):
        Localisation(GRID, {"latitude": np.zeros(2)}, length=1e6)
    with pytest.raises(ValueError, match="say where the observations are"):
        Localisation(GRID, None, length=1e6)
    nowhere = {"latitude": np.zeros(0), "longitude": np.zeros(0)}
    with pytest.raises(ValueError, match="`coordinates` must be those of one obs"):
        Localisation(GRID, nowhere, length=1e6)
    uneven = {"latitude": np.zeros(2), "longitude": np.zeros(3)}
    with pytest.raises(ValueError, match="as many latitudes as longitudes, got 2 and"):
        Localisation(GRID, uneven, length=1e6)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`length` must be above 0"):
        Localisation(GRID, coordinates, length=0.0)
    outside = {"latitude": np.asarray([100.0]), "longitude": np.zeros(1)}
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"must lie in \[-90, 90\]"):
        Localisation(GRID, outside, length=1e6)
    with pytest.raises(eqx.EquinoxRuntimeError, match="is 14, a point has 15 neighb"):
        Localisation(GRID, coordinates, length=jnp.inf, width=14)
    build = lambda length: Localisation(GRID, coordinates, length=length, width=14)
    with pytest.raises(eqx.EquinoxRuntimeError, match="is 14, a point has more neig"):
        eqx.filter_jit(build)(jnp.asarray(jnp.inf))
    with pytest.raises(ValueError, match="`width` must be given under tracing"):
        jax.jit(lambda c: Localisation(GRID, c, length=1e6).taper)(coordinates)
    with pytest.raises(ValueError, match="`width` must be at least 1"):
        Moving(GRID, length=1.0, width=0)
    with pytest.raises(ValueError, match="`radius` goes with a"):
        Localisation(Plane(np.arange(3.0)), {"x": np.zeros(1)}, length=1.0, radius=1.0)
