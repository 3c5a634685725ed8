import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens.assimilation._transform import gain, gram, mean_weights, svd, transform

ways = pytest.mark.parametrize("decompose", [None, svd, gram])
gain_ = jax.jit(gain, static_argnums=1)
transform_ = jax.jit(transform, static_argnums=2)


def whitened(scale=1.0, members=6, count=4, seed=0):
    generator = np.random.default_rng(seed)
    anomalies = generator.normal(size=(members, count))
    anomalies -= anomalies.mean(0)
    return jnp.asarray(scale * anomalies), jnp.asarray(generator.normal(size=count))


def exact(anomalies, innovation):
    """Gain, weights and `T - I` in twice the digits, by NumPy's long double."""
    y = np.asarray(anomalies, np.float64)
    u, s, v = np.linalg.svd(y)
    s = np.concatenate([s, np.zeros(len(y) - len(s))]).astype(np.longdouble)
    spread = len(y) - 1
    root = (u * (np.sqrt(spread / (spread + s**2)) - 1)) @ u.T
    count = y.shape[1]
    k = (u[:, :count] * (s / (spread + s**2))[:count]) @ v
    return k, k @ np.asarray(innovation), root


@ways
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 30.0])
def test_gain_and_transform_are_those_of_a_decomposition(decompose, scale):
    anomalies, innovation = whitened(scale)
    k, weights, change = exact(anomalies, innovation)
    found, root = transform_(anomalies, innovation, decompose)
    size = max(np.abs(k).max(), 1e-30)
    np.testing.assert_allclose(gain_(anomalies, decompose), k, atol=2e-11 * size)
    np.testing.assert_allclose(found, weights, atol=1e-10 * size)
    np.testing.assert_allclose(root, change, atol=1e-11)
    np.testing.assert_allclose(mean_weights(anomalies, innovation), found, atol=1e-11)


def test_products_give_way_where_an_observation_is_far_more_precise():
    anomalies, innovation = (x.astype(jnp.float32) for x in whitened())
    anomalies = anomalies * jnp.asarray([1e4, 1, 1, 1], jnp.float32)[None]
    k, weights, change = exact(anomalies, innovation)
    found, root = transform_(anomalies, innovation, None)
    for mine, theirs in ((gain_(anomalies, None), k), (found, weights), (root, change)):
        assert mine.dtype == jnp.float32
        error = np.abs(np.asarray(mine) - theirs).max() / np.abs(theirs).max()
        assert error < 2e-5


def test_each_of_a_batch_has_its_own_way():
    scales = jnp.asarray([0.0, 1.0, 1e6])
    anomalies, innovation = whitened()
    many = scales[:, None, None] * anomalies[None]
    weights, change = jax.vmap(lambda y: transform(y, innovation, None))(many)
    gains = jax.vmap(lambda y: gain(y, None))(many)
    for i in range(3):
        k, w, root = exact(many[i], innovation)
        size = max(np.abs(k).max(), 1e-30)
        np.testing.assert_allclose(gains[i], k, atol=1e-11 * size)
        np.testing.assert_allclose(weights[i], w, atol=1e-10 * size)
        np.testing.assert_allclose(change[i], root, atol=1e-11)


@ways
@pytest.mark.parametrize("count", [2, 9])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_derivatives_of_the_gain_are_right_where_singular_vectors_have_none(
    decompose, count, scale
):
    anomalies, _ = whitened(scale, count=count)
    way, _ = whitened(1.0, count=count, seed=1)
    _, slope = jax.jvp(lambda y: gain(y, decompose), (anomalies,), (way,))
    h = 1e-3
    at = lambda t: np.asarray(gain_(anomalies + t * way, decompose))
    expected = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    np.testing.assert_allclose(slope, expected, atol=1e-9)


@ways
def test_what_is_not_a_number_stays_one(decompose):
    anomalies, innovation = whitened()
    weights, _ = transform_(anomalies.at[0, 0].set(jnp.nan), innovation, decompose)
    assert np.isnan(weights).any()
