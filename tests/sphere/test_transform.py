from collections import Counter

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun
from jax.test_util import check_grads

from skyens import sphere
from skyens.sphere import SphericalHarmonics

GRIDS = [
    sphere.gauss_legendre(9, 18, longitude_origin=5.0),
    sphere.gauss_legendre(8, 17, north_first=True),
    sphere.equiangular(8, 16),
    sphere.cell_centred(9, 19, north_first=True),
]


def transform(grid):
    return SphericalHarmonics(grid, grid.largest_lmax)


def as_arrays(function):
    """Differences are taken with NumPy arrays."""
    return lambda *xs: function(*map(jnp.asarray, xs))


def transforms_in(jaxpr):
    """How often each of our primitives is called, jit and scan included."""
    counts = Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name.startswith("spherical"):
            counts[equation.primitive.name] += 1
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                counts += transforms_in(inner)
    return counts


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.kind)
def test_derivatives_of_both_modes_are_those_of_differences(grid):
    sht = transform(grid)
    x, y = jr.normal(jr.key(0), (2, 2, *grid.shape))
    c, d = sht.analysis(jnp.stack([x, y]))
    with jax.numpy_dtype_promotion("standard"):  # for the differences' own arithmetic
        check_grads(as_arrays(sht.analysis), (x,), 2, ["fwd", "rev"])
        check_grads(as_arrays(sht.synthesis), (c,), 2, ["fwd", "rev"])
        check_grads(as_arrays(sht.wind_analysis), (x, y), 1, ["fwd", "rev"])
        check_grads(as_arrays(sht.wind_synthesis), (c, d), 1, ["fwd", "rev"])


def test_a_reverse_derivative_costs_the_transforms_of_its_function():
    sht = transform(GRIDS[0])
    x = jr.normal(jr.key(0), GRIDS[0].shape)
    there_and_back = lambda x: jnp.sum(sht.synthesis(sht.analysis(x)) ** 2)
    counts = transforms_in(jax.make_jaxpr(jax.grad(there_and_back))(x).jaxpr)
    assert counts == {"spherical_analysis": 2, "spherical_synthesis": 2}
    batched = jax.vmap(jax.grad(there_and_back))
    counts = transforms_in(jax.make_jaxpr(batched)(jnp.stack([x, x])).jaxpr)
    assert counts == {"spherical_analysis": 2, "spherical_synthesis": 2}
    text = jax.jit(jax.grad(there_and_back)).lower(x).compile().as_text()
    assert text is not None
    assert text.count(" fft(") == 4


@pytest.mark.parametrize("axis", [0, 1, 3])
def test_vmap_over_any_axis_is_a_batch(axis):
    sht = transform(GRIDS[1])
    x = jr.normal(jr.key(1), (3, 2, *GRIDS[1].shape))
    there = jax.vmap(sht.analysis, axis, 1)(jnp.moveaxis(x, 0, axis))
    chex.assert_trees_all_close(there, jnp.moveaxis(sht.analysis(x), 0, 1), atol=1e-14)
    back = jax.vmap(sht.synthesis, 1, axis)(there)
    expected = jnp.moveaxis(sht.synthesis(sht.analysis(x)), 0, axis)
    chex.assert_trees_all_close(back, expected, atol=1e-14)


def test_an_ensemble_of_transforms_is_differentiable_either_way_round():
    grid = GRIDS[2]
    many = eqx.filter_vmap(lambda _: transform(grid), axis_size=2)(None)
    one, x = transform(grid), jr.normal(jr.key(2), (2, 3, *grid.shape))
    loss = lambda sht, x: jnp.sum(sht.synthesis(sht.analysis(x)) ** 2)
    expected = jax.grad(lambda x: loss(one, x))(x)
    inside = eqx.filter_vmap(lambda sht, x: jax.grad(lambda x: loss(sht, x))(x))
    chex.assert_trees_all_close(inside(many, x), expected, atol=1e-12)
    outside = jax.grad(lambda x: eqx.filter_vmap(loss)(many, x).sum())(x)
    chex.assert_trees_all_close(outside, expected, atol=1e-12)


def test_tables_have_no_derivative():
    grid = GRIDS[3]
    x = jr.normal(jr.key(3), grid.shape)

    def loss(sht):
        u, v = sht.gradient(x)
        vorticity, divergence = sht.wind_analysis(u, v)
        return jnp.sum(jnp.abs(vorticity + 1j * divergence) + sht.power_spectrum(x)[0])

    for function in (loss, lambda sht: jnp.abs(sht.analysis(x)).sum()):
        slopes = eqx.filter_grad(function)(transform(grid))
        chex.assert_trees_all_equal(slopes, jax.tree.map(jnp.zeros_like, slopes))


def test_scan_remat_and_linearize_take_it():
    sht = transform(GRIDS[0])
    x = jr.normal(jr.key(4), GRIDS[0].shape)
    smooth = lambda x: sht.synthesis(sht.analysis(x))
    thrice = lambda x: jax.lax.scan(lambda x, _: (smooth(x), None), x, length=3)[0]
    # Analysis after synthesis is the identity, so once is as good as three times.
    chex.assert_trees_all_close(jax.jit(thrice)(x), smooth(x), atol=1e-12)
    total = lambda f: jax.grad(lambda x: jnp.sum(jnp.sin(f(x))))(x)
    chex.assert_trees_all_close(
        total(jax.checkpoint(thrice)), total(smooth), atol=1e-12
    )
    value, linear = jax.linearize(smooth, x)
    chex.assert_trees_all_close(linear(x), value, atol=1e-12)
    closed = jax.make_jaxpr(smooth)(x)
    chex.assert_trees_all_close(jaxpr_as_fun(closed)(x)[0], value)


def test_shard_map_over_a_batch():
    sht = transform(GRIDS[0])
    x = jr.normal(jr.key(5), (2, *GRIDS[0].shape))
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.shard_map(
        sht.analysis, mesh=mesh, in_specs=jax.P("batch"), out_specs=jax.P("batch")
    )
    chex.assert_trees_all_close(jax.jit(spread)(x), sht.analysis(x), atol=1e-14)


@pytest.mark.parametrize("lmax", [20, 100])
def test_what_lies_above_the_diagonal_or_in_the_imaginary_mean_is_ignored(lmax):
    sht = SphericalHarmonics(sphere.gauss_legendre(lmax + 1, 2 * lmax + 2), lmax)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, lmax + 1, lmax + 1))
    c = jnp.asarray(noise[0] + 1j * noise[1])
    lower = np.tril(noise[0]) + 1j * np.tril(noise[1])
    lower[:, 0] = lower[:, 0].real
    inside = jnp.asarray(lower)
    chex.assert_trees_all_close(sht.synthesis(c), sht.synthesis(inside), atol=1e-12)
    chex.assert_trees_all_close(sht.analysis(sht.synthesis(c)), inside, atol=1e-12)
    assert jnp.all(jnp.triu(sht.analysis(sht.synthesis(c)), 1) == 0)
