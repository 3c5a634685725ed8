import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from skyens import sphere
from skyens.assimilation import Localisation, gaspari_cohn
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
        # Gaspari & Cohn (1999), section 4: f(s) = max(0, 1 - 2 s) convolved with itself
        # in three dimensions, here by quadrature in cylindrical shells about the axis.
        triangle = lambda s: np.maximum(0, 1 - s)

        def convolve(r):
            shell = lambda x, z: (
                x * triangle(np.hypot(x, z)) * triangle(np.hypot(x, z - r))
            )
            return integrate.dblquad(shell, -1, 1 + r, 0, 1, epsabs=1e-9)[0]

        r = np.asarray([0.0, 0.4, 1.0, 1.3, 1.8, 2.2])
        expected = np.asarray([convolve(x) for x in r]) / convolve(0.0)
        actual = self.variant(gaspari_cohn)(jnp.asarray(r))
        np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_gaspari_cohn_is_smooth_positive_and_ends_at_two():
    r = jnp.linspace(0, 2, 4001, dtype=jnp.float32)
    value = gaspari_cohn(r)
    assert value.dtype == jnp.float32
    assert np.all(value >= 0)
    assert np.all(np.diff(value) <= 0)
    np.testing.assert_array_equal(gaspari_cohn(jnp.asarray([2.0, 3.0, jnp.inf])), 0)
    np.testing.assert_allclose(gaspari_cohn(jnp.asarray(1.0)), 5 / 24, rtol=1e-15)
    slope = jax.vmap(jax.grad(gaspari_cohn))
    both_sides = jnp.asarray([1 - 1e-9, 1 + 1e-9])
    np.testing.assert_allclose(*slope(both_sides), rtol=1e-7)
    np.testing.assert_array_equal(slope(jnp.asarray([0.0, 2.0, 5.0, jnp.inf])), 0)


def test_the_table_holds_every_observation_in_reach_with_its_weight():
    coordinates = scattered()
    length, radius = 2.0e6, 6.0e6
    table = Localisation(GRID, coordinates, length=length, radius=radius)
    r = angles(coordinates) * radius / length
    assert table.index.shape == (7, 12, (r < 2).sum(-1).max())
    dense = np.zeros(r.shape)
    np.put_along_axis(dense, np.asarray(table.index), np.asarray(table.taper), -1)
    expected = gaspari_cohn(jnp.asarray(r))
    np.testing.assert_allclose(dense, expected, atol=1e-12)


def test_an_infinite_length_uses_everything_everywhere():
    table = Localisation(GRID, scattered(), length=jnp.inf)
    assert table.index.shape == (7, 12, 15)
    np.testing.assert_array_equal(table.taper, 1)


def test_an_observation_without_a_place_is_nobody_s_neighbour():
    coordinates = scattered(3)
    lost = {name: np.append(value, np.nan) for name, value in coordinates.items()}
    with_lost = Localisation(GRID, lost, length=2e7, width=3)
    without = Localisation(GRID, coordinates, length=2e7)
    chex.assert_trees_all_equal(with_lost.index, without.index)
    chex.assert_trees_all_equal(with_lost.taper, without.taper)


def test_it_is_built_under_jit_and_differentiable_in_length():
    coordinates = {k: jnp.asarray(v) for k, v in scattered(4).items()}

    def total(length):
        table = Localisation(GRID, coordinates, length=length, width=4)
        return jnp.sum(jnp.sqrt(jnp.where(table.taper > 0, table.taper, 1)))

    slope = jax.jit(jax.grad(total))(2e6)
    step = 20.0
    expected = (total(2e6 + step) - total(2e6 - step)) / (2 * step)
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


def test_tables_keep_single_precision():
    coordinates = {k: v.astype(np.float32) for k, v in scattered().items()}
    table = Localisation(GRID, coordinates, length=2e6)
    assert table.taper.dtype == jnp.float32


def test_it_serves_only_the_observations_it_was_built_for():
    coordinates = scattered(4)
    table = Localisation(GRID, coordinates, length=2e6)

    def observation(latitude, mask=None):
        operator = Interpolate(GRID, latitude, coordinates["longitude"] + 360)
        return Observation(np.zeros(4), operator, Diagonal(1.0), mask)

    index, _ = table.neighbours(observation(coordinates["latitude"]))
    chex.assert_trees_all_equal(index, table.index)
    moved = coordinates["latitude"] * np.asarray([1.0, 1.0, 0.9, 1.0])
    with pytest.raises(eqx.EquinoxRuntimeError, match="not where the localisation"):
        eqx.filter_jit(table.neighbours)(observation(moved))
    masked = np.asarray([True, True, False, True])
    index, _ = table.neighbours(observation(moved, masked))
    chex.assert_trees_all_equal(index, table.index)
    fewer = Observation(np.zeros(3), lambda x: x, Diagonal(1.0))
    with pytest.raises(ValueError, match="built for 4 observations, got 3"):
        table.neighbours(fewer)


def test_wrong_use_is_reported():
    coordinates = scattered()
    with pytest.raises(ValueError, match=r"\['longitude'\] is missing"):
        Localisation(GRID, {"latitude": np.zeros(2)}, length=1e6)
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
