import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens import data, sphere
from skyens.dynamics import BalancedHeight, BarotropicVorticity, LinearBalance, rollout

GRID = sphere.equiangular(9, 16)
LMAX = 5
GRAVITY = 9.80665


def forecast_step(steps=2, **settings):
    gauss = sphere.SphericalHarmonics(sphere.gauss_legendre(8, 18), LMAX)
    model = BarotropicVorticity(gauss, **settings)
    sht = sphere.SphericalHarmonics(GRID, LMAX)
    return BalancedHeight(model, LinearBalance(LMAX), sht, steps=steps)


def heights(*shape, seed=0):
    noise = np.random.default_rng(seed).normal(size=(*shape, *GRID.shape))
    return 5500 + 100 * noise


advance = eqx.filter_jit(lambda step, *fields: step(*fields))
synthesis = eqx.filter_jit(lambda sht, c: sht.synthesis(c))


def harmonic(l, m):
    """A field of degree `l` and order `m`, of amplitude 1 m, up to degree 7."""
    c = np.zeros((8, 8), complex)
    c[l, m] = 1
    return np.asarray(synthesis(sphere.SphericalHarmonics(GRID, 7), c))


def test_a_uniform_height_stays():
    flat = np.full(GRID.shape, 5500.0)
    # Rounding of 5500 m, and no more, goes through the balance.
    np.testing.assert_allclose(advance(forecast_step(), flat), flat, atol=1e-8)


def test_what_the_truncation_leaves_out_stays():
    step, height = forecast_step(), heights()
    small = 30 * harmonic(6, 2) + 20 * harmonic(7, 5)
    changed = advance(step, height + small) - advance(step, height)
    np.testing.assert_allclose(changed, small, atol=1e-8)


def test_the_change_is_the_one_of_the_balanced_flow():
    step, height = forecast_step(), heights()
    psi, c = eqx.filter_jit(
        lambda step, h: (step.streamfunction(h), step.sht.analysis(h))
    )(step, height)
    phi = c * GRAVITY
    np.testing.assert_allclose(psi, step.balance.streamfunction(phi), atol=1e-4)
    model = eqx.filter_jit(step.model)
    moved = step.balance.geopotential(model(model(psi)) - psi)
    change = synthesis(step.sht, moved) / GRAVITY
    assert np.abs(change).max() > 1  # m
    moved = advance(step, height) - height
    np.testing.assert_allclose(moved, change, atol=1e-8)
    assert step.time_step == 7200.0


def test_channels_lead_and_are_stepped_alone():
    step, two = forecast_step(), heights(2)
    together = advance(step, two)
    assert together.shape == two.shape
    alone = np.stack([advance(step, height) for height in two])
    np.testing.assert_allclose(together, alone, atol=1e-8)
    mapped = eqx.filter_jit(lambda step, x: jax.vmap(step)(x))(step, two)
    np.testing.assert_allclose(mapped, alone, atol=1e-8)


def test_forcing_goes_to_the_model():
    # At rest and for a zonal forcing the flow grows linearly.
    step = forecast_step(hyperdiffusion=0.0, deformation_radius=float("inf"))
    forcing = np.zeros((6, 6), complex)
    forcing[2, 0] = 1e-9
    rest = np.full(GRID.shape, 5500.0)
    psi = forcing * -7200.0 * 6.371e6**2 / 6
    grown = eqx.filter_jit(lambda step, psi: step.height(psi))(step, psi)
    assert np.abs(grown).max() > 1
    np.testing.assert_allclose(advance(step, rest, forcing) - rest, grown, atol=1e-8)


def test_float32_stays_and_gradients_are_those_of_finite_differences():
    step, height = forecast_step(), heights()
    narrow = np.asarray(advance(step, height.astype(np.float32)))
    assert narrow.dtype == np.float32
    error = np.abs(narrow - np.asarray(advance(step, height)))
    assert error.max() < 0.05  # m; float32 resolves 5500 m to 0.0005
    weight = np.random.default_rng(1).normal(size=GRID.shape)
    total = lambda step, height: (step(height) * weight).sum()
    slope = eqx.filter_jit(jax.grad(total, argnums=1))(step, height)
    push = np.random.default_rng(2).normal(size=GRID.shape)  # m
    ends = [advance(step, height + sign * push) * weight for sign in (1, -1)]
    expected = (ends[0] - ends[1]).sum() / 2
    np.testing.assert_allclose((slope * push).sum(), expected, rtol=1e-3)


def test_wrong_use_is_reported():
    step = forecast_step()
    sht = sphere.SphericalHarmonics(GRID, LMAX)
    parts = r"same lmax, got \{'model': 5, 'balance': 4, 'sht': 5\}"
    with pytest.raises(ValueError, match=parts):
        BalancedHeight(step.model, LinearBalance(4), sht)
    with pytest.raises(ValueError, match="`steps` must be at least 1, got 0"):
        BalancedHeight(step.model, step.balance, sht, steps=0)
    with pytest.raises(ValueError, match="does not lie on this equiangular grid"):
        step(jnp.zeros((8, 16)))


@pytest.fixture(scope="module")
def real_forecasts():
    """Heights of the control analyses, and 36 h of forecasts from the first two."""
    sample = data.open_sample("era5_eda").isel(member=0).sel(level=500)
    height = jnp.asarray(sample["geopotential"].values / GRAVITY, jnp.float32)
    grid = sphere.Grid.from_coordinates(sample["latitude"], sample["longitude"])
    gauss = sphere.SphericalHarmonics(sphere.gauss_legendre(64, 128), 42)
    model = BarotropicVorticity(gauss, substeps=1)
    sht = sphere.SphericalHarmonics(grid, 42)
    step = BalancedHeight(model, LinearBalance(42), sht, steps=6)
    run = eqx.filter_jit(jax.vmap(lambda height: rollout(step, height, 6)))
    return grid, np.asarray(height), np.asarray(run(height[:2]))


# The first numbers this equation gave on these analyses (T40, R = 1,500 km), in m.
@pytest.mark.parametrize(
    ("start", "hemisphere", "target"),
    [
        (0, 1, [26, 46, 68]),
        (0, -1, [21, 39, 57.4]),
        (1, 1, [27, 50]),
    ],
)
def test_real_analyses_are_forecast_at_least_as_well(
    real_forecasts, start, hemisphere, target
):
    grid, height, forecast = real_forecasts
    latitude = hemisphere * grid.latitude
    weight = np.where(
        (latitude >= 20) & (latitude <= 80), np.cos(np.deg2rad(latitude)), 0
    )
    rms = lambda field: np.sqrt(weight @ (field**2).mean(-1) / weight.sum())
    for number, best in enumerate(target, start=1):
        truth = height[start + number]
        error = rms(forecast[start, 2 * number - 1] - truth)
        assert error <= best
        assert error < 0.75 * rms(height[start] - truth)  # persistence
