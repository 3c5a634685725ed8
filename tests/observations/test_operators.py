import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator

from skyens import sphere
from skyens.observations import Index, Interpolate, Linear


def test_index_sees_entries_as_numpy_does():
    state = jr.normal(jr.key(0), (4, 5, 6))
    rows, columns = np.asarray([0, 3, -1]), np.asarray([4, -5, 2])
    chex.assert_trees_all_equal(Index(rows)(state), state[rows])
    chex.assert_trees_all_equal(Index((rows, columns))(state), state[rows, columns])


def test_an_index_outside_is_an_error_or_nan_never_a_neighbour():
    state = jnp.arange(4.0)
    for outside in (4, -5):
        with pytest.raises(ValueError, match=f"axis 0 of size 4, got {outside}"):
            Index(np.asarray([0, outside]))(state)
        seen = jax.jit(lambda index: Index(index)(state))(jnp.asarray([1, outside]))
        np.testing.assert_array_equal(seen, [1.0, np.nan])


def test_linear_is_a_product_in_the_dtype_of_the_state():
    matrix = np.random.default_rng(0).normal(size=(3, 6))
    state = jr.normal(jr.key(1), (2, 3))
    expected = matrix @ np.asarray(state).reshape(-1)
    np.testing.assert_allclose(Linear(matrix)(state), expected, rtol=1e-14, atol=1e-14)
    assert Linear(matrix)(state.astype(jnp.float32)).dtype == jnp.float32


class InterpolateTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_it_is_bilinear_on_the_globe(self):
        grid = sphere.equiangular(7, 12)
        field = jr.normal(jr.key(2), (2, 7, 12))
        generator = np.random.default_rng(3)
        latitude = generator.uniform(-90, 90, 40)
        longitude = generator.uniform(-180, 540, 40)
        wrapped = np.concatenate([field, field[..., :1]], axis=-1)
        axes = (grid.latitude, np.append(grid.longitude, 360.0))
        reference = RegularGridInterpolator(axes, np.moveaxis(wrapped, 0, -1))
        expected = reference(np.stack([latitude, longitude % 360], axis=-1)).T
        see = self.variant(lambda operator, field: operator(field))
        seen = see(Interpolate(grid, latitude, longitude), field)
        np.testing.assert_allclose(seen, expected, rtol=1e-12, atol=1e-12)


def test_a_point_without_a_place_sees_nan_and_has_no_gradient():
    grid = sphere.equiangular(7, 12)
    operator = Interpolate(grid, np.asarray([10.0, np.nan]), np.asarray([20.0, 5.0]))
    field = jr.normal(jr.key(4), (7, 12))
    assert np.isnan(operator(field)).tolist() == [False, True]
    seen = lambda field: jnp.where(jnp.asarray([True, False]), operator(field), 0).sum()
    gradient = jax.grad(seen)(field)
    np.testing.assert_allclose(gradient.sum(), 1.0, rtol=1e-12)
    assert operator.coordinates.keys() == {"latitude", "longitude"}


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="address 2 axes"):
        Index((np.asarray([0]), np.asarray([0])))(jnp.ones(3))
    with pytest.raises(ValueError, match=r"\(2, 3\) does not apply .* 4 entries"):
        Linear(np.ones((2, 3)))(jnp.ones((2, 2)))
    grid = sphere.equiangular(7, 12)
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"in \[-90, 90\]: 1 of 2"):
        Interpolate(grid, np.asarray([0.0, 91.0]), np.zeros(2))
    with pytest.raises(ValueError, match="does not lie on this"):
        Interpolate(grid, np.zeros(2), np.zeros(2))(jnp.ones((7, 13)))
