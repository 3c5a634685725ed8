import math
from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens import data, sphere
from skyens.dynamics import (
    ExponentialRungeKutta,
    ImplicitExplicit,
    LinearBalance,
    ShallowWater,
    ShallowWaterState,
    galewsky_jet,
    isolated_mountain,
    random_flow,
    rollout,
    rossby_haurwitz_wave,
    solid_rotation,
)

EARTH: dict[str, Any] = {"radius": 6.37122e6, "rotation": 7.292e-5, "gravity": 9.80616}
A, GRAVITY = EARTH["radius"], EARTH["gravity"]
SHT = sphere.SphericalHarmonics(sphere.gauss_legendre(16, 32), 10)
METHODS = [ExponentialRungeKutta(), ImplicitExplicit()]

advance = eqx.filter_jit(lambda model, *states: model(*states))
apply = eqx.filter_jit(lambda function, *values: function(*values))
leaves = lambda state: np.stack([np.asarray(x) for x in jax.tree.leaves(state)])


def world(**settings):
    """A small world; all have the same parts, so that few steps are compiled."""
    parts: dict[str, Any] = {
        "orography": single(0, 0, 0.0),
        "target": resting(),
        "relaxation_time": float("inf"),
        "hyperdiffusion": 0.0,
    }
    return ShallowWater(SHT, **(EARTH | parts | settings))


def large_world(sht, **settings):
    parts: dict[str, Any] = EARTH | {"hyperdiffusion": 0.0} | settings
    return ShallowWater(sht, **parts)


def start(sht, fields):
    return ShallowWaterState.from_fields(sht, *fields, radius=A)


def random_state(seed, sht=SHT, scale=1.0):
    """Winds of about 10 m s-1 and heights about 6000 m."""
    rng, size = np.random.default_rng(seed), sht.lmax + 1
    c = rng.normal(size=(3, size, size)) + 1j * rng.normal(size=(3, size, size))
    c = np.tril(c) / (1 + np.arange(size))[:, None] * scale
    c[:, :, 0] = c[:, :, 0].real
    c[:, 0] = 0
    c *= np.array([3e-5, 3e-6, 200.0])[:, None, None]
    c[2, 0, 0] = 6000 * np.sqrt(4 * np.pi)
    return ShallowWaterState(*jnp.asarray(c))


def random_orography(seed, sht=SHT):
    c = np.asarray(random_state(seed, sht).height).copy()
    c[0, 0] = 1000
    return jnp.asarray(c)


def single(l, m, value, sht=SHT):
    return jnp.zeros((sht.lmax + 1,) * 2, complex).at[l, m].set(complex(value))


def resting(height=6000.0, sht=SHT, **parts):
    zero = single(0, 0, 0.0, sht)
    mean = single(0, 0, height * np.sqrt(4 * np.pi), sht)
    state = {"vorticity": zero, "divergence": zero, "height": mean}
    return ShallowWaterState(**{k: v + parts.get(k, zero) for k, v in state.items()})


# ------------------------------------------------------------------- the equations


@pytest.mark.parametrize("tilt", [0.0, 60.0])
def test_the_tendency_is_that_of_the_vector_form_on_the_grid(tilt):
    ground = random_orography(5)
    model, state = world(orography=ground, tilt=tilt), random_state(0)
    y, x = np.deg2rad(SHT.grid.latitude)[:, None], np.deg2rad(SHT.grid.longitude)[None]
    t = np.deg2rad(tilt)
    sine = np.sin(y) * np.cos(t) - np.cos(x) * np.cos(y) * np.sin(t)

    def expected(state):
        u, v, h = state.to_fields(SHT, radius=A)
        absolute = SHT.synthesis(state.vorticity) + 2 * EARTH["rotation"] * sine
        curl, div = SHT.wind_analysis(absolute * v, -absolute * u, radius=A)
        depth = h - SHT.synthesis(ground)
        flux = SHT.wind_analysis(depth * u, depth * v, radius=A)[1]
        energy = SHT.analysis(GRAVITY * h + (u**2 + v**2) / 2)
        laplacian = jnp.asarray(SHT.laplacian_eigenvalues(A), complex)[:, None]
        return curl, div - laplacian * energy, -flux

    got = leaves(apply(model.tendency, state))
    truth = np.stack(apply(expected, state))
    scale = np.abs(truth).max(axis=(1, 2), keepdims=True)
    np.testing.assert_array_less(np.abs(got - truth) / scale, 1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_surface_at_rest_stays_at_rest_over_any_orography(method):
    model = world(orography=random_orography(1), method=method, hyperdiffusion=1e17)
    chex.assert_trees_all_close(advance(model, resting()), resting(), atol=1e-20)


@pytest.mark.parametrize("tilt", [0.0, 45.0, 90.0])
def test_solid_rotation_is_steady_to_rounding(tilt):
    # Test 2 of Williamson et al. (1992): T42, five days, over the poles too.
    sht = sphere.SphericalHarmonics(sphere.gauss_legendre(64, 128), 42)
    model = large_world(sht, tilt=tilt, time_step=5 * 86_400.0, substeps=120)
    fields = solid_rotation(sht.grid, tilt=tilt, **EARTH)
    later = advance(model, start(sht, fields)).to_fields(sht, radius=A)
    for got, truth in zip(later, fields, strict=True):
        scale = np.abs(truth).max()
        np.testing.assert_allclose(got, truth, rtol=0, atol=1e-12 * max(scale, 1))


@pytest.mark.parametrize(
    ("method", "error"),
    [(ExponentialRungeKutta(lean=0.0), 1e-6), (ExponentialRungeKutta(), 1e-3)],
)
def test_gravity_waves_have_their_frequency_at_any_step(method, error):
    # Without rotation, and for a small wave: a millimetre on 6000 m.
    l, height = 6, 1e-3
    model = world(rotation=0.0, time_step=36_000.0, substeps=5, method=method)
    state = resting()
    state = eqx.tree_at(
        lambda s: s.height, state, state.height.at[l, 2].set(complex(height))
    )
    later = advance(model, state)
    pull = GRAVITY * l * (l + 1) / A**2
    phase = np.sqrt(pull * 6000.0) * 36_000.0  # 8.9 radians in five steps
    got = leaves(later)[[2, 1], l, 2] / [1, np.sqrt(pull / 6000.0)]
    expected = height * np.array([np.cos(phase), np.sin(phase)])
    # The wave acts on itself by its height over the depth.
    np.testing.assert_allclose(got, expected, rtol=0, atol=error * height)


def test_semi_implicit_gravity_waves_converge():
    state = resting()
    state = eqx.tree_at(lambda s: s.height, state, state.height.at[4, 2].set(1e-3 + 0j))
    frequency = np.sqrt(GRAVITY * 20 / A**2 * 6000.0)
    errors = []
    for substeps in (8, 16):
        model = world(
            rotation=0.0,
            method=ImplicitExplicit(),
            time_step=3600.0,
            substeps=substeps,
        )
        got = advance(model, state).height[4, 2].real
        errors.append(abs(got - 1e-3 * np.cos(frequency * 3600.0)))
    assert np.log2(errors[0] / errors[1]) > 2.5


def test_hyperdiffusion_decays_a_weak_flow_exactly():
    vorticity = single(5, 3, 1e-12)
    model = world(rotation=0.0, hyperdiffusion=1e20, time_step=7200.0, substeps=1)
    later = advance(model, resting(vorticity=vorticity))
    decay = np.exp(-1e20 * (30 / A**2) ** 2 * 7200.0)
    np.testing.assert_allclose(
        later.vorticity, decay * np.asarray(vorticity), atol=1e-19
    )


def test_the_zonal_mean_is_drawn_to_the_targets_and_the_mass_is_not():
    target = resting(7000.0, vorticity=single(3, 0, 2e-12) + single(3, 2, 9e-12))
    state = resting(6000.0, vorticity=single(3, 0, 5e-12) + single(4, 2, 3e-12))
    model = world(rotation=0.0, target=target, relaxation_time=43_200.0)
    later = advance(model, state)
    left = np.exp(-3600.0 / 43_200.0)
    expected = single(3, 0, 2e-12 + left * 3e-12) + single(4, 2, 3e-12)
    np.testing.assert_allclose(later.vorticity, expected, atol=1e-18)
    assert later.height[0, 0] == state.height[0, 0]


@pytest.mark.parametrize("method", METHODS)
def test_forcing_is_added_to_the_tendencies(method):
    # Weak zonal flows without rotation neither advect nor accelerate themselves.
    push = resting(1e-4, vorticity=single(3, 0, 1e-15))
    later = advance(world(rotation=0.0, method=method), resting(), push)
    expected = resting(6000.36, vorticity=single(3, 0, 3.6e-12))
    np.testing.assert_allclose(later.height, expected.height, rtol=1e-12, atol=1e-5)
    np.testing.assert_allclose(later.vorticity, expected.vorticity, atol=1e-18)
    still = advance(world(rotation=0.0, method=method), resting(), resting(0.0))
    chex.assert_trees_all_close(still, resting(), atol=1e-20)


@pytest.mark.parametrize("method", METHODS)
def test_mass_is_conserved_to_the_last_bit(method):
    model = world(
        orography=random_orography(2),
        target=random_state(3),
        hyperdiffusion=1e16,
        method=method,
    )
    state = random_state(4)
    later = advance(model, state)
    assert later.height[0, 0] == state.height[0, 0]
    assert np.abs(leaves(later)[:2, 0, 0]).max() == 0
    mass = [float(apply(model.mass, s)) for s in (state, later)]
    np.testing.assert_allclose(mass, 6000 - 1000 / np.sqrt(4 * np.pi), rtol=1e-13)


def test_only_the_axis_distinguishes_directions():
    model, state = world(hyperdiffusion=1e17), random_state(5)
    l, m = np.arange(11)[:, None], np.arange(11)
    turn = np.exp(0.7j * m)[None]
    # Mirrored at the equator, vorticity changes its sign besides.
    mirror = (-1.0) ** (l + m) * np.array([-1, 1, 1])[:, None, None]
    for change in (turn, mirror):
        moved = lambda s, change=change: ShallowWaterState(
            *jnp.asarray(leaves(s) * change)
        )
        got, expected = (
            leaves(advance(model, moved(state))),
            leaves(moved(advance(model, state))),
        )
        scale = np.abs(expected).max(axis=(1, 2), keepdims=True)
        np.testing.assert_array_less(np.abs(got - expected) / scale, 1e-11)


def test_balance_lets_no_divergence_arise_and_is_linear_balance_for_weak_winds():
    model = world(orography=random_orography(6))
    vorticity = random_state(7).vorticity
    state = apply(model.balanced, vorticity, 6000.0)
    rate = apply(model.tendency, state)
    unbalanced = eqx.tree_at(lambda s: s.height, state, resting().height)
    scale = np.abs(apply(model.tendency, unbalanced).divergence).max()
    assert np.abs(rate.divergence).max() < 1e-12 * scale
    assert state.height[0, 0] == 6000 * math.sqrt(4 * math.pi)
    eigenvalues = np.minimum(SHT.laplacian_eigenvalues(A), -1e-20)[:, None]
    psi = 1e-6 * jnp.asarray(np.asarray(vorticity) / eigenvalues)
    weak = apply(world().balanced, 1e-6 * vorticity, 0.0).height
    linear = LinearBalance(10, rotation=EARTH["rotation"]).geopotential(psi)
    scale = np.abs(linear).max()
    np.testing.assert_allclose(weak * GRAVITY, linear, rtol=0, atol=1e-5 * scale)


# ------------------------------------------------------------------- any setting


def observe(model, state, weight):
    both = zip(jax.tree.leaves(model(state)), jax.tree.leaves(weight), strict=True)
    return sum((x * w).real.sum() for x, w in both)


def inverse_scale(seed):
    """Weights that give every field a say."""
    weight = leaves(random_state(seed))
    weight[:, 0, 0] = 0
    return ShallowWaterState(
        *jnp.asarray(weight / np.square(np.abs(weight).max((1, 2), keepdims=True)))
    )


@pytest.mark.parametrize("method", METHODS)
def test_derivatives_forward_reverse_and_by_differences_agree(method):
    sht = sphere.SphericalHarmonics(sphere.gauss_legendre(8, 16), 5)
    small = lambda state: jax.tree.map(lambda x: x[:6, :6], state)
    model = ShallowWater(
        sht,
        orography=small(random_orography(8)),
        target=small(random_state(1)),
        method=method,
        substeps=1,
        **EARTH,
    )
    weight, state = small(inverse_scale(11)), small(random_state(9))
    push = small(random_state(10, scale=1e-2))
    push = eqx.tree_at(lambda s: s.height, push, push.height.at[0, 0].set(50 + 0j))
    settings = lambda m: (m.hyperdiffusion, m.relaxation_time)
    inputs = state, (jnp.asarray(1e18), jnp.asarray(86_400.0))
    pushes = push, (jnp.asarray(1e15), jnp.asarray(50.0))

    @jax.jit
    def total(inputs):
        return observe(eqx.tree_at(settings, model, inputs[1]), inputs[0], weight)

    slope = jax.grad(total)(inputs)
    forward = jax.jvp(total, (inputs,), (pushes,))[1]
    # JAX's convention: the gradient of a real function pairs without conjugation.
    pairs = zip(jax.tree.leaves(slope), jax.tree.leaves(pushes), strict=True)
    terms = [float((g * p).real.sum()) for g, p in pairs]
    np.testing.assert_allclose(sum(terms), forward, rtol=1e-10)
    shift = lambda sign, push: total(
        jax.tree.map(lambda x, p: x + sign * 0.1 * p, inputs, push)
    )
    none = jax.tree.map(jnp.zeros_like, pushes)
    parts = [(push, none[1]), (none[0], (pushes[1][0], none[1][1]))]
    parts.append((none[0], (none[1][0], pushes[1][1])))
    for part, expected in zip(parts, [sum(terms[:3]), *terms[3:]], strict=True):
        difference = (shift(1, part) - shift(-1, part)) / 0.2
        np.testing.assert_allclose(difference, expected, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_float32_stays_and_members_may_be_mapped(method):
    model = world(orography=random_orography(14), method=method)
    members = [random_state(seed) for seed in range(3)]
    alone = np.stack([leaves(advance(model, s)) for s in members], 1)
    stack = jax.tree.map(lambda *x: jnp.stack(x), *members)
    mapped = eqx.filter_jit(lambda model, s: jax.vmap(model)(s))
    scale = np.abs(alone).max(axis=(2, 3), keepdims=True)
    error = np.abs(leaves(mapped(model, stack)) - alone) / scale
    np.testing.assert_array_less(error, 1e-12)
    narrow = mapped(model, jax.tree.map(lambda x: x.astype(jnp.complex64), stack))
    assert leaves(narrow).dtype == np.complex64
    error = np.abs(leaves(narrow) - alone) / scale
    # Divergence is the small difference of large terms.
    np.testing.assert_array_less(error.max((1, 2, 3)), [1e-5, 1e-4, 1e-5])


def test_a_thin_state_fails_alone():
    good, bad = random_state(0), random_state(1)
    bad = eqx.tree_at(lambda s: s.height, bad, -bad.height)  # no layer at all
    stack = jax.tree.map(lambda *x: jnp.stack(x), good, bad)
    later = eqx.filter_jit(lambda model, s: jax.vmap(model)(s))(world(), stack)
    assert np.isfinite(leaves(later)[:, 0]).all()
    assert not np.isfinite(leaves(later)[:, 1]).all()


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match=r"must be positive, got 0\.0 and 2\."):
        world(time_step=0.0)
    with pytest.raises(ValueError, match=r"`gravity` .* must be positive, got .*-9\.8"):
        world(gravity=-9.8)
    equiangular = sphere.SphericalHarmonics(sphere.equiangular(16, 32), 10)
    with pytest.raises(ValueError, match=r"Gauss-Legendre grid.*got equiangular"):
        large_world(equiangular)
    full = sphere.SphericalHarmonics(sphere.gauss_legendre(11, 32), 10)
    with pytest.raises(ValueError, match=r"resolve degree lmax \+ 1 = 11, but ends"):
        large_world(full)
    with pytest.raises(ValueError, match=r"`orography` must be .*got \(8, 8\)"):
        world(orography=jnp.zeros((8, 8), complex))
    with pytest.raises(ValueError, match=r"`state` must be .*got \(8, 8\).*vmap"):
        world()(ShallowWaterState(*jnp.zeros((3, 8, 8), complex)))


# ------------------------------------------------------------- against the published


BOULDER = 46, 91  # row and column of 40.46 N, 255.94 E on the grid of T42


def published_setting(fields, orography=None, hyperdiffusion=0.0):
    sht = sphere.SphericalHarmonics(sphere.gauss_legendre(64, 128), 42)
    ground = None if orography is None else orography(sht.grid)
    model = large_world(
        sht, orography=ground, hyperdiffusion=hyperdiffusion, time_step=1800.0
    )
    return sht, model, start(sht, fields(sht.grid))


# What the program of Jakob-Chien, Hack & Williamson (1995), J. Comput. Phys. 119,
# 164-187, printed (STSWM 2.0, T42, semi-implicit, in single precision): the listings
# `stdout.0005` and `stdout.0006` of its distribution.
FIVE = {
    "mass": 5.619932617e3,
    "energy": 1.569072640e8,
    "enstrophy": 7.204438868e-13,
    "height": np.array(
        [
            5552.345703,
            5592.563477,
            5602.130859,
            5605.125488,
            5606.624512,
            5603.647949,
            5594.943848,
            5586.353516,
            5582.356934,
            5582.568848,
            5586.001953,
            5591.644531,
            5597.735840,
        ]
    ),
}
SIX = {
    "mass": 9.522990234e3,
    "energy": 4.625519040e8,
    "enstrophy": 5.536494115e-13,
    "height": np.array(
        [
            9640.115234,
            9633.342773,
            9628.886719,
            9625.751953,
            9619.918945,
            9607.611328,
            9588.935547,
            9568.400391,
            9551.729492,
            9542.209961,
            9538.704102,
            9537.882812,
            9536.063477,
        ]
    ),
}


def check_invariants(model, state, published):
    got = [model.mass, model.energy, model.potential_enstrophy]
    got = [float(apply(function, state)) for function in got]
    expected = [published[name] for name in ("mass", "energy", "enstrophy")]
    np.testing.assert_allclose(got, expected, rtol=1e-5)  # theirs in float32


def half_hours(sht, model, state):
    keep = lambda s: sht.synthesis(s.height)[BOULDER]
    path = eqx.filter_jit(lambda model, s: rollout(model, s, 12, reduce=keep))
    return np.r_[apply(keep, state), path(model, state)]


def test_flow_over_a_mountain_is_the_published_one_for_six_hours():
    fields = lambda grid: solid_rotation(grid, speed=20.0, height=5960.0, **EARTH)
    sht, model, state = published_setting(fields, isolated_mountain)
    check_invariants(model, state, FIVE)
    ground = isolated_mountain(sht.grid)[BOULDER]
    ground = ground - apply(sht.synthesis, model.orography)[BOULDER]
    got = half_hours(sht, model, state)
    # After the start they add the mountain untruncated to a truncated depth; and they
    # slow the gravity waves that the start sets off, here of 50 m.
    np.testing.assert_allclose(got[0], FIVE["height"][0], atol=0.01)
    error = got[1:] + ground - FIVE["height"][1:]
    assert np.abs(error).max() < 5.5
    assert np.sqrt(np.mean(error**2)) < 3


def test_a_rossby_haurwitz_wave_is_the_published_one_for_six_hours():
    fields = lambda grid: rossby_haurwitz_wave(grid, **EARTH)
    sht, model, state = published_setting(fields, hyperdiffusion=5e15)
    check_invariants(model, state, SIX)
    # It falls by 104 m.
    got = half_hours(sht, model, state)
    np.testing.assert_allclose(got, SIX["height"], rtol=0, atol=1.5)


def norms(sht, value, truth):
    """The normalised l1, l2 and linf errors of Williamson et al. (1992)."""
    mean = lambda field: (sht.grid.weights[:, None] * field).sum()
    error = np.abs(value - truth)
    l2 = np.sqrt(mean(error**2) / mean(truth**2))
    return [mean(error) / mean(truth), l2, error.max() / truth.max()]


def days(model, state, count):
    run = eqx.filter_jit(lambda model, s: rollout(model, s, count))
    return run(model, state)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "orography", "length", "bounds", "drift"),
    [
        (
            lambda grid: solid_rotation(grid, speed=20.0, height=5960.0, **EARTH),
            isolated_mountain,
            15,
            [1e-4, 1.5e-4, 1.5e-3],
            1e-6,
        ),
        (
            lambda grid: rossby_haurwitz_wave(grid, **EARTH),
            None,
            7,
            [1e-3, 2e-3, 8e-3],
            1e-6,
        ),
    ],
)
def test_degree_42_meets_degree_85(fields, orography, length, bounds, drift):
    ends = []
    for rows, lmax, substeps in ((64, 42, 48), (128, 85, 96)):
        sht = sphere.SphericalHarmonics(sphere.gauss_legendre(rows, 2 * rows), lmax)
        ground = None if orography is None else orography(sht.grid)
        model = large_world(
            sht, orography=ground, time_step=86_400.0, substeps=substeps
        )
        state = start(sht, fields(sht.grid))
        last = jax.tree.map(lambda x: x[-1], days(model, state, length))
        ratio = apply(model.energy, last) / apply(model.energy, state)
        assert abs(ratio - 1) < drift
        assert last.height[0, 0] == state.height[0, 0]
        ends.append(last)
    grid = sphere.gauss_legendre(64, 128)
    fine, coarse = (sphere.SphericalHarmonics(grid, lmax) for lmax in (63, 42))
    truth = np.asarray(fine.synthesis(sphere.truncate(ends[1].height, 63)))
    value = np.asarray(coarse.synthesis(ends[0].height))
    assert (norms(coarse, value, truth) < np.array(bounds)).all()


@pytest.mark.slow
def test_the_jet_of_galewsky_rolls_up_by_day_six():
    sht = sphere.SphericalHarmonics(sphere.gauss_legendre(128, 256), 85)
    model = large_world(sht, hyperdiffusion=5e14, time_step=86_400.0, substeps=96)
    path = days(model, start(sht, galewsky_jet(sht.grid, **EARTH)), 6)
    vorticity = np.asarray(jax.vmap(sht.synthesis)(path.vorticity))
    eddies = vorticity - vorticity.mean(-1, keepdims=True)
    size = np.sqrt((eddies**2 * sht.grid.weights[:, None]).sum((1, 2)))
    # Exponential growth, then waves that break and wind up: half the jet's own
    # vorticity, in waves of 5 or 6 round the globe, and negative vorticity carried
    # north of the positive.
    assert (size[1:4] / size[:3] > 2.5).all()
    assert size[5] > 50 * size[1] / 1.5
    row = np.abs(sht.grid.latitude - 45).argmin()
    spectrum = np.abs(np.fft.rfft(vorticity[5, row]))[1:13]
    assert 4 <= 1 + spectrum.argmax() <= 7
    assert vorticity[5].max() > 1.1e-4
    assert vorticity[5].min() < -9e-5
    south = (sht.grid.latitude > 25) & (sht.grid.latitude < 33)
    assert vorticity[3][south].min() > -6e-5 > vorticity[5][south].min() + 1e-5
    # Undisturbed, the jet stays a jet.
    calm = start(sht, galewsky_jet(sht.grid, perturbation=0.0, **EARTH))
    end = days(model, calm, 1)
    assert np.abs(np.asarray(end.vorticity)[..., 1:]).max() < 1e-12


@pytest.mark.slow
def test_a_jet_that_is_restored_is_chaotic():
    sht = sphere.SphericalHarmonics(sphere.gauss_legendre(48, 96), 31)
    jet = start(sht, galewsky_jet(sht.grid, perturbation=0.0))
    settings: dict[str, Any] = {"target": jet, "hyperdiffusion": 2e16}
    model = ShallowWater(sht, time_step=86_400.0, substeps=24, **settings)
    narrow = lambda s: jax.tree.map(lambda x: x.astype(jnp.complex64), s)
    state = narrow(start(sht, galewsky_jet(sht.grid)))
    state = jax.tree.map(lambda x: x[-1], days(model, state, 20))
    push = narrow(random_flow(model, key=jax.random.key(0), speed=0.1, height=0.0))
    other = jax.tree.map(jnp.add, state, push)
    pair = jax.tree.map(lambda *x: jnp.stack(x), state, other)
    run = eqx.filter_jit(lambda model, s: jax.vmap(lambda s: rollout(model, s, 25))(s))
    vorticity = np.asarray(
        jax.vmap(jax.vmap(sht.synthesis))(run(model, pair).vorticity)
    )
    eddies = vorticity[0] - vorticity[0].mean(-1, keepdims=True)
    weigh = lambda x: np.sqrt((x**2 * sht.grid.weights[:, None]).sum((1, 2)))
    error = weigh(vorticity[0] - vorticity[1]) / weigh(eddies)
    assert error[0] < 0.05
    # Two states of one climate that have forgotten each other differ by sqrt(2).
    assert 1.1 < error[19:].mean() < 1.7


def test_a_real_analysis_runs_over_real_topography():
    sht = sphere.SphericalHarmonics(sphere.gauss_legendre(32, 64), 21)
    land = data.open_sample("topography")
    height = np.maximum(land["elevation"].values, 0.0)
    grid = sphere.Grid.from_coordinates(land["latitude"], land["longitude"])
    ground = sphere.SphericalHarmonics(grid, 21).analysis(jnp.asarray(height))
    sample = data.open_sample("era5_eda").isel(time=0).sel(level=500)
    grid = sphere.Grid.from_coordinates(sample["latitude"], sample["longitude"])
    analyses = jnp.asarray(sample["geopotential"].values[:2], float)
    geopotential = sphere.SphericalHarmonics(grid, 21).analysis(analyses)
    psi = LinearBalance(21).streamfunction(geopotential)
    eigenvalues = jnp.asarray(sht.laplacian_eigenvalues(6.371e6), complex)
    vorticity = eigenvalues[None, :, None] * psi
    # As deep as the air, so that the Himalaya stands well inside the layer.
    model = ShallowWater(
        sht,
        orography=ground,
        hyperdiffusion=5e16,
        time_step=21_600.0,
        substeps=12,
    )

    @eqx.filter_jit
    def forecast(model, vorticity):
        state = model.balanced(vorticity.astype(jnp.complex64), 9000.0)
        path = rollout(model, state, 20)
        return sht.synthesis(state.height), path.to_fields(sht)

    before, (u, v, surface) = forecast(model, vorticity[0])
    assert np.isfinite(surface).all()
    assert 20 < np.hypot(u, v)[-1].max() < 150
    # It is weather, not persistence, and no member's is another's.
    assert np.abs(surface[-1] - before).max() > 100
    other = forecast(model, vorticity[1])[1][2]
    assert 1 < np.abs(surface[-1] - other[-1]).max() < 500
