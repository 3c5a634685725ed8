import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.polynomial.legendre import legval
from scipy import stats

from skyens.diffusion import EDM, DPMSolver2M, Noise, Spherical, White, sample
from skyens.sphere import (
    SphericalHarmonics,
    gauss_legendre,
    great_circle_distance,
    scale_degrees,
)

GRID, LMAX = gauss_legendre(8, 16), 5
SHT = SphericalHarmonics(GRID, LMAX)
power_spectrum = jax.jit(lambda fields: SHT.power_spectrum(fields))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_shape_and_dtype_are_those_asked_for(dtype):
    noise = White()((3, 4), dtype, key=jr.key(0))
    chex.assert_shape(noise, (3, 4))
    assert noise.dtype == dtype


def test_entries_are_independent_standard_normal():
    assert isinstance(White(), Noise)
    samples = jax.vmap(lambda key: White()((2,), key=key))(jr.split(jr.key(1), 4000))
    assert stats.kstest(np.ravel(samples), "norm").pvalue > 1e-3
    # A correlation of 4,000 independent pairs has standard deviation 1 / sqrt(4,000).
    assert abs(np.corrcoef(samples.T)[0, 1]) < 4 / 4000**0.5


@pytest.mark.parametrize("power", [None, np.array([0.0, 3.0, 1.0, 0.5, 0.0, 2.0])])
def test_spherical_noise_is_isotropic_with_unit_variance_and_its_spectrum(power):
    law, size = Spherical(SHT, power), 4000
    assert isinstance(law, Noise)
    fields = jax.jit(lambda: law((size, *GRID.shape), jnp.float64, key=jr.key(0)))()
    # The addition theorem: the covariance of two points is a sum of Legendre
    # polynomials of their distance, 1 at distance 0.
    spectrum = 2.0 * np.arange(LMAX + 1) + 1 if power is None else power
    points = [(0, 0), (0, 8), (3, 2), (4, 5)]  # polar ones and others
    seen = np.stack([np.asarray(fields[:, i, j]) for i, j in points])
    where = [np.array(GRID.latitude)[[i for i, _ in points]]]
    where += [np.array(GRID.longitude)[[j for _, j in points]]]
    latitude, longitude = (jnp.asarray(values) for values in where)
    distance = great_circle_distance(
        latitude[:, None], longitude[:, None], latitude[None], longitude[None]
    )
    expected = legval(np.cos(np.asarray(distance)), spectrum / spectrum.sum())
    # Entry ij of a sample covariance varies by (1 + C_ij^2) / n.
    chance = np.sqrt((1 + expected**2) / size)
    assert (np.abs(seen @ seen.T / size - expected) < 4.5 * chance).all()
    found = np.asarray(power_spectrum(fields).mean(0))
    exact = 4 * np.pi * spectrum / spectrum.sum()
    # A degree has 2 l + 1 independent coefficients.
    error = np.sqrt(2 / size / (2 * np.arange(LMAX + 1) + 1))
    assert (np.abs(found - exact) <= 4.5 * error * exact + 1e-12).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_channels_are_independent_and_keep_the_dtype(dtype):
    law = Spherical(SHT)
    draw = jax.jit(lambda key: law((2, *GRID.shape), dtype, key=key))
    noise = draw(jr.key(0))
    chex.assert_shape(noise, (2, *GRID.shape))
    assert noise.dtype == dtype
    assert (noise[0] != noise[1]).any()
    # The same draw in every precision
    exact = law((2, *GRID.shape), jnp.float64, key=jr.key(0))
    if dtype == jnp.float64:
        chex.assert_trees_all_close(noise, exact, atol=1e-12)


def test_sampling_with_spherical_noise_gives_the_spectrum_of_the_prior():
    power = jnp.array([0.2, 2.0, 1.5, 0.7, 0.3, 0.1])
    law = Spherical(SHT)
    noise_power = 4 * np.pi * (2 * np.arange(LMAX + 1) + 1) / (LMAX + 1) ** 2

    def denoise(x, sigma, *, condition=None):
        # A Gaussian prior, by degree: what it keeps is its share of the variance.
        gain = power / (power + sigma**2 * noise_power)
        return SHT.synthesis(scale_degrees(SHT.analysis(x), gain))

    settings = {"steps": 20, "noise": law, "method": DPMSolver2M()}
    draw = lambda key: sample(denoise, EDM(0.01, 80.0), GRID.shape, key=key, **settings)
    size = 600
    fields = jax.jit(jax.vmap(draw))(jr.split(jr.key(1), size))
    found = np.asarray(power_spectrum(fields).mean(0))
    error = np.sqrt(2 / size / (2 * np.arange(LMAX + 1) + 1))
    # Chance, and 5 percent for 20 steps
    assert (np.abs(found / np.asarray(power) - 1) < 4 * error + 0.05).all()


def test_wrong_use_of_spherical_noise_is_reported():
    with pytest.raises(ValueError, match=r"end in the grid's \(8, 16\), got \(3, 4\)"):
        Spherical(SHT)((3, 4), key=jr.key(0))
    with pytest.raises(ValueError, match="one entry for each degree"):
        Spherical(SHT, np.ones(3))
    for power in (np.zeros(LMAX + 1), -np.ones(LMAX + 1), np.full(LMAX + 1, np.nan)):
        with pytest.raises(eqx.EquinoxRuntimeError, match="finite and not negative"):
            Spherical(SHT, power)
