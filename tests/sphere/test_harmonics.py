from typing import Any

import chex
import ducc0
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from pyshtools.expand import MakeGridDH, SHExpandDH
from scipy.special import sph_harm_y

from skyens import sphere
from skyens.sphere import SphericalHarmonics

MAKERS = [sphere.gauss_legendre, sphere.equiangular, sphere.cell_centred]


def random_coefficients(lmax, seed, batch=(), dtype: Any = np.complex128):
    rng = np.random.default_rng(seed)
    shape = (*batch, lmax + 1, lmax + 1)
    c = np.tril(rng.normal(size=shape) + 1j * rng.normal(size=shape))
    c[..., 0] = c[..., 0].real
    return jnp.asarray(c, dtype)


def points(grid):
    return np.meshgrid(grid.colatitude, np.deg2rad(grid.longitude), indexing="ij")


@settings(deadline=None, max_examples=12)
@given(
    make=st.sampled_from(MAKERS),
    n=st.integers(3, 24),
    extra=st.integers(0, 5),
    north_first=st.booleans(),
    origin=st.sampled_from([0.0, -180.0, 7.5]),
    batch=st.sampled_from([(), (2,), (1, 3)]),
)
def test_a_band_limited_field_makes_the_round_trip(
    make, n, extra, north_first, origin, batch
):
    grid = make(n, 2 * n + extra, north_first=north_first, longitude_origin=origin)
    sht = SphericalHarmonics(grid, grid.largest_lmax)
    c = random_coefficients(sht.lmax, n, batch)
    again = jax.jit(lambda c: sht.analysis(sht.synthesis(c)))(c)
    chex.assert_trees_all_close(again, c, atol=1e-12)


@pytest.mark.parametrize("make", MAKERS)
def test_harmonics_are_those_of_scipy(make):
    grid = make(17, 36, longitude_origin=11.0)
    sht = SphericalHarmonics(grid, 12)
    theta, lam = points(grid)
    for l, m in [(0, 0), (1, 0), (1, 1), (5, 3), (12, 12), (12, 1)]:
        harmonic = sph_harm_y(l, m, theta, lam)
        field = jnp.asarray(harmonic.real * (1 if m == 0 else 2))
        c = jnp.zeros((13, 13), complex).at[l, m].set(1)
        chex.assert_trees_all_close(sht.synthesis(c), field, atol=1e-13)
        chex.assert_trees_all_close(sht.analysis(field), c, atol=1e-13)
        chex.assert_trees_all_close(
            sht.laplacian(field, radius=2.0), -l * (l + 1) / 4 * field, atol=1e-10
        )


@pytest.mark.parametrize("make", MAKERS)
def test_gradient_is_that_of_a_closed_form_up_to_the_poles(make):
    # f = x z + y with unit vectors: its gradient is the tangential part of (z, 1, x).
    grid = make(12, 24)
    theta, lam = points(grid)
    x, y, z = np.sin(theta) * np.cos(lam), np.sin(theta) * np.sin(lam), np.cos(theta)
    east, north = SphericalHarmonics(grid, 5).gradient(
        jnp.asarray(x * z + y), radius=2.0
    )
    d_east = -np.sin(lam) * z + np.cos(lam)
    d_north = -np.cos(theta) * (np.cos(lam) * z + np.sin(lam)) + np.sin(theta) * x
    chex.assert_trees_all_close(east, jnp.asarray(d_east) / 2, atol=1e-13)
    chex.assert_trees_all_close(north, jnp.asarray(d_north) / 2, atol=1e-13)


def test_gradient_holds_at_the_last_degree():
    # Green: the integral of |grad f|^2 is that of -f lap f.
    grid = sphere.gauss_legendre(24, 48)
    sht = SphericalHarmonics(grid, 20)
    c = random_coefficients(20, 0)
    east, north = sht.gradient_synthesis(c)
    weights = jnp.asarray(grid.weights)[:, None]
    energy = jnp.sum((east**2 + north**2) * weights)
    degree = jnp.arange(21.0)
    power = sht.power_spectrum(sht.synthesis(c))
    chex.assert_trees_all_close(energy, jnp.sum(degree * (degree + 1) * power))


DUCC = {
    sphere.gauss_legendre: "GL",
    sphere.equiangular: "CC",
    sphere.cell_centred: "F1",
}


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(("n", "lmax"), [(41, 39), (130, 128), (131, 97)])
def test_both_directions_are_those_of_ducc(make, n, lmax):
    grid = make(n, 2 * n, north_first=True)
    sht = SphericalHarmonics(grid, lmax)
    c = np.asarray(random_coefficients(lmax, n))
    packed = np.concatenate([c[m:, m] for m in range(lmax + 1)])[None]
    settings = dict(spin=0, lmax=lmax, geometry=DUCC[make])
    field = ducc0.sht.synthesis_2d(alm=packed, ntheta=n, nphi=2 * n, **settings)[0]
    # Degree by degree rounding adds up like a random walk: eps * lmax is generous.
    close = dict(atol=1e-15 * lmax * np.abs(field).max())
    chex.assert_trees_all_close(sht.synthesis(jnp.asarray(c)), field, **close)
    found = np.asarray(sht.analysis(jnp.asarray(field)))
    back = ducc0.sht.analysis_2d(map=field[None], **settings)[0]
    np.testing.assert_allclose(
        np.concatenate([found[m:, m] for m in range(lmax + 1)]), back, atol=1e-12
    )


def test_coefficients_are_those_of_pyshtools_on_its_own_grid():
    # Driscoll and Healy's rows: the equiangular ones without the south pole.
    rng = np.random.default_rng(4)
    n, lmax = 24, 11
    real = np.tril(rng.normal(size=(2, lmax + 1, lmax + 1)))
    real[1, :, 0] = 0
    field = MakeGridDH(real, norm=4, csphase=-1, sampling=2, extend=1)
    sht = SphericalHarmonics(sphere.equiangular(n + 1, 2 * n, north_first=True), lmax)
    found = np.asarray(sht.analysis(jnp.asarray(np.ascontiguousarray(field[:, :-1]))))
    scale = np.where(np.arange(lmax + 1) == 0, 1.0, np.sqrt(0.5))
    expected = scale * (real[0] - 1j * real[1])
    np.testing.assert_allclose(found, expected, atol=1e-12)
    again = SHExpandDH(field[:-1, :-1], norm=4, csphase=-1, sampling=2)
    np.testing.assert_allclose(again[:, : lmax + 1, : lmax + 1], real, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "grid",
    [sphere.gauss_legendre(720, 1440), sphere.cell_centred(720, 1440)],
    ids=lambda grid: grid.kind,
)
def test_single_precision_holds_at_lmax_719(grid):
    with jax.enable_x64(False):
        sht = SphericalHarmonics(grid, 719)
        c = random_coefficients(719, 5, dtype=np.complex64)
        again = jax.jit(lambda sht, c: sht.analysis(sht.synthesis(c)))(sht, c)
        assert jnp.max(jnp.abs(again - c)) < 1e-6 * jnp.max(jnp.abs(c))
        tables = sum(leaf.nbytes for leaf in jax.tree.leaves(sht))
    if grid.kind == "gauss-legendre":  # two square tables, forward and inverse
        assert tables < 2 * 720**3 * 4 / 3


def test_inverse_laplacian_undoes_the_laplacian_but_for_the_mean():
    sht = SphericalHarmonics(sphere.equiangular(20, 40), 18)
    field = sht.synthesis(random_coefficients(18, 3))
    coefficients = jnp.zeros((19, 19), complex)
    mean = sht.synthesis(coefficients.at[0, 0].set(sht.analysis(field)[0, 0]))
    again = sht.inverse_laplacian(sht.laplacian(field, radius=3.0), radius=3.0)
    chex.assert_trees_all_close(again, field - mean, atol=1e-11)


def test_power_spectrum_sums_to_the_mean_square_and_ignores_rotation():
    grid = sphere.cell_centred(24, 48)
    sht = SphericalHarmonics(grid, 20)
    field = sht.synthesis(random_coefficients(20, 1))
    power = sht.power_spectrum(field)
    # The square is band-limited to 40, beyond what Fejer's 24 rows integrate.
    gauss = SphericalHarmonics(sphere.gauss_legendre(24, 48), 20)
    fine = gauss.synthesis(sht.analysis(field))
    square = jnp.sum(fine**2 * jnp.asarray(gauss.grid.weights)[:, None])
    chex.assert_trees_all_close(power.sum(), square)
    chex.assert_trees_all_close(sht.power_spectrum(jnp.roll(field, 5, -1)), power)
    chex.assert_trees_all_close(sht.power_spectrum(field[::-1]), power)


class TransformationsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_float32_keeps_its_dtype_and_precision(self):
        sht = SphericalHarmonics(sphere.gauss_legendre(32, 64), 31)
        c = random_coefficients(31, 2, dtype=np.complex64)
        field = self.variant(SphericalHarmonics.synthesis)(sht, c)
        again = self.variant(SphericalHarmonics.analysis)(sht, field)
        assert field.dtype == jnp.float32
        assert again.dtype == jnp.complex64
        assert jnp.abs(again - c).max() < 2e-6 * jnp.abs(c).max()

    def test_bfloat16_is_transformed_in_float32(self):
        sht = SphericalHarmonics(sphere.gauss_legendre(16, 32), 10)
        field = sht.synthesis(random_coefficients(10, 2)).astype(jnp.bfloat16)
        assert sht.analysis(field).dtype == jnp.complex64
        assert sht.laplacian(field).dtype == jnp.bfloat16

    def test_vmap_jvp_and_vjp_agree_with_linearity(self):
        sht = SphericalHarmonics(sphere.equiangular(13, 24), 11)
        x, y = jr.normal(jr.key(0), (2, 3, 13, 24))
        smooth = lambda f: sht.synthesis(sht.analysis(f))
        chex.assert_trees_all_close(jax.vmap(smooth)(x), smooth(x), atol=1e-12)
        _, tangent = jax.jvp(smooth, (x,), (y,))
        chex.assert_trees_all_close(tangent, smooth(y), atol=1e-12)
        _, pull = jax.vjp(smooth, x)
        chex.assert_trees_all_close(
            jnp.vdot(pull(y)[0], x), jnp.vdot(y, smooth(x)), rtol=1e-10
        )


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="between 0 and 59 on this 61 x 120"):
        SphericalHarmonics(sphere.equiangular(61, 120), 60)
    sht = SphericalHarmonics(sphere.equiangular(61, 120), 10)
    with pytest.raises(ValueError, match="does not lie on this equiangular grid"):
        sht.analysis(jnp.zeros((60, 120)))
    with pytest.raises(ValueError, match="must end in"):
        sht.synthesis(jnp.zeros((12, 12), complex))
    with pytest.raises(ValueError, match=r"`u` of shape .* does not lie"):
        sht.wind_analysis(jnp.zeros((60, 120)), jnp.zeros((60, 120)))
    with pytest.raises(ValueError, match=r"`vorticity` of shape .* must end in"):
        sht.wind_synthesis(jnp.zeros((9, 9), complex), jnp.zeros((9, 9), complex))
    field = jnp.zeros((61, 120)).at[3, 4].set(jnp.nan).at[8, 8].set(jnp.inf)
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"2 of 7320 .* \(3, 4\)"):
        sht.analysis(field)
    assert jnp.isnan(eqx.filter_jit(sht.analysis)(field)).any()


@pytest.mark.parametrize("radius", [6371.0, 6371.2, 0.0, -1.0])
def test_a_radius_in_kilometres_is_noticed(radius):
    sht = SphericalHarmonics(sphere.gauss_legendre(4, 8), 3)
    field = jnp.ones((4, 8))
    with pytest.raises(ValueError, match="`radius`"):
        sht.gradient(field, radius=radius)
    with pytest.raises(ValueError, match="`radius`"):
        sht.laplacian(field, radius=radius)
    with pytest.raises(ValueError, match="`radius`"):
        sht.vorticity_divergence(field, field, radius=radius)
