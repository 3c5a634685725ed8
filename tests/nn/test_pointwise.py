import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.nn import ConditionalLayerNorm, GatedMLP, Pointwise

KEY = jr.key(0)


apply = eqx.filter_jit(lambda layer, *inputs: layer(*inputs))


def fields(channels, *, seed=0, size=(3, 4)):
    return np.random.default_rng(seed).normal(size=(channels, *size))


def test_a_pointwise_map_is_one_matrix_at_every_point():
    layer = Pointwise(3, 2, key=KEY)
    layer = eqx.tree_at(lambda layer: layer.bias, layer, jnp.array([5.0, -1.0]))
    x = fields(3)
    expected = np.einsum("oi,ijk->ojk", layer.weight, x) + np.array([[[5.0]], [[-1.0]]])
    np.testing.assert_allclose(apply(layer, x), expected, rtol=1e-12)


@pytest.mark.parametrize("gain", [1.0, 0.1])
def test_variance_of_order_one_goes_through_times_the_gain(gain):
    x = fields(64, size=(8, 8))
    maps = [
        (Pointwise(64, 256, gain=gain, key=KEY), 1.0),
        # The gate keeps E[v^2] E[sigmoid(g)^2] = 0.293 of normal inputs' variance.
        (GatedMLP(64, 256, 256, gain=gain, key=KEY), 0.293 / 0.3),
    ]
    for layer, share in maps:
        ratio = (np.asarray(apply(layer, x)) ** 2).mean() / (x**2).mean()
        np.testing.assert_allclose(ratio, gain * share, rtol=0.1)


def test_a_gated_map_multiplies_values_with_gates():
    layer = GatedMLP(2, 1, 1, key=KEY)
    into = jnp.array([[1.0, 0.0], [0.0, 1.0]])  # the value, then the gate
    where = lambda layer: (layer.into.weight, layer.out.weight)
    layer = eqx.tree_at(where, layer, (into, jnp.array([[2.0]])))
    value, gate = x = fields(2)
    expected = 2 * value / (1 + np.exp(-gate))
    np.testing.assert_allclose(apply(layer, x)[0], expected, rtol=1e-12)


def layer_norm(x):
    mean, variance = x.mean(0, keepdims=True), x.var(0, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5)


@pytest.mark.parametrize("noise_channels", [0, 2])
def test_a_conditional_norm_starts_as_a_layer_norm_whatever_the_noise(noise_channels):
    norm, x = ConditionalLayerNorm(6, noise_channels), 3 + 2 * fields(6)
    for seed in range(2):
        normal = apply(norm, x, fields(noise_channels, seed=seed))
        np.testing.assert_allclose(normal, layer_norm(x), rtol=1e-10, atol=1e-12)


def test_noise_scales_and_shifts_each_point():
    rng = np.random.default_rng(0)
    leaves = [rng.normal(size=shape) for shape in [(6,), (6,), (6, 2), (6, 2)]]
    where = lambda n: (n.scale, n.shift, n.noise_scale, n.noise_shift)
    trained = list(map(jnp.asarray, leaves))
    norm = eqx.tree_at(where, ConditionalLayerNorm(6, 2), trained)
    x, noise = fields(6), fields(2, seed=1)
    scale, shift, noise_scale, noise_shift = leaves
    varying = lambda weight: np.einsum("cn,njk->cjk", weight, noise)
    expected = layer_norm(x) * (scale[:, None, None] + varying(noise_scale))
    expected = expected + shift[:, None, None] + varying(noise_shift)
    np.testing.assert_allclose(apply(norm, x, noise), expected, rtol=1e-10)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_the_dtype_of_the_input_stays(dtype):
    x, noise = fields(4).astype(dtype), fields(2)
    for layer, *more in [
        (Pointwise(4, 3, key=KEY),),
        (GatedMLP(4, 5, 3, key=KEY),),
        (ConditionalLayerNorm(4, 2), noise),
    ]:
        assert apply(layer, x, *more).dtype == dtype


def test_half_precision_channels_are_normalised_in_float32():
    # Around 1,000, bfloat16 numbers lie 4 apart: their mean must not be rounded too.
    x = (1000 + 40 * fields(64)).astype(jnp.bfloat16)
    norm = ConditionalLayerNorm(64, 0)
    normal = apply(norm, x, np.zeros((0, 3, 4)))
    expected = layer_norm(x.astype(np.float64))
    error = np.abs(np.asarray(normal, np.float64) - expected).max()
    assert error < 0.01 * np.abs(expected).max()


def test_gradients_are_finite_where_all_channels_are_equal():
    norm, weight = ConditionalLayerNorm(5, 2), jnp.asarray(fields(5, seed=2))
    total = lambda norm, x, noise: (norm(x, noise) * weight).sum()
    slopes = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    for x in (fields(5), np.ones((5, 3, 4))):
        chex.assert_tree_all_finite(slopes(norm, x, fields(2)))


def test_gradients_reach_every_weight():
    layer, x = GatedMLP(3, 4, 2, key=KEY), jnp.asarray(fields(3))
    slopes = jax.jit(jax.grad(lambda layer: (layer(x) ** 2).sum()))(layer)
    assert all((np.asarray(leaf) != 0).all() for leaf in jax.tree.leaves(slopes))
