from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import sphere
from skyens.nn import Condition, Plane, Transformer

GRID = sphere.equiangular(5, 8)  # the last patches hold one row of the grid
SIZES: dict[str, Any] = dict(patch=2, width=8, blocks=2, heads=2, embedding=6)
TAKES: dict[str, Any] = dict(field_channels=1, vector_size=2, token_size=3)
NET = Transformer(GRID, 2, 3, **SIZES, **TAKES, key=jr.key(0))
draw = lambda *shape, seed=0: jnp.asarray(
    np.random.default_rng(seed).normal(size=shape)
)
X = draw(2, *GRID.shape)
FIELDS = draw(1, *GRID.shape, seed=1)
TOLD = Condition(FIELDS, draw(2), draw(4, 3, seed=2))
LEVEL = jnp.asarray(0.3)
run = eqx.filter_jit(lambda net, x, level, told: net(x, level, condition=told))


def test_the_level_and_each_part_of_the_condition_matter(awake):
    # Five samples at once, which is what each gives alone.
    net, five = awake(NET), lambda leaf, i: jnp.stack([leaf] * 5).at[i].multiply(-1)
    parts = TOLD.fields, TOLD.vector, TOLD.tokens
    told = Condition(*(five(part, i + 2) for i, part in enumerate(parts)))
    one = lambda x, level, told: net(x, level, condition=told)
    every = eqx.filter_jit(jax.vmap(one))
    base, *others = np.asarray(every(jnp.stack([X] * 5), five(LEVEL, 1), told))
    assert base.shape == (3, *GRID.shape)
    for other in others:
        assert np.abs(other - base).max() > 1e-3
    alone = run(net, X, LEVEL, TOLD)
    np.testing.assert_allclose(base, alone, atol=1e-10 * np.abs(alone).max())


def test_no_condition_is_a_condition_of_zeros(awake):
    dropped = run(awake(NET), X, LEVEL, jax.tree.map(lambda leaf: 0 * leaf, TOLD))
    np.testing.assert_allclose(run(awake(NET), X, LEVEL, None), dropped, atol=1e-12)


def test_it_turns_with_the_sphere_by_whole_patches(awake):
    turn = lambda x: jnp.roll(x, 2, axis=-1)
    turned = eqx.tree_at(lambda c: c.fields, TOLD, turn(TOLD.fields))
    found = run(awake(NET), turn(X), LEVEL, turned)
    expected = turn(run(awake(NET), X, LEVEL, TOLD))
    np.testing.assert_allclose(found, expected, atol=1e-10 * np.abs(expected).max())
    # Every place is seen from every other, and rows are not exchangeable.
    mirrored = eqx.tree_at(lambda c: c.fields, TOLD, FIELDS[:, ::-1])
    found = run(awake(NET), X[:, ::-1], LEVEL, mirrored)
    assert np.abs(found[:, ::-1] - run(awake(NET), X, LEVEL, TOLD)).max() > 1e-3
    nudged = run(awake(NET), X.at[0, 0, 0].add(1.0), LEVEL, TOLD)
    assert (nudged != run(awake(NET), X, LEVEL, TOLD)).all()


def test_patches_are_put_back_where_they_were_cut():
    # The cut of (channel, row, column) as NumPy's slices say it.
    plane = Plane((4, 6))
    net = Transformer(plane, 2, 2, **SIZES, key=jr.key(0))
    x = draw(2, 4, 6)
    patches = np.asarray(net._cut(x))
    assert patches.shape == (8, 2, 3)
    np.testing.assert_array_equal(patches[:, 1, 2], x[:, 2:4, 4:6].ravel())
    np.testing.assert_array_equal(net._paste(jnp.asarray(patches)), x)


def test_rows_beyond_the_last_come_from_over_the_pole():
    x = draw(2, *GRID.shape)
    seen = np.asarray(NET._cut(x)).reshape(2, 2, 2, 3, 4)[:, :, :, -1]
    np.testing.assert_array_equal(seen[:, 0, :, 1], x[:, 4, 2:4])
    np.testing.assert_array_equal(seen[:, 1, :, 1], x[:, 3, 6:8])


@pytest.mark.parametrize(("dtype", "share"), [(jnp.float32, 1e-4), (jnp.bfloat16, 0.1)])
def test_the_dtype_of_the_input_stays(dtype, share):
    wide = run(NET, X, LEVEL, TOLD)
    y = run(NET, X.astype(dtype), LEVEL, TOLD)
    assert y.dtype == dtype
    error = np.abs(np.asarray(y, float) - wide).max()
    assert error < share * np.abs(wide).max()


def test_gradients_reach_every_parameter(awake, slopes):
    parameters, inner = slopes(awake(NET), X, LEVEL, TOLD)
    for leaf in jax.tree.leaves(parameters):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 0
    direction = 1e-6 * draw(2, *GRID.shape, seed=5)
    total = lambda x: (np.asarray(run(awake(NET), x, LEVEL, TOLD)) ** 2).mean()
    slope = (total(X + direction) - total(X - direction)) / 2
    np.testing.assert_allclose((inner * direction).sum(), slope, rtol=1e-5)
    chex.assert_tree_all_finite(slopes(awake(NET), 0 * X, LEVEL, TOLD))


def test_wrong_use_is_reported():
    make = lambda **more: Transformer(GRID, 2, 3, **SIZES | more, key=jr.key(0))
    with pytest.raises(ValueError, match=r"got 3 for \(5, 8\)"):
        make(patch=3)
    with pytest.raises(ValueError, match=r"got 2 for \(5, 8\)"):
        Transformer(Plane((5, 8)), 2, 3, **SIZES, key=jr.key(0))
    with pytest.raises(ValueError, match=r"at least 1, got \{'patch': 0\}"):
        make(patch=0)
    with pytest.raises(ValueError, match="multiple of 4"):
        make(width=12)
    with pytest.raises(ValueError, match=r"= \(2, 5, 8\), got \(3, 5, 8\)"):
        NET(draw(3, 5, 8), 0.3)
    with pytest.raises(ValueError, match="needs `level`"):
        NET(X)
    with pytest.raises(ValueError, match=r"`condition.tokens` must be \(token, 3\)"):
        NET(X, 0.3, condition=Condition(tokens=jnp.ones((4, 2))))
