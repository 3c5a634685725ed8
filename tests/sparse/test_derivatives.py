import jax.numpy as jnp
import numpy as np
import pytest

from skyens import sphere
from skyens.sparse import SpectralDerivative, sphere_jacobian, sphere_terms


@pytest.mark.parametrize("size", [24, 25])
@pytest.mark.parametrize("axis", [0, -1])
def test_waves_are_differentiated_exactly(size, axis):
    length = 7.0
    x = np.arange(size) * length / size
    k = 2 * np.pi * 3 / length
    derivative = SpectralDerivative(length, axis=axis)
    turn = lambda f: jnp.asarray(np.stack([f, 2 * f], axis=1 if axis == 0 else 0))
    for order, slope in enumerate(
        [np.sin(k * x), k * np.cos(k * x), -(k**2) * np.sin(k * x)]
    ):
        found = derivative(turn(np.sin(k * x)), order)
        np.testing.assert_allclose(found, turn(slope), atol=1e-12 * k**order * 10)


def test_the_shortest_wave_has_no_odd_derivative():
    wave = jnp.array([1.0, -1.0] * 4)
    derivative = SpectralDerivative(2 * np.pi)
    np.testing.assert_allclose(derivative(wave, 1), 0, atol=1e-14)
    np.testing.assert_allclose(derivative(wave, 2), -16 * wave, rtol=1e-12)


def test_terms_on_the_sphere_are_those_of_a_harmonic():
    grid = sphere.gauss_legendre(16, 32)
    sht = sphere.SphericalHarmonics(grid, lmax=10)
    mu = np.sin(np.deg2rad(grid.latitude))[:, None]
    longitude = np.deg2rad(grid.longitude)[None]
    cosine = np.sqrt(1 - mu**2)
    y11 = jnp.asarray(cosine * np.cos(longitude))
    radius = 2.0
    terms = sphere_terms(sht, radius=radius)
    value, lap, lap2, east, north = terms.fields(y11)
    np.testing.assert_allclose(value, y11)
    np.testing.assert_allclose(lap, -2 / radius**2 * y11, atol=1e-12)
    np.testing.assert_allclose(lap2, 4 / radius**4 * y11, atol=1e-12)
    wave = np.sin(longitude) * np.ones_like(mu)
    np.testing.assert_allclose(east, -wave / radius, atol=1e-12)
    np.testing.assert_allclose(north, -mu * np.cos(longitude) / radius, atol=1e-12)
    # Solid rotation, psi = -mu, carries eastward with the angular speed 1 / radius^2.
    psi = jnp.asarray(-mu * np.ones_like(longitude))
    moved = sphere_jacobian(sht, psi, y11, radius=radius)
    np.testing.assert_allclose(moved, -cosine * wave / radius**2, atol=1e-12)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="positive and finite, got 0"):
        SpectralDerivative(0.0)
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        SpectralDerivative(1.0)(jnp.ones(4), -1)
    with pytest.raises(ValueError, match="must have an axis 1"):
        SpectralDerivative(1.0, axis=1)(jnp.ones(4))
