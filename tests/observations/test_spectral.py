import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.special import sph_harm_y

from skyens import sphere
from skyens.observations import Diagonal, Observation, SpectralInterpolate

LMAX = 5
LATITUDE = np.asarray([90.0, -90.0, 12.3, -77.7, 0.0, np.nan])
LONGITUDE = np.asarray([40.0, 500.0, -35.0, 123.4, 360.0, 0.0])
GRIDS = [
    sphere.gauss_legendre(8, 16),
    sphere.equiangular(9, 18, north_first=True, longitude_origin=-30.0),
    sphere.cell_centred(7, 12),
]


def coefficients():
    real, imaginary = jr.normal(jr.key(0), (2, 2, LMAX + 1, LMAX + 1))
    imaginary = imaginary.at[..., 0].set(0)
    return jnp.tril(jax.lax.complex(real, imaginary))


def harmonics(coefficients):
    """The sum of scipy's harmonics at the places."""
    theta, phi = np.deg2rad(90 - LATITUDE), np.deg2rad(LONGITUDE)
    total = 0.0
    for l in range(LMAX + 1):
        for m in range(l + 1):
            twice = 1 if m == 0 else 2
            c = np.asarray(coefficients)[..., l, m, None]
            total = total + twice * (c * sph_harm_y(l, m, theta, phi)).real
    return total


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.kind)
def test_band_limited_fields_are_seen_exactly(grid):
    field = sphere.SphericalHarmonics(grid, LMAX).synthesis(coefficients())
    for lmax in (None, LMAX):
        operator = SpectralInterpolate(grid, LATITUDE, LONGITUDE, lmax)
        expected = harmonics(coefficients())
        np.testing.assert_allclose(operator(field), expected, rtol=1e-10, atol=1e-12)


class SpectralInterpolateTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_gradients_pass_by_places_that_are_not_known(self):
        operator = SpectralInterpolate(GRIDS[0], LATITUDE, LONGITUDE, LMAX)
        value = np.asarray([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        observation = Observation(value, operator, Diagonal(1.0), np.isfinite(LATITUDE))
        field = jr.normal(jr.key(1), GRIDS[0].shape)
        slope = self.variant(jax.grad(lambda x: observation.log_prob(x)))(field)
        residual = jnp.where(jnp.isfinite(operator(field)), value - operator(field), 0)
        matrix = jax.jacobian(operator)(field)[:5]
        expected = jnp.tensordot(residual[:5], matrix, 1)
        np.testing.assert_allclose(slope, expected, rtol=1e-9, atol=1e-12)
        assert observation.coordinates is not None


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_single_precision_is_single_and_close(dtype):
    grid = sphere.gauss_legendre(32, 64)
    generator = np.random.default_rng(0)
    latitude, longitude = generator.uniform(-90, 90, 50), generator.uniform(0, 360, 50)
    operator = SpectralInterpolate(grid, latitude, longitude)
    field = jr.normal(jr.key(2), grid.shape)
    seen = operator(field.astype(dtype))
    assert seen.dtype == dtype
    rounding = 1e3 * jnp.finfo(dtype).eps
    np.testing.assert_allclose(seen, operator(field), atol=float(rounding))


def test_places_may_be_traced():
    grid = GRIDS[0]
    field = sphere.SphericalHarmonics(grid, LMAX).synthesis(coefficients()[0])
    see = lambda latitude: SpectralInterpolate(grid, latitude, LONGITUDE[2:3])(field)
    latitude = jnp.asarray(LATITUDE[2:3])
    slope = jax.jit(jax.jacobian(see))(latitude)[0, 0]
    moved = [see(latitude + h)[0] for h in (1e-4, -1e-4)]
    np.testing.assert_allclose(slope, (moved[0] - moved[1]) / 2e-4, rtol=1e-6)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match=r"`lmax` must lie between 0 and 7.* got 8"):
        SpectralInterpolate(GRIDS[0], LATITUDE, LONGITUDE, 8)
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"in \[-90, 90\]: 1 of 6"):
        SpectralInterpolate(GRIDS[0], LATITUDE + 0.5, LONGITUDE)
    with pytest.raises(ValueError, match="does not lie on this"):
        SpectralInterpolate(GRIDS[0], LATITUDE, LONGITUDE)(jnp.ones((4, 4)))
