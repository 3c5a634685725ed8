from functools import partial

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings, strategies as st

from skyens import sphere

MAKERS = [sphere.gauss_legendre, sphere.equiangular, sphere.cell_centred]


@pytest.mark.parametrize("make", MAKERS)
def test_the_global_mean_of_a_band_limited_field_is_its_first_coefficient(make):
    grid = make(13, 25, north_first=True, longitude_origin=7.0)
    colatitude, longitude = np.meshgrid(
        grid.colatitude, np.deg2rad(grid.longitude), indexing="ij"
    )
    field = 3.0
    for l in range(1, 13):
        field = field + scipy.special.sph_harm_y(l, l // 2, colatitude, longitude).real
    mean = jax.jit(partial(sphere.global_mean, grid))(jnp.asarray(field))
    np.testing.assert_allclose(mean, 3, rtol=1e-14)


@settings(deadline=None, max_examples=20)
@given(make=st.sampled_from(MAKERS), seed=st.integers(0, 2**31), fine=st.booleans())
def test_means_are_numpys_weighted_averages(make, seed, fine):
    grid = make(5, 7)
    field = jr.normal(jr.key(seed), (2, 3, 5, 7))
    where = np.array(jr.bernoulli(jr.key(seed + 1), 0.6, (3, 5, 7)))
    where[:, 0, 0] = True
    weights = grid.cell_areas if fine else None
    rows = (grid.cell_areas if fine else grid.weights)[:, None]
    mean = sphere.global_mean(grid, field, jnp.asarray(where), weights=weights)
    expected = [
        [np.average(field[i, j], weights=rows * where[j]) for j in range(3)]
        for i in range(2)
    ]
    np.testing.assert_allclose(mean, expected, rtol=1e-12, atol=1e-13)
    zonal = sphere.zonal_mean(grid, field)
    np.testing.assert_allclose(zonal, np.mean(field, -1), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("mean", [sphere.global_mean, sphere.zonal_mean])
def test_what_is_masked_changes_neither_value_nor_gradient(mean):
    grid = sphere.equiangular(4, 6)
    field = jr.normal(jr.key(0), (4, 6))
    where = jnp.ones((4, 6), bool).at[1, 2].set(False)
    holed = field.at[1, 2].set(jnp.nan)
    total = lambda x: mean(grid, x, where).sum()
    chex.assert_trees_all_close(total(holed), total(field.at[1, 2].set(1e30)))
    gradient = jax.grad(total)(holed)
    assert gradient[1, 2] == 0
    assert (gradient != 0).sum() == 23
    assert jnp.isnan(mean(grid, holed)).any()


def test_nothing_selected_is_nan_with_a_finite_gradient():
    grid = sphere.equiangular(4, 6)
    where = jnp.ones((4, 6), bool).at[1].set(False)
    zonal = sphere.zonal_mean(grid, jnp.ones((4, 6)), where)
    np.testing.assert_array_equal(jnp.isnan(zonal), [False, True, False, False])
    assert jnp.isnan(sphere.global_mean(grid, jnp.ones((4, 6)), where & False))
    total = lambda x: jnp.nansum(sphere.zonal_mean(grid, x, where))
    chex.assert_tree_all_finite(jax.grad(total)(jnp.ones((4, 6))))


def test_half_precision_is_summed_in_single():
    grid = sphere.equiangular(90, 180)
    field = jnp.full(grid.shape, 300, jnp.bfloat16)
    mean = sphere.global_mean(grid, field)
    # A running sum in bfloat16 stops growing at 256 times its terms.
    assert mean.dtype == jnp.bfloat16
    assert mean == 300
    assert sphere.zonal_mean(grid, field.astype(jnp.float32)).dtype == jnp.float32


def test_wrong_use_is_reported():
    grid = sphere.equiangular(4, 6)
    for mean in (sphere.zonal_mean, sphere.global_mean):
        with pytest.raises(ValueError, match="does not lie on this"):
            mean(grid, jnp.zeros((6, 4)))
