import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import sphere
from skyens.nn import ResidualBlock
from skyens.nn._blocks import Gain, Head, check_sizes, scan_over, stack

GRID = sphere.cell_centred(4, 6)
X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4, 6)))
CONTEXT = jnp.asarray(np.random.default_rng(1).normal(size=(3, 1, 1)))


def test_stacked_blocks_act_one_after_the_other():
    make = lambda key: ResidualBlock(8, 3, key=key)
    blocks = stack(make, 3, jr.key(0))
    found = eqx.filter_jit(scan_over)(blocks, X, CONTEXT, GRID)
    expected = X
    for key in jr.split(jr.key(0), 3):
        expected = make(key)(expected, CONTEXT, GRID)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert 0.1 < (found - X).std() < 2


def test_a_block_hears_its_context_once_trained():
    block = ResidualBlock(8, 3, key=jr.key(0))
    weight = lambda block: block.norm.noise_scale
    awake = eqx.tree_at(weight, block, jnp.ones((8, 3)))
    difference = lambda block: block(X, CONTEXT, GRID) - block(X, 0 * CONTEXT, GRID)
    assert not difference(block).any()
    assert jnp.abs(difference(awake)).max() > 1e-2


def test_gains_start_as_the_identity_and_scale_each_channel():
    np.testing.assert_array_equal(Gain(8, 3)(X, CONTEXT), X)
    weight = jnp.asarray(np.random.default_rng(2).normal(size=(8, 3)))
    gain = eqx.tree_at(lambda g: g.weight, Gain(8, 3), weight)
    expected = X * (1 + np.asarray(weight) @ CONTEXT[:, 0, 0])[:, None, None]
    np.testing.assert_allclose(gain(X, CONTEXT), expected, rtol=1e-12)
    assert gain(X.astype(jnp.float32), CONTEXT).dtype == jnp.float32


def test_a_head_is_linear_and_starts_small():
    head = Head(8, 2, 3, key=jr.key(0))
    small = head(X, CONTEXT)
    assert small.shape == (2, 4, 6)
    assert 0.03 < small.std() < 0.3
    np.testing.assert_allclose(head(-3 * X, CONTEXT), -3 * small, rtol=1e-12)


def test_gradients_of_a_constant_input_are_finite():
    block = ResidualBlock(8, 3, key=jr.key(0))
    slope = jax.grad(lambda x: (block(x, CONTEXT, GRID) ** 2).sum())(jnp.ones_like(X))
    assert jnp.isfinite(slope).all()


def test_sizes_are_positive():
    with pytest.raises(ValueError, match=r"at least 1, got \{'width': 0\}"):
        check_sizes(width=0, blocks=2)
