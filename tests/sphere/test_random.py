import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.special import eval_legendre

from skyens import sphere
from skyens.sphere import GaussianRandomField, SphericalHarmonics

sample = eqx.filter_jit(GaussianRandomField.sample)
coefficients = eqx.filter_jit(GaussianRandomField.coefficients)
power_spectrum = jax.jit(sphere.power_spectrum)
SAMPLES = 10_000
LMAX = 5
GRIDS = {
    "poles": sphere.equiangular(7, 12),
    "gaussian": sphere.gauss_legendre(6, 12),
    "cells": sphere.cell_centred(6, 12, north_first=True, longitude_origin=-180.0),
}


@pytest.fixture(scope="module", params=GRIDS)
def samples(request):
    sht = SphericalHarmonics(GRIDS[request.param], LMAX)
    power = jnp.asarray(sphere.matern_spectrum(LMAX, 0.5, variance=4.0))
    field = GaussianRandomField(sht, power)
    return field, sample(field, jr.key(0), (SAMPLES,))


def test_variance_is_the_same_at_every_point_and_pole(samples):
    _, x = samples
    variance = np.square(np.asarray(x)).mean(0)
    # The variance of a Gaussian sample errs by sqrt(2 / N); 72 points or more.
    five_errors = 5 * np.sqrt(2 / SAMPLES)
    np.testing.assert_allclose(variance, 4, rtol=five_errors)


def test_the_covariance_of_all_points_is_the_legendre_series(samples):
    field, x = samples
    grid = field.sht.grid
    theta, lam = np.meshgrid(grid.colatitude, np.deg2rad(grid.longitude), indexing="ij")
    place = np.stack(
        [np.sin(theta) * np.cos(lam), np.sin(theta) * np.sin(lam), np.cos(theta)], -1
    ).reshape(-1, 3)
    cosine = place @ place.T
    weight = np.asarray(field.power) / (4 * np.pi)
    exact = sum(w * eval_legendre(l, cosine) for l, w in enumerate(weight))
    flat = np.asarray(x).reshape(SAMPLES, -1)
    error = flat.T @ flat / SAMPLES - exact
    # Isserlis: the variance of the mean of a product of two Gaussians.
    scaled = error / np.sqrt((4.0**2 + exact**2) / SAMPLES)
    assert np.abs(scaled).max() < 5.5  # of some 3,000 pairs
    assert 0.5 < np.sqrt(np.mean(scaled**2)) < 1.5


def test_the_spectrum_is_the_one_asked_for(samples):
    field, x = samples
    power = np.asarray(eqx.filter_jit(field.sht.power_spectrum)(x)).mean(0)
    # Power of degree l: a chi-squared law of 2 l + 1 degrees of freedom.
    errors = np.sqrt(2 / (2 * np.arange(LMAX + 1) + 1) / SAMPLES)
    expected = np.asarray(field.power)
    assert np.all(np.abs(power - expected) <= 4 * errors * expected + 1e-20)


def test_values_are_gaussian_with_zero_mean(samples):
    _, x = samples
    flat = np.asarray(x).reshape(SAMPLES, -1) / 2
    # Standard errors of mean, skewness and kurtosis: 1, sqrt(6), sqrt(24) / sqrt(N).
    for power, normal, error in [(1, 0, 1), (3, 0, np.sqrt(15)), (4, 3, np.sqrt(96))]:
        moment = np.mean(flat**power, axis=0)
        assert np.abs(moment - normal).max() < 5 * error / np.sqrt(SAMPLES)


def test_covariance_is_the_legendre_series():
    sht = SphericalHarmonics(sphere.gauss_legendre(10, 20), 9)
    power = np.random.default_rng(0).uniform(size=(2, 10))
    field = GaussianRandomField(sht, jnp.asarray(power))
    distance = jnp.asarray([[0.0, 0.3, 1.0], [1.5, 3.0, np.pi]])
    covariance = eqx.filter_jit(GaussianRandomField.covariance)(field, distance)
    degrees = np.arange(10).reshape(-1, 1, 1)
    series = eval_legendre(degrees, np.cos(distance))
    expected = np.einsum("cl,lij->cij", power / (4 * np.pi), series)
    chex.assert_trees_all_close(covariance, jnp.asarray(expected), atol=1e-13)
    single = GaussianRandomField(sht, field.power[0].astype(jnp.float32))
    one = single.covariance(jnp.float32(0.3))
    assert (one.shape, one.dtype) == ((), jnp.float32)
    slope = jax.grad(lambda d: single.covariance(d))(jnp.float32(0.0))
    assert slope == 0


def test_samples_of_a_shape_are_independent_of_one_another():
    sht = SphericalHarmonics(GRIDS["gaussian"], LMAX)
    power = jnp.asarray(sphere.matern_spectrum(LMAX, 0.5), jnp.float32)
    field = GaussianRandomField(sht, power)
    x = eqx.filter_eval_shape(field.sample, jr.key(1), (3, 2))
    assert (x.shape, x.dtype) == ((3, 2, 6, 12), jnp.float32)
    many = jax.jit(sphere.to_real)(coefficients(field, jr.key(2), (2000, 2)))
    many = np.asarray(many)
    across = np.mean(many[:, 0] * many[:, 1], axis=0)
    each = many[:, 0].std(0) * many[:, 1].std(0)
    assert np.all(np.abs(across) <= 5 * each / np.sqrt(2000) + 1e-12)


def test_channels_have_each_their_own_spectrum():
    sht = SphericalHarmonics(GRIDS["gaussian"], LMAX)
    power = np.stack([sphere.matern_spectrum(LMAX, 0.5), np.eye(LMAX + 1)[3]])
    field = GaussianRandomField(sht, jnp.asarray(power))
    c = coefficients(field, jr.key(0), (2000,))
    assert c.shape == (2000, 2, LMAX + 1, LMAX + 1)
    assert eqx.filter_eval_shape(field.sample, jr.key(0)).shape == (2, 6, 12)
    mean = np.asarray(power_spectrum(c)).mean(0)
    errors = np.sqrt(2 / (2 * np.arange(LMAX + 1) + 1) / 2000)
    assert np.all(np.abs(mean - power) <= 4.5 * errors * power)


def test_one_sample_under_vmap_is_the_same_as_alone():
    sht = SphericalHarmonics(GRIDS["poles"], LMAX)
    field = GaussianRandomField(sht, jnp.ones(LMAX + 1))
    keys = jr.split(jr.key(3), 3)
    together = jax.jit(jax.vmap(field.sample))(keys)
    chex.assert_trees_all_close(together[1], sample(field, keys[1]), rtol=1e-12)


def test_gradient_in_the_power_is_finite_at_zero():
    sht = SphericalHarmonics(sphere.gauss_legendre(6, 12), 4)
    total = lambda p: (GaussianRandomField(sht, p).sample(jr.key(0)) ** 2).sum()
    chex.assert_tree_all_finite(jax.jit(jax.grad(total))(jnp.zeros(5)))


@pytest.mark.parametrize(
    "spectrum",
    [
        lambda lmax, v: sphere.matern_spectrum(lmax, 0.2, variance=v),
        lambda lmax, v: sphere.squared_exponential_spectrum(lmax, 0.2, variance=v),
        lambda lmax, v: sphere.squared_exponential_spectrum(lmax, 90.0, variance=v),
        lambda lmax, v: sphere.power_law_spectrum(lmax, 3.0, variance=v),
        lambda lmax, v: sphere.power_law_spectrum(lmax, -1.0, variance=v),
    ],
)
@pytest.mark.parametrize("lmax", [1, 20])
def test_spectra_have_their_variance_and_no_mean(spectrum, lmax):
    power = spectrum(lmax, 2.5)
    assert power.shape == (lmax + 1,)
    assert power[0] == 0
    assert np.all(power >= 0)
    np.testing.assert_allclose(power.sum() / (4 * np.pi), 2.5, rtol=1e-13)


def test_spectra_decay_as_they_say():
    power = sphere.power_law_spectrum(64, 5 / 3)
    np.testing.assert_allclose(power[8] / power[64], 32.0, rtol=1e-13)
    l = np.array([3, 7])
    heat = sphere.squared_exponential_spectrum(40, 0.3)[l] / (2 * l + 1)
    np.testing.assert_allclose(heat[1] / heat[0], np.exp(-0.045 * (56 - 12)))
    matern = sphere.matern_spectrum(40, 0.3, smoothness=0.5)[l] / (2 * l + 1)
    ratio = ((1 / 0.09 + 12) / (1 / 0.09 + 56)) ** 1.5
    np.testing.assert_allclose(matern[1] / matern[0], ratio)


def test_wrong_use_is_reported():
    sht = SphericalHarmonics(sphere.gauss_legendre(6, 12), 4)
    with pytest.raises(ValueError, match="one entry for each degree, 5"):
        GaussianRandomField(sht, jnp.ones(4))
    with pytest.raises(eqx.EquinoxRuntimeError, match="must not be negative"):
        GaussianRandomField(sht, -jnp.ones(5))
    with pytest.raises(ValueError, match="must be positive"):
        sphere.matern_spectrum(5, 0.0)
    with pytest.raises(ValueError, match="must be positive"):
        sphere.squared_exponential_spectrum(5, -1.0)
    with pytest.raises(ValueError, match=r"at least 1.*`variance` not negative"):
        sphere.power_law_spectrum(0, 3.0)
    with pytest.raises(ValueError, match=r"got 5 and -1"):
        sphere.power_law_spectrum(5, 3.0, variance=-1.0)
