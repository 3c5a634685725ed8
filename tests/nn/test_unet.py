from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import sphere
from skyens.nn import Condition, Plane, UNet

GRID = sphere.equiangular(5, 8)
SIZES: dict[str, Any] = dict(widths=(6, 8), blocks=2, heads=2, embedding=6)
TAKES: dict[str, Any] = dict(field_channels=1, vector_size=2, token_size=3)
NET = UNet(GRID, 2, 3, **SIZES, **TAKES, key=jr.key(0))
draw = lambda *shape, seed=0: jnp.asarray(
    np.random.default_rng(seed).normal(size=shape)
)
X = draw(2, *GRID.shape)
TOLD = Condition(draw(1, *GRID.shape, seed=1), draw(2), draw(4, 3, seed=2))
run = eqx.filter_jit(lambda net, x, level, told: net(x, level, condition=told))


def test_the_level_and_each_part_of_the_condition_matter(awake):
    # Five samples at once, which is what each gives alone.
    net, five = awake(NET), lambda leaf, i: jnp.stack([leaf] * 5).at[i].multiply(-1)
    parts = TOLD.fields, TOLD.vector, TOLD.tokens
    told = Condition(*(five(part, i + 2) for i, part in enumerate(parts)))
    levels, x = five(jnp.asarray(0.3), 1), jnp.stack([X] * 5)
    one = lambda x, level, told: net(x, level, condition=told)
    base, *others = np.asarray(eqx.filter_jit(jax.vmap(one))(x, levels, told))
    assert base.shape == (3, *GRID.shape)
    for other in others:
        assert np.abs(other - base).max() > 1e-3
    alone = run(net, X, jnp.asarray(0.3), TOLD)
    np.testing.assert_allclose(base, alone, atol=1e-10 * np.abs(alone).max())


def test_no_condition_is_a_condition_of_zeros(awake):
    dropped = run(
        awake(NET), X, jnp.asarray(0.3), jax.tree.map(lambda leaf: 0 * leaf, TOLD)
    )
    np.testing.assert_allclose(run(awake(NET), X, 0.3, None), dropped, atol=1e-12)


def test_it_turns_with_the_sphere_about_its_axis(awake):
    turn = lambda x: jnp.roll(x, 2, axis=-1)
    turned = eqx.tree_at(lambda c: c.fields, TOLD, turn(TOLD.fields))
    found = run(awake(NET), turn(X), jnp.asarray(0.3), turned)
    expected = turn(run(awake(NET), X, jnp.asarray(0.3), TOLD))
    np.testing.assert_allclose(found, expected, atol=1e-10 * np.abs(expected).max())


def test_what_happens_at_a_pole_is_seen_across_it():
    # One convolution, then a block of two: reach of three cells, over the pole.
    grid = sphere.equiangular(7, 8)
    net = UNet(grid, 1, 1, widths=(6,), blocks=1, attention=0, key=jr.key(0))
    base = run(net, draw(1, *grid.shape), 0.3, None)
    nudged = run(net, draw(1, *grid.shape).at[0, -2, 0].add(1.0), 0.3, None)
    change = np.abs(nudged - base)[0] > 0
    assert change[-2, [3, 4, 5]].all()  # half the globe away
    assert not change[:2].any()


def test_a_periodic_plane_has_no_edge(awake):
    plane = Plane((4, 8), (True, True))
    net = awake(UNet(plane, 2, 1, **SIZES, attention=0, key=jr.key(0)))
    x = draw(2, *plane.shape)
    shift = lambda x: jnp.roll(x, (2, 4), axis=(-2, -1))
    expected = shift(run(net, x, 0.3, None))
    found = run(net, shift(x), 0.3, None)
    np.testing.assert_allclose(found, expected, atol=1e-10 * np.abs(expected).max())


def test_the_main_path_is_linear():
    # With all residuals taken away what is left scales with the input.
    silent = lambda net: [
        part
        for blocks in (*net.down, *net.up)
        for part in (blocks.second.weight, blocks.second.bias)
    ]
    net = UNet(Plane((4, 8)), 2, 1, **SIZES, attention=0, key=jr.key(0))
    net = eqx.tree_at(silent, net, replace_fn=jnp.zeros_like)
    x = draw(2, 4, 8)
    one, two = (run(net, scale * x, 0.3, None) for scale in (1, -2.5))
    np.testing.assert_allclose(two, -2.5 * one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("dtype", "share"), [(jnp.float32, 1e-4), (jnp.bfloat16, 0.1)])
def test_the_dtype_of_the_input_stays(dtype, share):
    wide = run(NET, X, jnp.asarray(0.3), TOLD)
    y = run(NET, X.astype(dtype), jnp.asarray(0.3), TOLD)
    assert y.dtype == dtype
    error = np.abs(np.asarray(y, float) - wide).max()
    assert error < share * np.abs(wide).max()


def test_gradients_reach_every_parameter_and_no_table(awake, slopes):
    parameters, inner = slopes(awake(NET), X, jnp.asarray(0.3), TOLD)
    assert jax.tree.leaves(parameters.halvings) == []
    for leaf in jax.tree.leaves(parameters):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 0
    direction = 1e-6 * draw(2, *GRID.shape, seed=5)
    total = lambda x: (
        np.asarray(run(awake(NET), x, jnp.asarray(0.3), TOLD)) ** 2
    ).mean()
    slope = (total(X + direction) - total(X - direction)) / 2
    np.testing.assert_allclose((inner * direction).sum(), slope, rtol=1e-5)
    chex.assert_tree_all_finite(slopes(awake(NET), 0 * X, jnp.asarray(0.3), TOLD))


def test_equal_keys_make_equal_networks():
    make = lambda seed: UNet(GRID, 2, 3, **SIZES, **TAKES, key=jr.key(seed))
    chex.assert_trees_all_equal(make(0), NET)
    weights = lambda net: net.down[0].first.weight
    assert (weights(make(1)) != weights(NET)).all()
    assert (weights(NET)[0] != weights(NET)[1]).all()


def test_wrong_use_is_reported():
    make = lambda **more: UNet(GRID, 2, 3, **SIZES | more, key=jr.key(0))
    with pytest.raises(ValueError, match=r"`widths` must name at least one"):
        make(widths=())
    with pytest.raises(ValueError, match=r"at least 1, got \{'width': 0\}"):
        make(widths=(4, 0))
    with pytest.raises(ValueError, match=r"at least 1, got \{'blocks': 0\}"):
        make(blocks=0)
    with pytest.raises(ValueError, match="`attention` must be at least 1 "):
        make(attention=0, token_size=2)
    with pytest.raises(ValueError, match="`attention` must be at least 0 "):
        make(attention=-1)
    with pytest.raises(ValueError, match="multiple of 4"):
        make(heads=3)
    with pytest.raises(ValueError, match=r"shape \(2, 2\) cannot be halved"):
        make(widths=(4, 4, 4, 4, 8))
    with pytest.raises(ValueError, match=r"= \(2, 5, 8\), got \(2, 8, 5\)"):
        NET(X.swapaxes(1, 2), 0.3)
    with pytest.raises(ValueError, match="needs `level`"):
        NET(X)
    with pytest.raises(ValueError, match=r"`condition.vector` must have the shape"):
        NET(X, 0.3, condition=Condition(vector=jnp.ones(3)))
