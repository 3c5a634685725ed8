import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.integrate import quad
from scipy.special import eval_legendre

from skyens import sphere
from skyens.sphere import (
    ExponentialFilter,
    GaussianFilter,
    Hyperdiffusion,
    SphericalHarmonics,
    Truncation,
)

LMAX = 7
SHT = SphericalHarmonics(sphere.equiangular(10, 18), LMAX)
L = np.arange(LMAX + 1)
FILTERS = [
    Truncation(3),
    GaussianFilter(0.3),
    ExponentialFilter(8.0, 3.0, 0.4),
    Hyperdiffusion(600.0, 7200.0, degree=5),
]


apply = eqx.filter_jit(lambda smooth, coefficients: smooth(coefficients))
response = eqx.filter_jit(lambda smooth, lmax: smooth.response(lmax))
filter_field = eqx.filter_jit(sphere.filter_field)


def random_coefficients(batch=(), dtype=np.complex128):
    normal = np.random.default_rng(0).normal(size=(2, *batch, LMAX + 1, LMAX + 1))
    c = np.tril(normal[0] + 1j * normal[1])
    c[..., 0] = c[..., 0].real
    return jnp.asarray(c.astype(dtype))


@pytest.mark.parametrize("smooth", FILTERS)
@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.complex128])
def test_a_filter_multiplies_degrees_and_keeps_the_dtype(smooth, dtype):
    c = random_coefficients((2,), dtype)
    filtered = apply(smooth, c)
    assert filtered.dtype == dtype
    factors = np.asarray(response(smooth, LMAX))
    assert factors.shape == (LMAX + 1,)
    assert factors[0] == 1
    assert np.all((factors >= 0) & (factors <= 1))
    expected = jnp.asarray(np.asarray(c) * factors[:, None], dtype)
    chex.assert_trees_all_close(filtered, expected, rtol=1e-6)
    one_by_one = jax.jit(jax.vmap(lambda c: smooth(c)))(c)
    chex.assert_trees_all_close(one_by_one, filtered, rtol=1e-6)


def test_a_filter_of_a_field_scales_a_harmonic_about_any_axis():
    smooth = GaussianFilter(0.3)
    grid, axis = SHT.grid, np.array([2.0, -3.0, 6.0]) / 7
    theta, lam = np.meshgrid(grid.colatitude, np.deg2rad(grid.longitude), indexing="ij")
    cosine = np.sin(theta) * (np.cos(lam) * axis[0] + np.sin(lam) * axis[1])
    cosine = cosine + np.cos(theta) * axis[2]
    for degree in (0, 2, 4, 7):
        field = jnp.asarray(eval_legendre(degree, cosine))
        filtered = filter_field(SHT, smooth, field)
        scaled = np.exp(-0.045 * degree * (degree + 1)) * field
        chex.assert_trees_all_close(filtered, scaled, atol=1e-12)
    single = filter_field(SHT, smooth, jnp.asarray(cosine, jnp.bfloat16))
    assert single.dtype == jnp.bfloat16


def test_truncation_is_that_of_the_array_padded_again():
    c = random_coefficients()
    again = sphere.pad(sphere.truncate(c, 3), LMAX)
    chex.assert_trees_all_equal(apply(Truncation(3), c), again)
    chex.assert_trees_all_equal(apply(Truncation(LMAX + 5), c), c)
    sweep = jax.jit(jax.vmap(lambda lmax: Truncation(lmax)(c)))(jnp.arange(3))
    chex.assert_trees_all_equal(sweep[2], apply(Truncation(2), c))


def test_the_heat_kernel_is_a_gaussian_in_the_tangent_plane():
    scale = 0.05
    bell = lambda d: np.exp(-(d**2) / (2 * scale**2)) * np.sin(d)
    whole = quad(bell, 0, 0.5)[0]
    # Funk-Hecke: a convolution's factor is the kernel's mean of P_l(cos d).
    mean = lambda l: quad(lambda d: bell(d) * eval_legendre(l, np.cos(d)), 0, 0.5)[0]
    expected = np.array([mean(l) / whole for l in range(31)])
    heat = response(GaussianFilter(scale), 30)
    chex.assert_trees_all_close(heat, jnp.asarray(expected), atol=scale**2 / 2)


@settings(deadline=None, max_examples=20)
@given(first=st.floats(0, 1), second=st.floats(0, 1))
def test_smoothing_twice_is_smoothing_once_with_both(first, second):
    c = random_coefficients()
    twice = apply(GaussianFilter(second), apply(GaussianFilter(first), c))
    once = apply(GaussianFilter(np.hypot(first, second)), c)
    chex.assert_trees_all_close(twice, once, rtol=1e-12, atol=1e-14)
    steps = lambda t: Hyperdiffusion(t, 2.0, degree=4, order=3.0)
    twice = apply(steps(second), apply(steps(first), c))
    once = apply(steps(first + second), c)
    chex.assert_trees_all_close(twice, once, rtol=1e-12, atol=1e-14)


def test_a_gaussian_in_metres_is_one_in_radians():
    metres = GaussianFilter(6.371e5, radius=6.371e6)
    chex.assert_trees_all_close(metres, GaussianFilter(0.1), rtol=1e-14)


def test_the_exponential_filter_spares_degrees_below_its_cutoff():
    factors = response(ExponentialFilter(order=2.0, strength=3.0, cutoff=0.5), 8)
    # x = 1/4, 1/2, 3/4, 1 above degree 4.
    expected = np.exp(-3 * np.array([0, 0, 0, 0, 0, 1, 4, 9, 16]) / 16)
    np.testing.assert_allclose(factors, expected, rtol=1e-14)
    assert np.all(np.asarray(factors)[:5] == 1)
    np.testing.assert_allclose(response(ExponentialFilter(), 8)[-1], np.exp(-36.0))


@pytest.mark.parametrize("order", [1.0, 2.0, 4.0])
def test_hyperdiffusion_is_the_exact_solution(order):
    nu, radius, time = 1e-3, 2.0, 5.0
    smooth = Hyperdiffusion.from_coefficient(time, nu, radius=radius, order=order)
    c = random_coefficients()
    rate = nu * (-SHT.laplacian_eigenvalues(radius)) ** order
    expected = np.asarray(c) * np.exp(-time * rate)[:, None]
    chex.assert_trees_all_close(apply(smooth, c), jnp.asarray(expected), rtol=1e-11)
    # And of the equation itself: one small step's tendency.
    tiny = Hyperdiffusion.from_coefficient(1e-6, nu, radius=radius, order=order)
    tendency = (apply(tiny, c) - c) / 1e-6
    exact = -np.asarray(c) * rate[:, None]
    scale = float(np.abs(exact).max())
    # Rounding of c over the step, and the step times the rate.
    error = 1e-9 + 1e-6 * rate.max()
    chex.assert_trees_all_close(tendency, jnp.asarray(exact), atol=error * scale)


def test_hyperdiffusion_decays_by_e_in_its_time_scale():
    for lmax in (5, 9):
        factors = response(Hyperdiffusion(3.0, 3.0, degree=5, order=4.0), lmax)
        np.testing.assert_allclose(factors[5], np.exp(-1.0), rtol=1e-14)


@pytest.mark.parametrize("order", [2.0, 4.0, 8.0])
def test_coefficients_of_the_earth_fit_into_float32(order):
    # An hour at degree 42 and what belongs to it, far beyond float32's range.
    radius = 6.371e6
    nu = (radius**2 / (42 * 43)) ** order / 3600
    with jax.enable_x64(False):
        smooth = Hyperdiffusion.from_coefficient(3600.0, nu, radius=radius, order=order)
        factors = np.asarray(smooth.response(60))
    assert factors.dtype == np.float32
    l = np.arange(61)
    expected = np.exp(-((l * (l + 1) / (42 * 43)) ** order))
    # Powers of ratios: the order times a logarithm's rounding, where the factor bends.
    np.testing.assert_allclose(factors, expected, atol=2e-5)


def test_settings_can_be_swept_and_trained():
    c = random_coefficients()
    scales = jnp.asarray([0.0, 0.1, 0.2])
    sweep = jax.jit(jax.vmap(lambda s: GaussianFilter(s)(c)))(scales)
    chex.assert_trees_all_close(sweep[0], c)
    chex.assert_trees_all_close(sweep[2], apply(GaussianFilter(0.2), c), rtol=1e-13)
    power = jax.jit(lambda smooth: sphere.power_spectrum(smooth(c))[5])
    slope = jax.grad(power)(GaussianFilter(0.2)).length_scale
    # d/ds exp(-s^2 l (l + 1)) = -2 s l (l + 1) times itself
    expected = -2 * 0.2 * 30 * power(GaussianFilter(0.2))
    chex.assert_trees_all_close(slope, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "smooth",
    [
        GaussianFilter(0.0),
        ExponentialFilter(0.5, 2.0, 0.5),
        ExponentialFilter(4.0, 0.0),
        Hyperdiffusion(0.0, 1.0, degree=3, order=0.5),
    ],
)
def test_gradients_are_finite_at_the_ends(smooth):
    c = random_coefficients()
    total = lambda smooth, c: sphere.power_spectrum(smooth(c)).sum()
    gradient = jax.jit(jax.grad(total, argnums=(0, 1)))
    chex.assert_tree_all_finite(gradient(smooth, c))
    chex.assert_tree_all_finite(gradient(smooth, c[:1, :1]))


def test_any_function_of_coefficients_is_a_filter():
    c = random_coefficients()
    both = lambda c: GaussianFilter(0.2)(Truncation(4)(c))
    synthesis = eqx.filter_jit(SHT.synthesis)
    filtered = filter_field(SHT, both, synthesis(c))
    chex.assert_trees_all_close(filtered, synthesis(both(c)), atol=1e-12)


def test_wrong_use_is_reported():
    with pytest.raises(eqx.EquinoxRuntimeError, match="`length_scale` must not"):
        GaussianFilter(-0.1)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`lmax` must not be negative"):
        Truncation(-1)
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"`cutoff` must lie in \[0, 1"):
        ExponentialFilter(cutoff=1.0)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`order` must be positive"):
        ExponentialFilter(order=0.0)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`strength` must not"):
        ExponentialFilter(strength=-1.0)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`time_scale` must be positive"):
        Hyperdiffusion(1.0, 0.0, degree=3)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`time_step` must not"):
        Hyperdiffusion(-1.0, 1.0, degree=3)
    with pytest.raises(ValueError, match=r"`degree` must be at least 1.*got 0"):
        Hyperdiffusion(1.0, 1.0, degree=0)
    with pytest.raises(ValueError, match="`coefficient` must be positive, got 0"):
        Hyperdiffusion.from_coefficient(1.0, 0.0, radius=1.0)
    with pytest.raises(ValueError, match="looks like the Earth's in km"):
        Hyperdiffusion.from_coefficient(1.0, 1.0, radius=6371.0)
    with pytest.raises(ValueError, match=r"two axes \(l, m\)"):
        GaussianFilter(0.1)(random_coefficients()[:-1])
