import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens import sphere

GRIDS = [
    sphere.equiangular(9, 16),
    sphere.gauss_legendre(8, 15, north_first=True, longitude_origin=7.0),
    sphere.cell_centred(6, 12),
]


def draw(seed, shape):
    return np.random.default_rng(seed).normal(size=shape)


@functools.cache
def neighbours(grid, radius):
    """Return which points are within the radius of which, by vectors."""
    latitude, longitude = np.meshgrid(
        np.deg2rad(grid.latitude), np.deg2rad(grid.longitude), indexing="ij"
    )
    flat = np.cos(latitude)
    towards = [flat * np.cos(longitude), flat * np.sin(longitude), np.sin(latitude)]
    points = np.stack(towards, axis=-1).reshape(-1, 3)
    chord = np.linalg.norm(points[:, None] - points[None], axis=-1)
    return chord <= 2 * np.sin(np.deg2rad(radius) / 2) + 1e-9


def brute_force(grid, field, radius, where=None):
    near = neighbours(grid, radius) * np.repeat(grid.cell_areas, grid.n_longitude)
    if where is not None:
        near = near * where.ravel()
        field = np.where(where, field, 0)
    with np.errstate(invalid="ignore"):
        mean = near @ field.reshape(-1, near.shape[1]).T / near.sum(1)[:, None]
    return mean.T.reshape(field.shape)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("radius", [0.0, 22.5, 50.0, 100.0, 180.0])
def test_it_is_the_weighted_mean_of_all_points_within_the_radius(grid, radius):
    field = draw(0, (2, *grid.shape))
    found = sphere.cap_mean(grid, jnp.asarray(field), radius)
    np.testing.assert_allclose(found, brute_force(grid, field, radius), atol=1e-13)


@pytest.mark.parametrize("grid", GRIDS[:2])
def test_what_is_masked_has_no_part_and_empty_caps_are_nan(grid):
    field = draw(1, grid.shape)
    where = np.random.default_rng(2).random(grid.shape) < 0.15
    holed = jnp.asarray(np.where(where, field, np.nan))
    mean = lambda x: sphere.cap_mean(grid, x, 30.0, jnp.asarray(where))
    found, expected = mean(holed), brute_force(grid, field, 30.0, where)
    assert np.isnan(expected).any()
    np.testing.assert_allclose(found, expected, atol=1e-12)
    slope = jax.grad(lambda x: jnp.nansum(mean(x)))(holed)
    chex.assert_tree_all_finite(slope)
    assert not slope[~where].any()
    assert slope[where].all()


def test_the_slopes_are_the_transpose():
    grid = GRIDS[0]
    near = neighbours(grid, 40.0) * np.repeat(grid.cell_areas, grid.n_longitude)
    matrix = near / near.sum(1, keepdims=True)
    mean = lambda x: sphere.cap_mean(grid, x, 40.0)
    field, weights = (jnp.asarray(draw(k, grid.shape)) for k in (3, 4))
    _, pull = jax.vjp(mean, field)
    expected = (matrix.T @ np.asarray(weights).ravel()).reshape(grid.shape)
    np.testing.assert_allclose(pull(weights)[0], expected, atol=1e-13)
    _, push = jax.jvp(mean, (field,), (weights,))
    np.testing.assert_allclose(push, mean(weights), atol=1e-13)


def test_float32_is_exact_at_a_large_offset_and_half_precision_is_kept():
    grid = GRIDS[0]
    field = (5e5 + draw(5, grid.shape)).astype(np.float32)
    found = sphere.cap_mean(grid, jnp.asarray(field), 40.0)
    assert found.dtype == jnp.float32
    expected = brute_force(grid, field.astype(float), 40.0)
    # One spacing of float32 at the offset.
    np.testing.assert_allclose(found, expected, atol=0.04)
    half = sphere.cap_mean(grid, jnp.full(grid.shape, 300, jnp.bfloat16), 40.0)
    assert half.dtype == jnp.bfloat16
    assert (half == 300).all()


def test_a_cap_across_the_pole_holds_the_other_side():
    grid = sphere.equiangular(19, 36)  # every 10 degrees
    field = jnp.zeros(grid.shape).at[-2, 18].set(1.0)  # 80 north, 180 east
    found = sphere.cap_mean(grid, field, 20.5)
    assert found[-2, 0] > 0  # 80 north, 0 east: 20 degrees away
    assert found[-3, 0] == pytest.approx(0, abs=1e-15)


def test_gradients_hold_no_kernel_of_all_pairs_of_rows():
    grid = sphere.cell_centred(90, 180)
    total = lambda x: (sphere.cap_mean(grid, x, 20.0) ** 2).sum()
    shape = jax.ShapeDtypeStruct(grid.shape, jnp.float32)
    memory = jax.jit(jax.grad(total)).lower(shape).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 20 * (4 * 90 * 180)


def test_wrong_use_is_reported():
    grid = GRIDS[0]
    with pytest.raises(ValueError, match="does not lie on this"):
        sphere.cap_mean(grid, jnp.zeros((16, 9)), 10.0)
    with pytest.raises(ValueError, match=r"`radius_degrees` must lie in \[0, 180\]"):
        sphere.cap_mean(grid, jnp.zeros(grid.shape), -1.0)
