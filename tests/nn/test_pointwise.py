import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.nn import ConditionalLayerNorm, GatedMLP, Pointwise

KEY = jr.key(0)


def fields(channels, *, seed=0, dtype=float, size=(3, 4)):
    return jr.normal(jr.key(seed), (channels, *size), dtype)


def test_a_pointwise_map_is_one_matrix_at_every_point():
    layer = Pointwise(3, 2, key=KEY)
    layer = eqx.tree_at(lambda layer: layer.bias, layer, jnp.array([5.0, -1.0]))
    x = fields(3)
    expected = np.einsum("oi,ijk->ojk", layer.weight, x) + np.array([[[5.0]], [[-1.0]]])
    np.testing.assert_allclose(layer(x), expected, rtol=1e-12)


@pytest.mark.parametrize("gain", [1.0, 0.1])
def test_variance_of_order_one_goes_through_times_the_gain(gain):
    x = fields(64, size=(8, 8))
    maps = {
        "pointwise": Pointwise(64, 256, gain=gain, key=KEY),
        "gated": GatedMLP(64, 256, 256, gain=gain, key=KEY),
    }
    # A gated unit keeps E[v^2] E[sigmoid(g)^2] = 0.293 of normal inputs' variance.
    share = {"pointwise": 1.0, "gated": 0.293 / 0.3}
    for name, layer in maps.items():
        ratio = (jax.jit(layer.__call__)(x) ** 2).mean() / (x**2).mean()
        np.testing.assert_allclose(ratio, gain * share[name], rtol=0.1)


def test_a_gated_map_multiplies_values_with_gates():
    layer = GatedMLP(2, 1, 1, key=KEY)
    into = jnp.array([[1.0, 0.0], [0.0, 1.0]])  # the value, then the gate
    where = lambda layer: (layer.into.weight, layer.out.weight)
    layer = eqx.tree_at(where, layer, (into, jnp.array([[2.0]])))
    value, gate = fields(2)
    expected = 2 * value / (1 + np.exp(-gate))
    np.testing.assert_allclose(layer(jnp.stack([value, gate]))[0], expected, rtol=1e-12)


def layer_norm(x):
    mean, variance = x.mean(0, keepdims=True), x.var(0, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5)


def test_a_conditional_norm_starts_as_a_layer_norm_whatever_the_noise():
    x = np.asarray(3 + 2 * fields(6))
    expected = layer_norm(x)
    for noise_channels in (0, 2):
        norm = ConditionalLayerNorm(6, noise_channels)
        for seed in range(2):
            noise = fields(noise_channels, seed=seed)
            normal = norm(jnp.asarray(x), noise)
            np.testing.assert_allclose(normal, expected, rtol=1e-10, atol=1e-12)


def test_noise_scales_and_shifts_each_point():
    keys = jr.split(KEY, 4)
    shapes = [(6,), (6,), (6, 2), (6, 2)]
    leaves = [jr.normal(k, s) for k, s in zip(keys, shapes, strict=True)]
    where = lambda n: (n.scale, n.shift, n.noise_scale, n.noise_shift)
    norm = eqx.tree_at(where, ConditionalLayerNorm(6, 2), leaves)
    x, noise = np.asarray(fields(6)), np.asarray(fields(2, seed=1))
    scale, shift, noise_scale, noise_shift = map(np.asarray, leaves)
    varying = lambda weight: np.einsum("cn,njk->cjk", weight, noise)
    expected = layer_norm(x) * (scale[:, None, None] + varying(noise_scale))
    expected = expected + shift[:, None, None] + varying(noise_shift)
    np.testing.assert_allclose(norm(jnp.asarray(x), jnp.asarray(noise)), expected)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_the_dtype_of_the_input_stays(dtype):
    x = fields(4, dtype=dtype)
    assert Pointwise(4, 3, key=KEY)(x).dtype == dtype
    assert GatedMLP(4, 5, 3, key=KEY)(x).dtype == dtype
    assert ConditionalLayerNorm(4, 2)(x, fields(2)).dtype == dtype


def test_half_precision_channels_are_normalised_in_float32():
    # Around 1,000, bfloat16 numbers lie 4 apart: their mean must not be rounded too.
    x = (1000 + 40 * fields(64)).astype(jnp.bfloat16)
    norm = ConditionalLayerNorm(64, 0)
    normal = norm(x, jnp.zeros((0, 3, 4), jnp.bfloat16))
    expected = layer_norm(np.asarray(x, np.float64))
    error = np.abs(np.asarray(normal, np.float64) - expected).max()
    assert error < 0.01 * np.abs(expected).max()


def test_gradients_are_finite_where_all_channels_are_equal():
    norm = ConditionalLayerNorm(5, 2)
    total = lambda norm, x, noise: (norm(x, noise) * fields(5, seed=2)).sum()
    for x in (fields(5), jnp.ones((5, 3, 4))):
        slopes = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(norm, x, fields(2))
        chex.assert_tree_all_finite(slopes)


def test_gradients_reach_every_weight():
    layer, x = GatedMLP(3, 4, 2, key=KEY), fields(3)
    slopes = jax.jit(jax.grad(lambda layer: (layer(x) ** 2).sum()))(layer)
    assert all((np.asarray(leaf) != 0).all() for leaf in jax.tree.leaves(slopes))
