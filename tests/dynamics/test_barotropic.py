from functools import partial
from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens import sphere
from skyens.dynamics import BarotropicVorticity, LinearBalance

A, OMEGA = 6.371e6, 7.292e-5  # radius in m, rotation in s-1
SHT = sphere.SphericalHarmonics(sphere.gauss_legendre(10, 20), 6)
RADII = [float("inf"), 1.5e6]  # of deformation, m


def random_streamfunction(seed, scale=1e7, sht=SHT, top=None):
    """Coefficients in m2 s-1: `scale` 1e7 makes winds of 10 to 20 m s-1."""
    rng, size = np.random.default_rng(seed), sht.lmax + 1
    c = np.tril(rng.normal(size=(size, size)) + 1j * rng.normal(size=(size, size)))
    c[:, 0] = c[:, 0].real
    c[0] = 0
    c[(top or sht.lmax) + 1 :] = 0
    return scale * c


def single(l, value):
    c = np.zeros((7, 7), complex)
    c[l, 0] = value
    return c


world = partial(BarotropicVorticity, SHT, hyperdiffusion=0.0, deformation_radius=1.5e6)

compiled = eqx.filter_jit(BarotropicVorticity.__call__)
step = lambda model, *fields: np.asarray(compiled(model, *map(jnp.asarray, fields)))


def rossby_haurwitz(psi, radius, spin, time):
    """Return degree 4 of `psi` in an atmosphere that turns as a solid by `spin`.

    The pattern keeps its shape and turns west by `rate` (rad s-1): Haurwitz (1940),
    J. Mar. Res. 3, 254-267, with the term of the deformation radius.
    """
    rate = (2 * OMEGA + spin * (2 - 20)) / (20 + (A / radius) ** 2)
    wave = single(1, -(A**2) * spin * np.sqrt(4 * np.pi / 3))
    wave[4] = psi[4] * np.exp(1j * np.arange(7) * rate * time)
    return wave


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("spin", [0.0, 1e-5])
def test_a_rossby_haurwitz_wave_turns_at_its_rate(radius, spin):
    model = world(deformation_radius=radius, time_step=21_600.0, substeps=40)
    wave = partial(rossby_haurwitz, random_streamfunction(0), radius, spin)
    # A substep errs by (m rate delta)^5 / 120: below 1e-8 in all.
    error = 1e-8 * np.abs(wave(0.0)[4]).max()
    later = step(model, wave(0.0))
    np.testing.assert_allclose(later, wave(21_600.0), rtol=0, atol=error)


def test_time_stepping_is_of_fourth_order():
    wave = partial(rossby_haurwitz, random_streamfunction(1), 1.5e6, -4e-5)
    errors = []
    for substeps in (2, 4, 8):
        model = world(time_step=43_200.0, substeps=substeps)
        errors.append(np.abs(step(model, wave(0.0)) - wave(43_200.0)).max())
    order = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(order, 4, atol=0.4)


def invariants(psi, radius, spinning: Any = 0):
    """Energy and potential enstrophy, integrated over the unit sphere."""
    l, both_signs = np.arange(7)[:, None], np.where(np.arange(7) > 0, 2, 1)
    vorticity = -(l * (l + 1) / A**2 + 1 / radius**2) * psi
    energy = -np.sum(both_signs * (psi.conj() * vorticity).real) / 2
    absolute = vorticity + single(1, 2 * OMEGA * np.sqrt(4 * np.pi / 3)) + spinning
    return np.array([energy, np.sum(both_signs * np.abs(absolute) ** 2) / 2])


@pytest.mark.parametrize("radius", RADII)
def test_energy_and_potential_enstrophy_drift_as_time_stepping_errs(radius):
    psi = random_streamfunction(2)
    drift = []
    for substeps in (6, 12, 24):
        model = world(deformation_radius=radius, time_step=43_200.0, substeps=substeps)
        ratio = invariants(step(model, psi), radius) / invariants(psi, radius)
        drift.append(np.abs(ratio - 1))
    # Products that alias, or a wrong sign, leave a drift that no small step removes.
    assert (drift[2] < 1e-6).all()
    assert (drift[1] > 10 * drift[2]).all()
    assert (drift[0] > 10 * drift[1]).all()


sine = np.sin(np.deg2rad(SHT.grid.latitude))[:, None]


@pytest.mark.parametrize("radius", RADII)
def test_energy_and_potential_enstrophy_are_kept_over_topography(radius):
    psi = random_streamfunction(2)
    ground = random_streamfunction(3, scale=500.0, top=5)  # m
    height = np.asarray(eqx.filter_jit(SHT.synthesis)(jnp.asarray(ground)))
    spinning = jnp.asarray(2 * OMEGA * sine * height / 8000.0)
    spinning = np.asarray(eqx.filter_jit(SHT.analysis)(spinning))
    drift = []
    for substeps in (6, 12, 24):
        model = world(
            deformation_radius=radius,
            topography=jnp.asarray(height),
            mean_depth=8000.0,
            time_step=43_200.0,
            substeps=substeps,
        )
        ratio = np.divide(
            invariants(step(model, psi), radius, spinning),
            invariants(psi, radius, spinning),
        )
        drift.append(np.abs(ratio - 1))
    assert (drift[2] < 1e-6).all()
    assert (drift[1] > 10 * drift[2]).all()
    assert (drift[0] > 10 * drift[1]).all()
    # Without topography's part, potential enstrophy is not what is conserved.
    loose = invariants(step(model, psi), radius) / invariants(psi, radius)
    assert abs(loose[1] - 1) > 1e-4
    given = eqx.filter_jit(model.potential_vorticity)(jnp.asarray(psi))
    l = np.arange(7)[:, None]
    own = -(l * (l + 1) / A**2 + 1 / radius**2) * psi + spinning
    own = own + single(1, 2 * OMEGA * np.sqrt(4 * np.pi / 3))
    np.testing.assert_allclose(given, own, rtol=0, atol=1e-13 * np.abs(own).max())


@pytest.mark.parametrize("radius", RADII)
def test_a_flow_along_its_potential_vorticity_is_steady(radius):
    # Whatever the flow, some topography makes q = slope * psi. Where l - m is odd,
    # harmonics have a factor sin(latitude), as f has.
    odd = np.add.outer(np.arange(7), np.arange(7)) % 2 == 1
    psi = np.where(odd, random_streamfunction(5, top=5), 0)
    l = np.arange(7)[:, None]
    own = -(l * (l + 1) / A**2 + 1 / radius**2) * psi
    own = own + single(1, 2 * OMEGA * np.sqrt(4 * np.pi / 3))
    spinning = eqx.filter_jit(SHT.synthesis)(jnp.asarray(-2e-12 * psi - own))
    ground = np.asarray(spinning) / (2 * OMEGA * sine) * 8000.0
    assert 1000 < np.abs(ground).max() < 1e5
    settings: dict[str, Any] = {"deformation_radius": radius, "mean_depth": 8000.0}
    model = world(topography=jnp.asarray(ground), time_step=86_400.0, **settings)
    still = step(model, psi)
    np.testing.assert_allclose(still, psi, rtol=0, atol=1e-12 * np.abs(psi).max())
    moved = step(world(time_step=86_400.0, **settings), psi)
    assert np.abs(moved - psi).max() > 0.1 * np.abs(psi).max()
    # Coefficients do as well as a field, and the sign of the ground matters.
    coefficients = eqx.filter_jit(SHT.analysis)(jnp.asarray(ground))
    same = world(topography=coefficients, time_step=86_400.0, **settings)
    np.testing.assert_allclose(
        step(same, psi), psi, rtol=0, atol=1e-12 * np.abs(psi).max()
    )
    turned = world(topography=-coefficients, time_step=86_400.0, **settings)
    assert np.abs(step(turned, psi) - psi).max() > 0.1 * np.abs(psi).max()


def test_only_the_axis_distinguishes_directions():
    psi, model = random_streamfunction(3), world(hyperdiffusion=1e17)
    size = np.abs(psi).max()
    turn = np.exp(1j * np.arange(7) * 0.7)
    # Mirrored at the equator, psi changes its sign: vorticity is a pseudoscalar.
    mirror = -((-1.0) ** np.add.outer(np.arange(7), np.arange(7)))
    for change in (turn, mirror):
        np.testing.assert_allclose(
            step(model, psi * change), step(model, psi) * change, atol=1e-12 * size
        )


def test_hyperdiffusion_decays_a_zonal_harmonic_exactly():
    decayed = single(5, 1e8 * np.exp(-1e20 * (30 / A**2) ** 2 * 7200.0))
    for substeps in (1, 3):
        model = world(hyperdiffusion=1e20, time_step=7200.0, substeps=substeps)
        later = step(model, single(5, 1e8))
        np.testing.assert_allclose(later, decayed, rtol=1e-12, atol=1e-6)


def test_forcing_adds_to_the_tendency_and_the_mean_stays():
    # A zonal flow does not advect itself, so that it grows linearly.
    psi = single(0, 3e8) + single(2, 1e7)
    forcing = single(0, 1e-9) + single(3, 1e-10)
    grown = single(3, 7200.0 * 1e-10 / -(12 / A**2 + 1 / 1.5e6**2))
    later = step(world(time_step=7200.0), psi, forcing)
    np.testing.assert_allclose(later, psi + grown, rtol=1e-12, atol=1e-6)


def test_no_deformation_radius_is_the_limit_of_large_ones():
    psi = random_streamfunction(4)
    limit = step(world(deformation_radius=1e12), psi)
    barotropic = step(world(deformation_radius=float("inf")), psi)
    np.testing.assert_allclose(limit, barotropic, rtol=1e-9, atol=1e-3)


def test_float32_stays_and_members_may_be_mapped():
    members = np.stack([random_streamfunction(seed) for seed in range(3)])
    model = world(hyperdiffusion=2e16)
    wide = np.stack([step(model, psi) for psi in members])
    mapped = jax.jit(jax.vmap(lambda psi: model(psi)))
    np.testing.assert_allclose(mapped(members), wide, rtol=1e-10, atol=1e-3)
    narrow = np.asarray(mapped(members.astype(np.complex64)))
    assert narrow.dtype == np.complex64
    assert np.abs(narrow - wide).max() < 1e-5 * np.abs(wide).max()


def observe(model_and_state, weight):
    model, psi = model_and_state
    return (model(psi) * weight).real.sum()


gradient = eqx.filter_jit(eqx.filter_grad(observe))


def test_gradient_in_the_deformation_radius_is_that_of_finite_differences():
    psi, weight = random_streamfunction(5), random_streamfunction(6, scale=1e-7)
    slopes, _ = gradient((world(), jnp.asarray(psi)), jnp.asarray(weight))
    ends = [step(world(deformation_radius=1.5e6 + d), psi) for d in (1e3, -1e3)]
    expected = ((ends[0] - ends[1]) * weight).real.sum() / 2e3
    # Central differences err by about (1e3 / 1.5e6)^2, relatively.
    np.testing.assert_allclose(slopes.deformation_radius, expected, rtol=1e-5)


@pytest.mark.parametrize("radius", RADII)
def test_gradients_are_finite_also_at_rest_and_without_a_deformation_radius(radius):
    weight = jnp.asarray(random_streamfunction(6, scale=1e-7))
    for psi in (random_streamfunction(7), np.zeros((7, 7), complex)):
        model = world(deformation_radius=radius)
        slopes = gradient((model, jnp.asarray(psi)), weight)
        chex.assert_tree_all_finite(slopes)


def test_a_world_that_does_not_move_is_reported():
    with pytest.raises(ValueError, match=r"must be positive, got 0\.0 and 2"):
        world(time_step=0.0)
    with pytest.raises(ValueError, match=r"must be positive, got 3600\.0 and 0"):
        world(substeps=0)
    with pytest.raises(ValueError, match=r"\(7, 7\) for lmax 6, got \(8, 8\)"):
        world()(jnp.zeros((8, 8), complex))
    with pytest.raises(ValueError, match=r"`mean_depth` .* positive, got -1\.0"):
        world(mean_depth=-1.0)
    with pytest.raises(ValueError, match=r"`topography` must be .*got \(8, 8\)"):
        world(topography=jnp.zeros((8, 8), complex))


@eqx.filter_jit
def laplacian_and_north(sht, psi):
    degree = np.arange(sht.lmax + 1)[:, None]
    eigenvalues = jnp.asarray(-degree * (degree + 1), psi.dtype)
    return sht.synthesis(eigenvalues * psi), sht.gradient_synthesis(psi)[1]


def divergence_of_f_gradient(sht, psi):
    """`div(f grad psi) = f lap psi + df/dy dpsi/dy` on the grid, on the unit sphere."""
    laplacian, north = map(np.asarray, laplacian_and_north(sht, jnp.asarray(psi)))
    latitude = np.deg2rad(sht.grid.latitude)[:, None]
    return 2 * OMEGA * (np.sin(latitude) * laplacian + np.cos(latitude) * north)


@pytest.mark.parametrize("seed", range(3))
def test_geopotential_balances_the_flow_on_the_grid(seed):
    psi = random_streamfunction(seed, top=5)
    phi = LinearBalance(6).geopotential(jnp.asarray(psi))
    expected = divergence_of_f_gradient(SHT, psi)
    laplacian, _ = laplacian_and_north(SHT, phi)
    error = 1e-13 * np.abs(expected).max()
    np.testing.assert_allclose(laplacian, expected, rtol=0, atol=error)
    assert phi[0, 0] == 0


def test_solid_rotation_balances_a_parabola_in_the_sine_of_latitude():
    # psi = c sin(latitude): f grad psi is the gradient of Omega c sin(latitude)^2.
    sine = np.broadcast_to(np.sin(np.deg2rad(SHT.grid.latitude))[:, None], (10, 20))
    psi = SHT.analysis(jnp.asarray(-4e8 * sine))
    phi = SHT.analysis(jnp.asarray(-4e8 * OMEGA * (sine**2 - 1 / 3)))
    balance = LinearBalance(6, penalty=1e-6)
    chex.assert_trees_all_close(balance.geopotential(psi), phi, atol=1e-7)
    # With an even lmax, zonal flows are determined by their geopotential.
    chex.assert_trees_all_close(balance.streamfunction(phi), psi, atol=1.0)


def dense_least_squares(phi, penalty):
    """Invert the balance on the grid, by NumPy's least squares in the real basis."""
    basis = np.asarray(sphere.from_real(jnp.eye(49)))
    real = jax.jit(lambda field: sphere.to_real(SHT.analysis(field)))
    image = [real(jnp.asarray(divergence_of_f_gradient(SHT, psi))) for psi in basis]
    degree = np.abs(basis).max(axis=-1).argmax(axis=-1)  # of each basis vector
    ridge = np.diag(penalty * 7 * (degree + 1))
    rows = np.concatenate([np.stack(image, axis=1) / (2 * OMEGA), ridge])
    right = -degree * (degree + 1) * np.asarray(sphere.to_real(phi))
    right = np.concatenate([right, np.zeros(49)]) / (2 * OMEGA)
    solution = np.linalg.lstsq(rows, right, rcond=None)[0]
    return sphere.from_real(jnp.asarray(solution))


@pytest.mark.parametrize("penalty", [1e-2, 1e-5])
def test_the_streamfunction_is_that_of_dense_least_squares(penalty):
    phi = jnp.asarray(random_streamfunction(8, scale=1e3))
    psi = LinearBalance(6, penalty=penalty).streamfunction(phi)
    expected = dense_least_squares(phi, penalty)
    # Rounding is amplified by the condition number, about 1 / penalty.
    size = float(jnp.abs(expected).max())
    chex.assert_trees_all_close(psi, expected, atol=1e-13 / penalty * size)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31), penalty=st.sampled_from([1e-4, 1e-6, 1e-9]))
def test_a_small_penalty_loses_nothing_of_a_balanced_geopotential(seed, penalty):
    balance = LinearBalance(6, penalty=penalty)
    phi = balance.geopotential(jnp.asarray(random_streamfunction(seed, top=5)))
    again = balance.geopotential(balance.streamfunction(phi))
    # The penalty enters squared, relative to the operator's singular values.
    error = jnp.abs(again - phi).max() / jnp.abs(phi).max()
    assert error < 1e-12 + 1e4 * penalty**2


def test_the_streamfunction_comes_back_away_from_the_equator():
    # Truncation leaves one flow an order without geopotential; it hugs the equator.
    sht = sphere.SphericalHarmonics(sphere.gauss_legendre(21, 42), 20)
    smooth = (1 + np.arange(21.0))[:, None] ** -3
    psi = jnp.asarray(random_streamfunction(9, sht=sht, top=19) * smooth)
    balance = LinearBalance(20, penalty=1e-5)
    again = balance.streamfunction(balance.geopotential(psi))
    difference, whole = eqx.filter_jit(sht.synthesis)(jnp.stack([again - psi, psi]))
    error = np.abs(difference) / np.abs(whole).max()
    poleward = np.abs(sht.grid.latitude) > 40
    assert error[poleward].max() < 0.02
    assert error[poleward].max() < 0.3 * error.max()


def test_balance_keeps_precision_and_leading_axes():
    balance = LinearBalance(6)
    psi = jnp.stack([jnp.asarray(random_streamfunction(seed)) for seed in range(3)])
    for apply in (balance.geopotential, balance.streamfunction):
        one_by_one = jnp.stack([apply(one) for one in psi])
        chex.assert_trees_all_close(apply(psi), one_by_one, rtol=1e-12)
        narrow = jax.jit(jax.vmap(apply))(psi.astype(jnp.complex64))
        assert narrow.dtype == jnp.complex64
        error = np.abs(np.asarray(narrow) - np.asarray(one_by_one)).max()
        assert error < 1e-5 * jnp.abs(one_by_one).max()


def test_a_singular_balance_is_reported():
    with pytest.raises(ValueError, match=r"`penalty` must be positive.*: 0\.0"):
        LinearBalance(6, penalty=0.0)
