import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.nn import FourierEmbedding
from skyens.nn._embedding import Context
from skyens.training import trainable


def test_waves_have_unit_mean_square_and_geometric_frequencies():
    embed = FourierEmbedding(8, 0.5, 4.0)
    for value in (-1.5, 0.0, 0.7):
        waves = embed(jnp.asarray(value))
        expected = np.sqrt(2) * np.exp(1j * value * np.array([0.5, 1.0, 2.0, 4.0]))
        np.testing.assert_allclose(waves[:4], expected.real, rtol=1e-12)
        np.testing.assert_allclose(waves[4:], expected.imag, rtol=1e-12)
        np.testing.assert_allclose((waves**2).mean(), 1, rtol=1e-12)
    assert not any(jax.tree.leaves(trainable(embed)))


def context(noise_level=True, vector_size=3):
    return Context(6, noise_level=noise_level, vector_size=vector_size, key=jr.key(0))


def test_level_and_vector_both_matter():
    at = eqx.filter_jit(lambda level, vector: context()(level, vector))
    vector = jnp.array([1.0, -2.0, 0.5])
    base = at(0.1, vector)
    assert base.shape == (6, 1, 1)
    for other in (at(0.2, vector), at(0.1, 2 * vector)):
        assert jnp.abs(other - base).min() > 1e-4
    # A number of Python is as good as an array.
    np.testing.assert_allclose(at(jnp.asarray(0.1), vector), base, rtol=1e-12)


def test_levels_of_half_precision_inputs_are_told_in_single():
    level = jnp.asarray(1.003, jnp.float32)  # bfloat16 knows 1 and 1.0078
    half = context(vector_size=0)(level, jnp.zeros(0, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    wide = context(vector_size=0)(level.astype(float), jnp.zeros(0))
    rounding = 2**-8 * np.abs(wide).max()
    np.testing.assert_allclose(half.astype(float), wide, atol=4 * rounding)


def test_without_level_and_vector_there_is_no_channel():
    nothing = context(False, 0)
    assert nothing.size == 0
    assert jax.tree.leaves(nothing) == []
    assert nothing(None, jnp.zeros(0, jnp.float32)).shape == (0, 1, 1)
    assert context(False).size == 6


def test_gradients_reach_every_weight():
    parameters, rest = eqx.partition(context(), trainable(context()))
    loss = lambda p: (eqx.combine(p, rest)(0.3, jnp.array([1.0, 2.0, 3.0])) ** 2).sum()
    slopes = jax.tree.leaves(jax.grad(loss)(parameters))
    chex.assert_tree_all_finite(slopes)
    assert all((slope != 0).any() for slope in slopes)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="even and at least 2, got 3"):
        FourierEmbedding(3)
    with pytest.raises(ValueError, match=r"lowest <= highest, got 2\.0 and 1\.0"):
        FourierEmbedding(4, 2.0, 1.0)
    with pytest.raises(ValueError, match="needs `level`"):
        context()(None, jnp.zeros(3))
    with pytest.raises(ValueError, match="takes no `level`"):
        context(False)(0.3, jnp.zeros(3))
