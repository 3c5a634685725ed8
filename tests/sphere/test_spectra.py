import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.spatial.transform import Rotation
from scipy.special import eval_legendre

from skyens import sphere
from skyens.sphere import SphericalHarmonics

LMAX = 6
SHT = SphericalHarmonics(sphere.cell_centred(9, 18), LMAX)
# Squares reach degree 12: more than quadrature on 9 cell-centred rows can integrate.
EXACT = SphericalHarmonics(sphere.gauss_legendre(9, 18), LMAX)
DEGREES = np.arange(LMAX + 1)

analysis, synthesis = eqx.filter_jit(SHT.analysis), eqx.filter_jit(SHT.synthesis)
power_spectrum = jax.jit(sphere.power_spectrum)
cross_spectrum = jax.jit(sphere.cross_spectrum)
degree_correlation = jax.jit(sphere.degree_correlation)
coherence = jax.jit(sphere.coherence)
energy_spectrum = jax.jit(sphere.kinetic_energy_spectrum, static_argnames="radius")


def points(grid=SHT.grid):
    theta, lam = np.meshgrid(grid.colatitude, np.deg2rad(grid.longitude), indexing="ij")
    east, north = np.sin(theta) * np.cos(lam), np.sin(theta) * np.sin(lam)
    return np.stack([east, north, np.cos(theta)], -1)


def zonal_about(axis, degree):
    """The Legendre polynomial about any axis: all of its power in one degree."""
    return jnp.asarray(eval_legendre(degree, points() @ np.asarray(axis)))


def random_coefficients(seed=0, batch=()):
    normal = np.random.default_rng(seed).normal(size=(2, *batch, LMAX + 1, LMAX + 1))
    c = np.tril(normal[0] + 1j * normal[1])
    c[..., 0] = c[..., 0].real
    return jnp.asarray(c)


def mean_over_sphere(field):
    weights = EXACT.grid.weights[:, None] / (4 * np.pi)
    return jnp.asarray(np.sum(np.asarray(field) * weights, axis=(-2, -1)))


@pytest.mark.parametrize("batch", [(), (1, 3)])
def test_power_sums_to_the_integral_of_the_square(batch):
    c = random_coefficients(2, batch)
    field = synthesis(c)
    power = power_spectrum(c)
    integral = 4 * np.pi * mean_over_sphere(eqx.filter_jit(EXACT.synthesis)(c) ** 2)
    chex.assert_trees_all_close(power.sum(-1), integral, rtol=1e-12)
    of_field = eqx.filter_jit(SHT.power_spectrum)(field)
    chex.assert_trees_all_close(power, of_field, atol=1e-11)


def test_what_a_synthesis_ignores_has_no_power():
    c = random_coefficients()
    junk = jnp.triu(jnp.full_like(c, 3 + 1j), 1).at[:, 0].set(1j)
    chex.assert_trees_all_close(synthesis(c + junk), synthesis(c), atol=1e-12)
    power = power_spectrum(c)
    chex.assert_trees_all_equal(power_spectrum(c + junk), power)
    correlation = degree_correlation(c + 1e9 * junk, c)
    chex.assert_trees_all_close(correlation, jnp.ones(LMAX + 1), rtol=1e-12)


@settings(deadline=None, max_examples=15)
@given(turn=st.floats(-10, 10), seed=st.integers(0, 2**31))
def test_no_turn_in_longitude_changes_a_spectrum(turn, seed):
    first, second = random_coefficients(seed, (2,))
    phase = jnp.broadcast_to(jnp.exp(-1j * turn * DEGREES), first.shape)
    before, after = (
        cross_spectrum(a, b)
        for a, b in [(first, second), (first * phase, second * phase)]
    )
    chex.assert_trees_all_close(after, before, atol=1e-12)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**31))
def test_no_rotation_changes_spectra_and_coherence(seed):
    rng = np.random.default_rng(seed)
    axes = Rotation.random(2 * LMAX, rng=rng).apply([0.0, 0.0, 1.0])
    sizes = rng.normal(size=2 * LMAX)
    rotation = Rotation.random(rng=rng)

    def field_pair(axes):
        terms = [
            size * zonal_about(axis, 1 + i % LMAX)
            for i, (axis, size) in enumerate(zip(axes, sizes, strict=True))
        ]
        return analysis(jnp.stack([sum(terms), sum(terms[3:])]))

    first, second = field_pair(axes)
    turned, also_turned = field_pair(rotation.apply(axes))
    for compare in (
        cross_spectrum,
        degree_correlation,
        coherence,
        lambda a, b: power_spectrum(a),
    ):
        before, after = compare(first, second)[1:], compare(turned, also_turned)[1:]
        chex.assert_trees_all_close(after, before, atol=1e-10)


def test_cross_spectra_follow_the_addition_theorem():
    axes = Rotation.random(2, rng=np.random.default_rng(3)).apply([0.0, 0.0, 1.0])
    for l in range(LMAX + 1):
        first, second = (analysis(zonal_about(axis, l)) for axis in axes)
        # int P_l(a.x) P_l(b.x) = 4 pi / (2 l + 1) P_l(a.b)
        shared = eval_legendre(l, axes[0] @ axes[1])
        expected = np.where(l == DEGREES, 4 * np.pi / (2 * l + 1) * shared, 0)
        cross = cross_spectrum(first, second)
        chex.assert_trees_all_close(cross, jnp.asarray(expected), atol=1e-12)
        correlation = degree_correlation(first, second)[l]
        chex.assert_trees_all_close(correlation, jnp.asarray(shared), atol=1e-12)
        shared_power = coherence(first, second)[l]
        chex.assert_trees_all_close(shared_power, jnp.asarray(shared**2), atol=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e18])
def test_correlation_knows_no_units_and_no_underflow(scale):
    first = random_coefficients(1).astype(jnp.complex64)
    second = random_coefficients(2).astype(jnp.complex64)
    plain = degree_correlation(first, second)
    assert plain.dtype == jnp.float32
    scaled = degree_correlation(jnp.complex64(scale) * first, second)
    chex.assert_trees_all_close(scaled, plain, atol=1e-6)
    opposite = degree_correlation(jnp.complex64(-scale) * first, first)
    chex.assert_trees_all_close(opposite, -jnp.ones_like(plain), atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), share=st.floats(0, 1))
def test_correlation_stays_within_its_bounds(seed, share):
    first, second = random_coefficients(seed, (2,))
    correlation = degree_correlation(first, share * first + second)
    assert np.all(np.abs(correlation) <= 1 + 1e-12)


def test_no_power_means_no_correlation_and_no_gradient():
    c, nothing = random_coefficients(), jnp.zeros((LMAX + 1, LMAX + 1), complex)
    partly = c.at[2].set(0)
    assert degree_correlation(c, partly)[2] == 0
    chex.assert_trees_all_equal(coherence(nothing, c), jnp.zeros(LMAX + 1))
    gradient = jax.jit(jax.grad(lambda a: sphere.degree_correlation(a, c).sum()))
    chex.assert_trees_all_equal(gradient(nothing), nothing)
    chex.assert_tree_all_finite(gradient(partly))


def test_the_gradient_of_a_correlation_is_that_of_differences():
    first, second, direction = random_coefficients(4, (3,))
    total = jax.jit(lambda t: degree_correlation(first + t * direction, second).sum())
    difference = (total(1e-6) - total(-1e-6)) / 2e-6
    chex.assert_trees_all_close(jax.grad(total)(0.0), difference, rtol=1e-6)


def test_solid_rotation_has_its_energy_in_degree_one():
    speed, radius = 30.0, 6.371e6
    theta = SHT.grid.colatitude[:, None] * np.ones(SHT.grid.shape)
    vorticity = analysis(jnp.asarray(2 * speed / radius * np.cos(theta)))
    divergence = jnp.zeros_like(vorticity)
    spectra = energy_spectrum(vorticity, divergence, radius=radius)
    # The mean of (speed cos(latitude))^2 / 2.
    expected = np.where(DEGREES == 1, speed**2 / 3, 0)
    chex.assert_trees_all_close(spectra[0], jnp.asarray(expected), atol=1e-9)
    chex.assert_trees_all_equal(spectra[1], jnp.zeros(LMAX + 1))


def test_energies_sum_to_that_of_the_wind():
    # Without the mean, which no wind has.
    c = random_coefficients(7, (2, 3)).at[..., 0, 0].set(0)
    vorticity, divergence = 1e-5 * c
    wind = jax.jit(lambda a, b: EXACT.wind_synthesis(a, b, radius=6.371e6))
    u, v = wind(vorticity, divergence)
    rotational, divergent = energy_spectrum(vorticity, divergence, radius=6.371e6)
    energy = mean_over_sphere((u**2 + v**2) / 2)
    total = (rotational + divergent).sum(-1)
    chex.assert_trees_all_close(total, energy, rtol=1e-10)
    swapped = energy_spectrum(divergence, vorticity, radius=6.371e6)
    chex.assert_trees_all_close(swapped, (divergent, rotational), rtol=1e-14)


def test_small_vorticity_keeps_its_energy_in_float32():
    # Squares of 1e-22 s-1 underflow float32; the wind's, over the radius, do not.
    vorticity = (1e-22 * random_coefficients()).astype(jnp.complex64)
    spectrum, _ = energy_spectrum(vorticity, vorticity, radius=6.371e6)
    exact, _ = energy_spectrum(
        *(2 * [vorticity.astype(jnp.complex128)]), radius=6.371e6
    )
    assert spectrum.dtype == jnp.float32
    chex.assert_trees_all_close(spectrum.astype(float), exact, rtol=1e-5)


@settings(deadline=None, max_examples=30)
@given(degree=st.floats(1e-3, 1e4), radius=st.floats(1e-3, 1e8))
def test_degree_and_wavelength_are_inverse(degree, radius):
    wavelength = sphere.degree_to_wavelength(degree, radius=radius)
    again = sphere.wavelength_to_degree(wavelength, radius=radius)
    chex.assert_trees_all_close(again, jnp.asarray(degree), rtol=1e-12)


def test_wavelengths_of_whole_degrees():
    lengths = sphere.degree_to_wavelength(np.arange(3), radius=2.0)
    expected = np.array([np.inf, 4 * np.pi / np.sqrt(2), 4 * np.pi / np.sqrt(6)])
    chex.assert_trees_all_close(lengths, jnp.asarray(expected))
    assert sphere.wavelength_to_degree(jnp.inf) == 0
    assert sphere.degree_to_wavelength(jnp.ones(2, jnp.float32)).dtype == jnp.float32


def test_wrong_use_is_reported():
    c = random_coefficients()
    with pytest.raises(ValueError, match=r"two axes \(l, m\)"):
        sphere.power_spectrum(c[:-1])
    for compare in (
        sphere.cross_spectrum,
        sphere.degree_correlation,
        sphere.coherence,
        sphere.kinetic_energy_spectrum,
    ):
        with pytest.raises(ValueError, match=r"same shape.*truncate or pad"):
            compare(c, sphere.pad(c, LMAX + 1))
    with pytest.raises(ValueError, match="looks like the Earth's in km"):
        sphere.kinetic_energy_spectrum(c, c, radius=6371.0)
