from functools import partial

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens.sphere._bands import Band, separable


def draw(seed, outputs, sources, entries):
    """A random sparse matrix, entries repeated: as a band and in full."""
    rng = np.random.default_rng(seed)
    output = rng.integers(outputs, size=entries)
    source = rng.integers(sources, size=entries)
    weight = rng.normal(size=entries) * (rng.random(entries) < 0.8)
    matrix = np.zeros((outputs, sources))
    np.add.at(matrix, (output, source), weight)
    return Band(output, source, weight, (outputs, sources)), matrix


@settings(deadline=None, max_examples=8)
@given(
    seed=st.integers(0, 2**31),
    outputs=st.integers(1, 6),
    sources=st.integers(1, 6),
    entries=st.integers(0, 30),
    axis=st.sampled_from([-1, -2]),
)
def test_a_band_is_its_matrix_and_the_adjoint_its_transpose(
    seed, outputs, sources, entries, axis
):
    band, matrix = draw(seed, outputs, sources, entries)
    assert band.shape == matrix.shape
    x = jr.normal(jr.key(seed), (2, 3, sources) if axis == -1 else (2, sources, 3))
    apply = partial(band, axis=axis)
    full = lambda x: np.moveaxis(np.moveaxis(x, axis, -1) @ matrix.T, -1, axis)
    # Compiled whole: few small programs.
    y = jr.normal(jr.key(seed + 1), jax.eval_shape(apply, x).shape)
    run = jax.jit(lambda x, y: (apply(x), jax.vjp(apply, x)[1](y)[0]))
    value, adjoint = run(x, y)
    np.testing.assert_allclose(value, full(np.array(x)), atol=1e-13)
    np.testing.assert_allclose(np.vdot(value, y), np.vdot(x, adjoint), atol=1e-12)
    full = lambda y: np.moveaxis(np.moveaxis(y, axis, -1) @ matrix, -1, axis)
    np.testing.assert_allclose(adjoint, full(np.array(y)), atol=1e-13)


def test_every_transformation_of_jax_goes_through():
    band, matrix = draw(0, 4, 5, 12)
    x, t = jr.normal(jr.key(0), (2, 3, 5))
    along = lambda x: band(x, axis=-1)
    tangent = jax.jvp(along, (x,), (t,))[1]
    chex.assert_trees_all_close(tangent, t @ matrix.T, atol=1e-13)
    chex.assert_trees_all_close(jax.jit(along)(x), along(x))
    chex.assert_trees_all_close(jax.vmap(along)(x), along(x), atol=1e-13)
    # An axis mapped from the end is not the one that the band acts along.
    chex.assert_trees_all_close(jax.vmap(along, 1, 1)(x.T), along(x).T, atol=1e-13)
    chex.assert_trees_all_close(jax.jacrev(along)(x[0]), matrix, atol=1e-13)
    chex.assert_trees_all_close(jax.jacfwd(along)(x[0]), matrix, atol=1e-13)
    hessian = jax.hessian(lambda x: (along(x) ** 2).sum() / 2)(x[0])
    chex.assert_trees_all_close(hessian, matrix.T @ matrix, atol=1e-12)
    per_row = jax.vmap(jax.grad(lambda x: (along(x) ** 3).sum()))(x)
    chex.assert_trees_all_close(per_row, 3 * (x @ matrix.T) ** 2 @ matrix, atol=1e-12)
    back = jax.linear_transpose(along, x)(along(x))[0]
    chex.assert_trees_all_close(back, x @ matrix.T @ matrix, atol=1e-12)


def test_an_ensemble_of_bands_is_mapped():
    bands = [draw(0, 4, 5, 12)[0]] * 2
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *bands)
    x = jr.normal(jr.key(0), (2, 5))
    out = eqx.filter_vmap(lambda band, x: band(x, axis=-1))(stacked, x)
    chex.assert_trees_all_close(out, bands[0](x, axis=-1), atol=1e-13)


@pytest.mark.parametrize(
    "shape", [((2, 9), (8, 3)), ((9, 2), (3, 8)), ((9, 9), (2, 2))]
)
def test_rows_and_columns_commute(shape):
    (rows, row_matrix), (columns, column_matrix) = (
        draw(0, *shape[0], entries=20),
        draw(1, *shape[1], entries=20),
    )
    x = jr.normal(jr.key(0), (2, row_matrix.shape[1], column_matrix.shape[1]))
    expected = row_matrix @ np.array(x) @ column_matrix.T
    chex.assert_trees_all_close(separable(rows, columns, x), expected, atol=1e-12)


def test_it_runs_and_turns_back_within_a_shard():
    band, matrix = draw(0, 4, 5, 12)
    mesh = jax.make_mesh((1,), ("batch",), (jax.sharding.AxisType.Auto,))
    spec = jax.P("batch")
    mapped = jax.shard_map(
        partial(band, axis=-1), mesh=mesh, in_specs=spec, out_specs=spec
    )
    x = jr.normal(jr.key(0), (2, 5))
    value, back = jax.vjp(jax.jit(mapped), x)
    chex.assert_trees_all_close(value, x @ matrix.T, atol=1e-13)
    chex.assert_trees_all_close(back(value)[0], value @ matrix, atol=1e-12)


def test_tables_are_constants():
    band = draw(0, 4, 5, 12)[0]
    total = lambda band, x: (band(x, axis=-1) ** 2).sum()
    for x in (jnp.ones(5), jnp.ones(5, jnp.float32)):
        gradient = eqx.filter_grad(total)(band, x)
        for leaf in jax.tree.leaves(eqx.filter(gradient, eqx.is_inexact_array)):
            assert not leaf.any()


def test_a_nan_reaches_only_the_sums_that_it_has_a_weight_in():
    band, matrix = draw(3, 6, 5, 9)
    x = jnp.ones(5).at[2].set(jnp.nan)
    np.testing.assert_array_equal(jnp.isnan(band(x, axis=-1)), matrix[:, 2] != 0)
    y = jnp.ones(6).at[1].set(jnp.nan)
    (back,) = jax.linear_transpose(partial(band, axis=-1), x)(y)
    np.testing.assert_array_equal(jnp.isnan(back), matrix[1] != 0)


def test_single_precision_stays():
    band, matrix = draw(0, 4, 5, 12)
    x = jr.normal(jr.key(0), (5,), jnp.float32)
    value, back = jax.vjp(partial(band, axis=-1), x)
    assert value.dtype == back(value)[0].dtype == jnp.float32
    chex.assert_trees_all_close(value, matrix.astype(np.float32) @ x, rtol=1e-5)
