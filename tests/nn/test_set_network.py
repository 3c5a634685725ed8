from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import sphere
from skyens.nn import Condition, Plane, SetEncoder, SetNetwork, Transformer

GRID = sphere.equiangular(5, 8)
ENCODER = SetEncoder(GRID, 2, 3, key=jr.key(0))  # 7 fields
SIZES: dict[str, Any] = dict(patch=2, width=8, blocks=1, heads=2, embedding=6)
INNER = Transformer(GRID, 2, 2, field_channels=8, vector_size=2, **SIZES, key=jr.key(1))
NET = SetNetwork(INNER, ENCODER)
draw = lambda *shape, seed=0: jnp.asarray(
    np.random.default_rng(seed).normal(size=shape)
)
MEMBERS, LEVEL = draw(4, 2, *GRID.shape), jnp.asarray(0.3)
X = draw(2, *GRID.shape, seed=1)
FIELDS = draw(1, *GRID.shape, seed=2)
TOLD = Condition(FIELDS, draw(2), members=MEMBERS)
encode = eqx.filter_jit(lambda encoder, *given: encoder(*given))
run = eqx.filter_jit(lambda net, x, level, told: net(x, level, condition=told))


def test_the_first_fields_are_mean_and_spread():
    told = np.asarray(encode(ENCODER, MEMBERS))
    assert told.shape == (ENCODER.field_channels, *GRID.shape)
    np.testing.assert_allclose(told[:2], np.mean(MEMBERS, axis=0), rtol=1e-11)
    np.testing.assert_allclose(told[2:4], np.std(MEMBERS, axis=0), rtol=1e-11)
    assert told[4:].std() > 0.1


def test_members_are_a_set():
    told = encode(ENCODER, MEMBERS)
    order = jnp.array([2, 0, 3, 1])
    np.testing.assert_allclose(encode(ENCODER, MEMBERS[order]), told, atol=1e-12)
    twice = jnp.concatenate([MEMBERS, MEMBERS])  # the law they show is the same
    np.testing.assert_allclose(encode(ENCODER, twice), told, atol=1e-12)
    # The features see more than the mean and the spread of these symmetric members.
    mirrored = 2 * MEMBERS.mean(0, keepdims=True) - MEMBERS
    assert np.abs(encode(ENCODER, mirrored) - told)[4:].max() > 1e-2


def test_members_that_do_not_exist_change_neither_value_nor_gradient():
    there = jnp.array([True, False, True, False])
    holes = jnp.where(there[:, None, None, None], MEMBERS, jnp.nan)
    told = encode(ENCODER, holes, there)
    np.testing.assert_allclose(told, encode(ENCODER, MEMBERS[::2]), atol=1e-12)
    loss = lambda members: (ENCODER(members, there) ** 2).sum()
    slope = np.asarray(jax.jit(jax.grad(loss))(holes))
    assert np.isfinite(slope).all()
    assert not slope[1::2].any()
    assert (slope[::2] != 0).all()


def test_no_member_is_one_that_is_0():
    zero = encode(ENCODER, jnp.zeros((1, 2, *GRID.shape)))
    none = encode(ENCODER, jnp.full_like(MEMBERS, jnp.nan), jnp.zeros(4, bool))
    np.testing.assert_allclose(none, zero, atol=1e-13)


@pytest.mark.parametrize("members", [1, 4])
def test_gradients_are_finite_where_all_members_are_equal(members):
    equal = jnp.broadcast_to(MEMBERS[:1], (members, *MEMBERS.shape[1:]))
    loss = lambda encoder, members: (encoder(members) ** 2).sum()
    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(ENCODER, equal)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(both))
    assert not encode(ENCODER, equal)[2:4].any()


def test_the_network_is_told_of_the_members_and_of_all_else():
    base = run(NET, X, LEVEL, TOLD)
    by_hand = jnp.concatenate([FIELDS, encode(ENCODER, MEMBERS)])
    expected = run(INNER, X, LEVEL, Condition(by_hand, TOLD.vector))
    np.testing.assert_allclose(base, expected, atol=1e-12)
    other = eqx.tree_at(lambda c: c.members, TOLD, -MEMBERS)
    assert np.abs(run(NET, X, LEVEL, other) - base).max() > 1e-4


def test_no_condition_is_a_condition_of_zeros():
    there = eqx.tree_at(
        lambda c: c.where, TOLD, jnp.ones(4, bool), is_leaf=lambda leaf: leaf is None
    )
    dropped = jax.tree.map(jnp.zeros_like, there)
    none = run(NET, X, LEVEL, None)
    np.testing.assert_allclose(run(NET, X, LEVEL, dropped), none, atol=1e-12)
    # Members who are given, and are 0, say the same.
    zeros = jax.tree.map(jnp.zeros_like, TOLD)
    np.testing.assert_allclose(run(NET, X, LEVEL, zeros), none, atol=1e-12)


def test_the_dtype_of_the_input_stays():
    y = run(NET, X.astype(jnp.float32), LEVEL, TOLD)
    assert y.dtype == jnp.float32
    wide = np.asarray(run(NET, X, LEVEL, TOLD))
    assert np.abs(np.asarray(y, float) - wide).max() < 1e-4 * np.abs(wide).max()
    assert encode(ENCODER, MEMBERS.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_gradients_reach_every_parameter_and_samples_may_be_mapped(awake, slopes):
    parameters, _ = slopes(awake(NET), X, LEVEL, TOLD)
    for leaf in jax.tree.leaves(parameters):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 0
    one = lambda x, told: NET(x, 0.3, condition=told)
    every = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf]), (X, TOLD))
    found = jax.jit(jax.vmap(one))(*every)
    np.testing.assert_allclose(found[0], run(NET, X, LEVEL, TOLD), atol=1e-12)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match=r"at least 1, got \{'features': 0\}"):
        SetEncoder(GRID, 1, 0, key=jr.key(0))
    with pytest.raises(ValueError, match=r"\(member, 2, 5, 8\) with at least one"):
        ENCODER(MEMBERS[:0])
    with pytest.raises(ValueError, match=r"each of the 4 members, got \(2,\)"):
        ENCODER(MEMBERS, jnp.ones(2, bool))
    plain = Transformer(GRID, 2, 2, field_channels=6, **SIZES, key=jr.key(1))
    with pytest.raises(ValueError, match=r"at least 7 .*, got 6"):
        SetNetwork(plain, ENCODER)
    plane = SetEncoder(Plane(GRID.shape), 2, 3, key=jr.key(0))
    with pytest.raises(ValueError, match="must share their domain"):
        SetNetwork(INNER, plane)
    with pytest.raises(ValueError, match=r"without `condition\.members`"):
        NET(X, 0.3, condition=Condition(where=jnp.ones(4, bool)))
    with pytest.raises(ValueError, match=r"= \(1, 5, 8\) beside the members"):
        NET(X, 0.3, condition=Condition(draw(2, *GRID.shape), members=MEMBERS))
