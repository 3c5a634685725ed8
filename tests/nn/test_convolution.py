import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from scipy.signal import correlate

from skyens import sphere
from skyens.nn import Convolution, Plane
from skyens.nn._domain import pad

KEY = jr.key(0)
GRID = sphere.cell_centred(5, 8)
apply = eqx.filter_jit(lambda layer, x, domain: layer(x, domain))


def fields(channels=2, seed=0):
    return np.random.default_rng(seed).normal(size=(channels, 5, 8))


def test_it_is_the_correlation_of_the_padded_field():
    layer = Convolution(2, 3, key=KEY)
    layer = eqx.tree_at(lambda c: c.bias, layer, jnp.array([1.0, -2.0, 0.5]))
    for domain in (GRID, Plane((5, 8)), Plane((5, 8), (False, True))):
        wide = np.asarray(pad(domain, jnp.asarray(fields()), 1))
        weight, bias = np.asarray(layer.weight), np.asarray(layer.bias)
        expected = np.stack(
            [
                sum(correlate(wide[i], weight[o, i], "valid") for i in range(2))
                + bias[o]
                for o in range(3)
            ]
        )
        np.testing.assert_allclose(apply(layer, fields(), domain), expected, rtol=1e-9)


def test_white_noise_keeps_its_variance_times_the_gain():
    layer = Convolution(64, 64, gain=0.5, key=KEY)
    variance = np.asarray(apply(layer, fields(64), Plane((5, 8), (True, True)))).var()
    # 64 weights' draws of 576 each, and 2,560 values: a few percent.
    np.testing.assert_allclose(variance, 0.5, rtol=0.1)


def test_it_turns_with_the_sphere():
    layer = Convolution(2, 3, key=KEY)
    turned = apply(layer, np.roll(fields(), 3, axis=-1), GRID)
    expected = np.roll(apply(layer, fields(), GRID), 3, axis=-1)
    np.testing.assert_allclose(turned, expected, atol=1e-12)


def test_dtypes_and_gradients():
    layer = Convolution(2, 3, key=KEY)
    wide = apply(layer, fields(), GRID)
    for dtype, tolerance in ((jnp.bfloat16, 0.05), (jnp.float32, 1e-5)):
        y = apply(layer, fields().astype(dtype), GRID)
        assert y.dtype == dtype
        np.testing.assert_allclose(y.astype(float), wide, atol=tolerance * 4)
    slopes = jax.grad(lambda layer, x: (layer(x, GRID) ** 2).sum(), argnums=(0, 1))
    found = slopes(layer, jnp.asarray(fields()))
    chex.assert_tree_all_finite(found)
    assert all((np.asarray(leaf) != 0).all() for leaf in jax.tree.leaves(found))
