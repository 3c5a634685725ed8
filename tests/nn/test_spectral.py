import chex
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
    real = jr.normal(jr.key(seed), (channels, (LMAX + 1) ** 2))
    return sphere.from_real(real).astype(dtype)


def test_each_degree_has_one_matrix():
    x = coefficients()
    expected = [
        [np.asarray(LAYER.weight)[l] @ np.asarray(x)[:, l, m] for m in range(LMAX + 1)]
        for l in range(LMAX + 1)
    ]
    chex.assert_trees_all_close(
        jax.jit(LAYER.__call__)(x), jnp.asarray(expected).transpose(2, 0, 1), rtol=1e-12
    )


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
            field += (np.asarray(c)[:, l, m, None, None] * harmonic).real
    return SHT.analysis(jnp.asarray(field))


def test_it_commutes_with_every_rotation():
    x = coefficients()
    for rotation in Rotation.random(3, random_state=np.random.default_rng(0)):
        turned = rotated(x, rotation)
        assert np.abs(turned - x).max() > 0.1
        chex.assert_trees_all_close(
            LAYER(turned), rotated(LAYER(x), rotation), atol=1e-12
        )


def test_it_commutes_with_shifts_and_reflections():
    x = coefficients()
    l, m = np.indices((LMAX + 1, LMAX + 1))
    shift = lambda c: c * jnp.asarray(np.exp(0.7j * m))[None]
    mirror = lambda c: c * jnp.asarray((-1.0) ** (l + m), complex)[None]
    for change in (shift, mirror, jnp.conj):
        chex.assert_trees_all_close(LAYER(change(x)), change(LAYER(x)), rtol=1e-12)


def test_variance_stays_times_the_gain():
    wide = SpectralConv(LMAX, 64, 256, gain=0.5, key=jr.key(1))
    x = coefficients(channels=64)
    before = (jnp.abs(x) ** 2).mean(0)
    after = (jnp.abs(wide(x)) ** 2).mean(0)
    # 256 outputs: each ratio errs by sqrt(2 / 256) = 9 percent, 21 of them less.
    inside = np.tril_indices(LMAX + 1)
    ratio = (after[inside] / before[inside]).mean()
    np.testing.assert_allclose(ratio, 0.5, rtol=0.1)


def test_float32_stays_and_gradients_are_those_of_a_linear_map():
    x = coefficients(dtype=jnp.complex64)
    assert LAYER(x).dtype == jnp.complex64
    total = lambda layer, x: layer(x).real.sum()
    slope = jax.jit(jax.grad(total))(LAYER, coefficients())
    expected = np.broadcast_to(
        np.asarray(coefficients()).real.sum(-1).T[:, None], (LMAX + 1, 2, 3)
    )
    np.testing.assert_allclose(slope.weight, expected, rtol=1e-10)


def test_members_may_be_mapped():
    members = jnp.stack([coefficients(seed) for seed in range(3)])
    alone = jnp.stack([LAYER(x) for x in members])
    chex.assert_trees_all_close(jax.vmap(LAYER)(members), alone, rtol=1e-12)
