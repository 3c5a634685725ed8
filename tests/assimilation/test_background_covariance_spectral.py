import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import sphere
from skyens.assimilation import (
    SpectralCovariance,
    covariance_times,
    degree_covariances,
    draw_perturbation,
    gaspari_cohn,
    gaspari_cohn_spectrum,
)

GRID = sphere.gauss_legendre(12, 24)
LMAX = 8
SHT = sphere.SphericalHarmonics(GRID, LMAX)
STATE = {"wind": jnp.zeros((2, 12, 24)), "height": jnp.zeros((12, 24))}
PLACE = (3, 5)
times = jax.jit(covariance_times)


def power(seed=0, channels=3):
    """Cross spectra of a full covariance at every degree, falling with degree."""
    factor = np.random.default_rng(seed).normal(size=(LMAX + 1, channels, channels))
    fall = np.exp(-0.3 * np.arange(LMAX + 1))[:, None, None]
    return fall * (factor @ factor.swapaxes(1, 2))


def distances():
    latitude, longitude = np.meshgrid(GRID.latitude, GRID.longitude, indexing="ij")
    there = np.deg2rad(latitude), np.deg2rad(longitude)
    here = there[0][PLACE], there[1][PLACE]
    cosine = np.sin(here[0]) * np.sin(there[0]) + np.cos(here[0]) * np.cos(
        there[0]
    ) * np.cos(there[1] - here[1])
    return np.arccos(np.clip(cosine, -1, 1))


def kernel(power):
    """`sum_l power_l / (4 pi) P_l(cos(distance))`, on the grid."""
    return np.polynomial.legendre.legval(np.cos(distances()), power / (4 * np.pi))


def test_an_impulse_spreads_by_the_legendre_series_of_the_cross_spectra():
    cross = power()
    impulse = jax.tree.map(jnp.zeros_like, STATE)
    impulse["wind"] = impulse["wind"].at[(1, *PLACE)].set(1)
    # The leaves of a dict are in the order of their names: height, then wind.
    spread = times(SpectralCovariance(SHT, cross), impulse)
    np.testing.assert_allclose(spread["height"], kernel(cross[:, 0, 2]), atol=1e-12)
    np.testing.assert_allclose(spread["wind"][0], kernel(cross[:, 1, 2]), atol=1e-12)
    np.testing.assert_allclose(spread["wind"][1], kernel(cross[:, 2, 2]), atol=1e-12)


def test_independent_channels_and_a_map_of_standard_deviations():
    spectra = power(1)[:, [0, 1, 2], [0, 1, 2]].T
    impulse = jnp.zeros((3, 12, 24)).at[(1, *PLACE)].set(1)
    std = np.linspace(1, 2, 12)[:, None] * np.ones((3, 1, 1))
    spread = times(SpectralCovariance(SHT, spectra, jnp.asarray(std)), impulse)
    expected = std[1] * kernel(spectra[1]) * std[1, PLACE[0]]
    np.testing.assert_allclose(spread[1], expected, atol=1e-12)
    np.testing.assert_array_equal(spread[::2], np.zeros((2, 12, 24)))
    alike = times(SpectralCovariance(SHT, spectra[1]), impulse)
    np.testing.assert_allclose(alike[1], kernel(spectra[1]), atol=1e-12)


def test_a_gaspari_cohn_spectrum_gives_back_its_function():
    impulse = jnp.zeros((12, 24)).at[PLACE].set(1)
    length = 7e6  # metres; long enough for the small lmax to resolve
    spread = times(
        SpectralCovariance(SHT, gaspari_cohn_spectrum(LMAX, length)), impulse
    )
    expected = gaspari_cohn(jnp.asarray(distances() * 6.371e6 / length))
    np.testing.assert_allclose(spread, expected, atol=0.01)
    assert float(spread[PLACE]) == pytest.approx(1, abs=1e-12)


def test_the_spectra_of_draws_are_estimated():
    cross = power(2)
    covariance = SpectralCovariance(SHT, cross)
    draw = lambda key: draw_perturbation(covariance, STATE, key=key)
    samples = jax.jit(jax.vmap(draw))(jr.split(jr.key(1), 500))
    found = degree_covariances(SHT, samples)
    variance = np.diagonal(cross, axis1=1, axis2=2)
    both = cross**2 + variance[:, :, None] * variance[:, None, :]
    pieces = 499 * (2 * np.arange(LMAX + 1) + 1)
    assert np.all(abs(found - cross) < 5 * np.sqrt(both / pieces[:, None, None]))
    # A constant added to all members is no error.
    shifted = jax.tree.map(lambda leaf: leaf + 7, samples)
    chex.assert_trees_all_close(degree_covariances(SHT, shifted), found, atol=1e-9)


def test_single_precision_stays_and_gradients_are_right():
    impulse = jnp.zeros((1, 12, 24), jnp.float32).at[(0, *PLACE)].set(1)
    spectrum = power(3)[:, 0, 0]
    spread = times(SpectralCovariance(SHT, spectrum), impulse)
    assert spread.dtype == jnp.float32
    np.testing.assert_allclose(spread[0], kernel(spectrum), rtol=1e-4, atol=1e-5)
    state, cross = jnp.ones((3, 12, 24)), power(3)

    def total(scale):
        covariance = SpectralCovariance(SHT, jnp.asarray(cross) * scale)
        weight = jr.normal(jr.key(0), state.shape)
        return jnp.sum(weight * covariance.root(covariance.control(state) + 1, state))

    slope = jax.jit(jax.grad(total))(1.3)
    change = total(1.3 + 1e-5) - total(1.3 - 1e-5)
    np.testing.assert_allclose(slope, change / 2e-5, rtol=1e-7)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="one entry for each degree, 9"):
        SpectralCovariance(SHT, np.ones(4))
    with pytest.raises(eqx.EquinoxRuntimeError, match="positive semidefinite at every"):
        SpectralCovariance(SHT, -np.ones(9))
    with pytest.raises(ValueError, match="3 channels, the state has 2"):
        SpectralCovariance(SHT, power()).control(jnp.zeros((2, 12, 24)))
    with pytest.raises(ValueError, match="does not end with"):
        SpectralCovariance(SHT, np.ones(9)).control(jnp.zeros((12, 12)))
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        degree_covariances(SHT, jnp.zeros((1, 12, 24)))
    with pytest.raises(ValueError, match="`length` must be above 0, got 0"):
        gaspari_cohn_spectrum(8, 0.0)
