import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from scipy.spatial.transform import Rotation
from scipy.special import sph_harm_y

from skyens import sphere
from skyens.nn import SpectralConv

LMAX = 5
SHT = sphere.SphericalHarmonics(sphere.gauss_legendre(6, 11), LMAX)
LAYER = SpectralConv(LMAX, 3, 2, key=jr.key(0))


def coefficients(seed=0, channels=3, dtype=complex):
    rng, shape = np.random.default_rng(seed), (channels, LMAX + 1, LMAX + 1)
    c = np.tril(rng.normal(size=shape) + 1j * rng.normal(size=shape))
    c[..., 0] = c[..., 0].real
    return c.astype(dtype)


apply = eqx.filter_jit(lambda layer, c: layer(c))


def test_each_degree_has_one_matrix():
    x, y = coefficients(), np.asarray(apply(LAYER, coefficients()))
    for l in range(LMAX + 1):
        expected = np.asarray(LAYER.weight)[l] @ x[:, l]
        np.testing.assert_allclose(y[:, l], expected, rtol=1e-12)


analysis = eqx.filter_jit(SHT.analysis)


def rotated(c, rotation):
    """The coefficients of `x -> f(R^-1 x)`, with scipy's harmonics at turned points."""
    theta, lam = np.meshgrid(
        SHT.grid.colatitude, np.deg2rad(SHT.grid.longitude), indexing="ij"
    )
    points = np.stack(
        [np.sin(theta) * np.cos(lam), np.sin(theta) * np.sin(lam), np.cos(theta)], -1
    )
    back = rotation.inv().apply(points.reshape(-1, 3)).reshape(points.shape)
    theta, lam = np.arccos(back[..., 2]), np.arctan2(back[..., 1], back[..., 0])
    field = np.zeros((len(c), *SHT.grid.shape))
    for l in range(LMAX + 1):
        for m in range(l + 1):
            harmonic = sph_harm_y(l, m, theta, lam) * (1 if m == 0 else 2)
            field += (c[:, l, m, None, None] * harmonic).real
    return np.asarray(analysis(jnp.asarray(field)))


def test_it_commutes_with_every_rotation():
    x = coefficients()
    for rotation in Rotation.random(3, rng=np.random.default_rng(0)):
        turned = rotated(x, rotation)
        assert np.abs(turned - x).max() > 0.1
        expected = rotated(np.asarray(apply(LAYER, x)), rotation)
        np.testing.assert_allclose(apply(LAYER, turned), expected, atol=1e-12)


def test_it_commutes_with_shifts_and_reflections():
    x = coefficients()
    l, m = np.indices((LMAX + 1, LMAX + 1))
    shift = lambda c: c * np.exp(0.7j * m)
    mirror = lambda c: c * (-1.0) ** (l + m)
    for change in (shift, mirror, np.conj):
        expected = change(np.asarray(apply(LAYER, x)))
        np.testing.assert_allclose(apply(LAYER, change(x)), expected, rtol=1e-12)


def test_variance_stays_times_the_gain():
    wide = SpectralConv(LMAX, 64, 256, gain=0.5, key=jr.key(1))
    x = coefficients(channels=64)
    power = lambda c: (np.abs(c) ** 2).mean(0)[np.tril_indices(LMAX + 1)]
    # 256 outputs: each ratio errs by sqrt(2 / 256) = 9 percent, the mean of 21 less.
    ratio = (power(apply(wide, x)) / power(x)).mean()
    np.testing.assert_allclose(ratio, 0.5, rtol=0.1)


def test_float32_stays_and_gradients_are_those_of_a_linear_map():
    x = coefficients()
    assert apply(LAYER, x.astype(np.complex64)).dtype == jnp.complex64
    total = lambda layer, x: layer(x).real.sum()
    slope = eqx.filter_jit(jax.grad(total))(LAYER, x)
    # Every output hears the inputs' sums over orders.
    expected = np.broadcast_to(np.real(x).sum(-1).T[:, None], (LMAX + 1, 2, 3))
    np.testing.assert_allclose(slope.weight, expected, rtol=1e-10)


def test_members_may_be_mapped():
    members = np.stack([coefficients(seed) for seed in range(3)])
    mapped = eqx.filter_jit(eqx.filter_vmap(LAYER))(members)
    alone = np.stack([apply(LAYER, x) for x in members])
    np.testing.assert_allclose(mapped, alone, rtol=1e-12)
