from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens import sphere
from skyens.dynamics import (
    ShallowWater,
    ShallowWaterState,
    cosine_bell,
    galewsky_jet,
    isolated_mountain,
    random_flow,
    rossby_haurwitz_wave,
    solid_rotation,
)

EARTH: dict[str, Any] = {"radius": 6.37122e6, "rotation": 7.292e-5, "gravity": 9.80616}
A, OMEGA = EARTH["radius"], EARTH["rotation"]
GRID = sphere.gauss_legendre(64, 128)
SHT = sphere.SphericalHarmonics(GRID, 42)

tendency = eqx.filter_jit(lambda model, state: model.tendency(state))
mean = lambda field: (GRID.weights[:, None] * field).sum() / (4 * np.pi)
nearest = lambda axis, value: np.abs(axis - value).argmin()


def rates(fields, sht=SHT, **settings):
    """How fast wind (s-1) and divergence change, and what the rotation alone would."""
    model = ShallowWater(sht, hyperdiffusion=0.0, **(EARTH | settings))
    state = ShallowWaterState.from_fields(sht, *fields, radius=A)
    flat = eqx.tree_at(lambda s: s.height, state, jnp.zeros_like(state.height))
    scale = np.abs(tendency(model, flat).divergence).max()
    return tendency(model, state), scale


@pytest.mark.parametrize("tilt", [0.0, 30.0])
def test_solid_rotation_is_in_balance(tilt):
    fields = solid_rotation(GRID, tilt=tilt, **EARTH)
    change, scale = rates(fields, tilt=tilt)
    for part in (change.vorticity, change.divergence):
        assert np.abs(part).max() < 1e-11 * scale
    assert np.abs(change.height).max() < 1e-12 * 2000 * 1e-5 * 10
    speed = np.hypot(fields[0], fields[1])
    # Around the world in twelve days, where the axis is furthest.
    np.testing.assert_allclose(speed.max(), 2 * np.pi * A / (12 * 86_400), rtol=2e-3)


def test_the_bell_and_the_mountain_stand_where_they_should():
    y, x = nearest(GRID.latitude, 0.0), nearest(GRID.longitude, 270.0)
    bell = np.asarray(cosine_bell(GRID))
    assert np.unravel_index(bell.argmax(), bell.shape) in [(y, x), (63 - y, x)]
    y, x = np.deg2rad(GRID.latitude)[:, None], np.deg2rad(GRID.longitude)[None]
    distance = np.arccos(-np.cos(y) * np.sin(x))  # from 0 N, 270 E
    assert (bell[distance > 1 / 3 + 1e-6] == 0).all()
    # Its volume, with the cap's curvature: 1000 m over a third of a radian.
    at = np.linspace(0, 1 / 3, 4001)
    profile = 500 * (1 + np.cos(3 * np.pi * at)) * np.sin(at)
    np.testing.assert_allclose(mean(bell), np.trapezoid(profile, at) / 2, rtol=1e-2)
    mountain = np.asarray(isolated_mountain(GRID))
    y, x = np.unravel_index(mountain.argmax(), mountain.shape)
    assert abs(GRID.latitude[y] - 30) < 1.5
    assert GRID.longitude[x] == 270
    assert 1850 < mountain.max() <= 2000
    assert (mountain[:, nearest(GRID.longitude, 300.0)] == 0).all()


def test_the_rossby_haurwitz_wave_drifts_without_a_pull_on_divergence():
    fields = rossby_haurwitz_wave(GRID, **EARTH)
    change, scale = rates(fields)
    # Its height is chosen so that none arises.
    assert np.abs(change.divergence).max() < 1e-9 * scale
    state = ShallowWaterState.from_fields(SHT, *fields, radius=A)
    wave = state.vorticity[5, 4]
    # Haurwitz (1940): it moves east by (n (3 + n) w - 2 Omega) / ((1 + n) (2 + n)).
    drift = (4 * 7 * 7.848e-6 - 2 * OMEGA) / (5 * 6)
    expected = -4j * drift * wave
    np.testing.assert_allclose(change.vorticity[5, 4], expected, rtol=1e-9)
    assert np.abs(state.divergence).max() < 1e-12 * abs(wave)


def test_the_jet_is_in_balance_where_it_is_not_disturbed():
    fine = sphere.gauss_legendre(256, 4)
    u, v, h = (
        np.asarray(x)[:, 0] for x in galewsky_jet(fine, perturbation=0.0, **EARTH)
    )
    y = np.deg2rad(fine.latitude)
    inside = slice(130, 250)
    slope = np.gradient(h, y)[inside]
    force = u * (2 * OMEGA + u / (A * np.cos(y))) * np.sin(y)
    expected = -A * force[inside] / EARTH["gravity"]
    np.testing.assert_allclose(slope, expected, atol=0.01 * np.abs(expected).max())
    np.testing.assert_allclose(u.max(), 80, rtol=3e-3)
    assert abs(fine.latitude[u.argmax()] - 45) < 1
    assert (v == 0).all()
    weights = fine.weights * 4 / (4 * np.pi)
    np.testing.assert_allclose((weights * h).sum(), 10_000, atol=1e-3)


def test_the_bump_of_height_is_where_and_as_high_as_it_should_be():
    grid = sphere.gauss_legendre(256, 8)
    surface = [galewsky_jet(grid, perturbation=p)[2] for p in (120.0, 0.0)]
    bump = np.asarray(surface[0] - surface[1])
    y, x = np.unravel_index(bump.argmax(), bump.shape)
    assert x == 0
    assert abs(grid.latitude[y] - 45) < 1
    np.testing.assert_allclose(bump.max(), 120 * np.cos(np.pi / 4), rtol=0.02)


def test_random_flow_is_balanced_and_as_fast_as_asked():
    sht = sphere.SphericalHarmonics(sphere.gauss_legendre(32, 64), 20)
    model = ShallowWater(sht)
    make = lambda key: random_flow(model, key=key, speed=15.0, height=7000.0)
    states = jax.jit(jax.vmap(make))(jax.random.split(jax.random.key(0), 50))
    u, v, height = map(np.asarray, states.to_fields(sht))
    weights = sht.grid.weights[:, None] / (4 * np.pi)
    average = lambda x: (weights * x).sum((1, 2))
    # 50 samples of some forty modes that matter: a few per cent.
    np.testing.assert_allclose(np.sqrt(average(u**2 + v**2).mean()), 15, rtol=0.05)
    np.testing.assert_allclose(average(height), 7000, rtol=1e-12)
    one = jax.tree.map(lambda x: x[0], states)
    flat = eqx.tree_at(lambda s: s.height, one, jnp.zeros_like(one.height))
    scale = np.abs(tendency(model, flat).divergence).max()
    assert np.abs(tendency(model, one).divergence).max() < 1e-12 * scale


def test_fields_have_the_default_precision():
    with jax.enable_x64(False):
        assert cosine_bell(GRID).dtype == jnp.float32
        assert galewsky_jet(GRID)[2].dtype == jnp.float32
    assert rossby_haurwitz_wave(GRID)[0].dtype == jnp.float64


def test_width_is_in_degrees():
    wide = np.asarray(cosine_bell(GRID, width=40.0, latitude=50.0, longitude=20.0))
    y, x = nearest(GRID.latitude, 50.0), nearest(GRID.longitude, 60.0)
    assert wide[y, nearest(GRID.longitude, 20.0)] > 990
    assert wide[nearest(GRID.latitude, 12.0), nearest(GRID.longitude, 20.0)] > 0
    assert wide[nearest(GRID.latitude, 8.0), nearest(GRID.longitude, 20.0)] == 0
    assert wide[y, x] > 0  # 40 degrees of longitude are fewer of arc here


@pytest.mark.parametrize("origin", [0.0, -180.0])
def test_places_do_not_depend_on_where_longitudes_begin(origin):
    grid = sphere.gauss_legendre(32, 64, longitude_origin=origin)
    shift = nearest(np.mod(grid.longitude, 360), 0.0)
    base = sphere.gauss_legendre(32, 64)
    for make in (cosine_bell, isolated_mountain, lambda g: galewsky_jet(g)[2]):
        moved = np.roll(np.asarray(make(grid)), -shift, axis=1)
        np.testing.assert_allclose(moved, np.asarray(make(base)), atol=1e-6)
