import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens import sphere
from skyens.dynamics import Advection, cosine_bell, rollout, solid_rotation

RADIUS = 6.37122e6
SHT = sphere.SphericalHarmonics(sphere.gauss_legendre(64, 128), 42)
SMALL = sphere.SphericalHarmonics(sphere.gauss_legendre(10, 20), 6)

advance = eqx.filter_jit(lambda step, *states: step(*states))


def random_tracer(seed, sht=SMALL):
    field = np.random.default_rng(seed).normal(size=sht.grid.shape)
    return sht.analysis(jnp.asarray(field))


def norms(error, truth):
    """The normalised l1, l2 and linf errors of Williamson et al. (1992)."""
    mean = lambda field: (SHT.grid.weights[:, None] * field).sum()
    l1 = mean(np.abs(error)) / mean(np.abs(truth))
    l2 = np.sqrt(mean(error**2) / mean(truth**2))
    return np.array([l1, l2, np.abs(error).max() / np.abs(truth).max()])


@pytest.mark.parametrize("tilt", [0.0, 90.0])
def test_the_bell_comes_back_after_a_turn_of_twelve_days(tilt):
    u, v, _ = solid_rotation(SHT.grid, tilt=tilt)
    step = Advection(SHT, u, v, time_step=86_400.0, substeps=72, radius=RADIUS)
    bell = cosine_bell(SHT.grid)
    coefficients = SHT.analysis(bell)
    later = eqx.filter_jit(rollout)(step, coefficients, 12)[-1]
    # The bell has a corner at its rim, which degree 42 cannot hold: about half a per
    # cent in l2. Carrying it around, over the poles too, must add next to nothing.
    truncated = SHT.synthesis(coefficients)
    assert (norms(truncated - bell, bell) < [0.03, 0.01, 0.01]).all()
    moved = SHT.synthesis(later) - truncated
    assert (norms(moved, np.asarray(bell)) < [4e-4, 2e-4, 2e-4]).all()
    assert later[0, 0] == coefficients[0, 0]


def test_the_tendency_is_the_flux_divergence_of_any_wind():
    psi = sphere.pad(sphere.truncate(random_tracer(1), 2), 6).at[0, 0].set(0) * 1e7
    tracer = sphere.pad(sphere.truncate(random_tracer(2), 3), 6)

    @jax.jit
    def both(psi, tracer):
        spread = psi / RADIUS**2
        u, v = SMALL.wind_synthesis(0 * psi, spread, radius=RADIUS)
        step = Advection(SMALL, u, v, time_step=1e-2, substeps=1, radius=RADIUS)
        change = (step(tracer) - tracer) / 1e-2
        # div(q v) = v . grad q + q div(v), on the grid
        east, north = SMALL.gradient_synthesis(tracer, radius=RADIUS)
        whole = SMALL.synthesis(tracer) * SMALL.synthesis(spread)
        return SMALL.synthesis(change), -(u * east + v * north + whole)

    got, expected = both(psi, tracer)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * scale)


def test_hyperdiffusion_and_forcing_in_still_air():
    still = jnp.zeros(SMALL.grid.shape)
    step = Advection(SMALL, still, still, hyperdiffusion=1e20, radius=RADIUS)
    tracer, source = random_tracer(3), random_tracer(4) * 1e-4
    l = np.arange(7)[:, None]
    decay = np.exp(-1e20 * (l * (l + 1) / RADIUS**2) ** 2 * 3600.0)
    np.testing.assert_allclose(
        advance(step, tracer), decay * np.asarray(tracer), atol=1e-12
    )
    step = Advection(SMALL, still, still, radius=RADIUS)
    expected = tracer + 3600.0 * source
    np.testing.assert_allclose(advance(step, tracer, source), expected, atol=1e-12)


def test_float32_stays_and_members_may_be_mapped():
    u, v, _ = solid_rotation(SMALL.grid, tilt=30.0)
    step = Advection(SMALL, u, v, radius=RADIUS)
    members = jnp.stack([random_tracer(seed) for seed in range(3)])
    alone = np.stack([advance(step, member) for member in members])
    mapped = eqx.filter_jit(lambda step, x: jax.vmap(step)(x))
    np.testing.assert_allclose(mapped(step, members), alone, atol=1e-12)
    narrow = np.asarray(mapped(step, members.astype(jnp.complex64)))
    assert narrow.dtype == np.complex64
    np.testing.assert_allclose(narrow, alone, atol=1e-5 * np.abs(alone).max())


def test_the_gradient_in_the_wind_is_that_of_finite_differences():
    u, v, _ = solid_rotation(SMALL.grid, tilt=30.0)
    tracer = random_tracer(5)
    weight = np.random.default_rng(6).normal(size=SMALL.grid.shape)
    total = lambda u: (
        SMALL.synthesis(Advection(SMALL, u, v, radius=RADIUS)(tracer)) * weight
    ).sum()
    push = jnp.asarray(np.random.default_rng(7).normal(size=SMALL.grid.shape))
    slope = (jax.jit(jax.grad(total))(u) * push).sum()
    total = jax.jit(total)
    expected = (total(u + 1e-2 * push) - total(u - 1e-2 * push)) / 2e-2
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


def test_wrong_use_is_reported():
    u, v, _ = solid_rotation(SMALL.grid)
    with pytest.raises(ValueError, match=r"must be positive, got 0\.0 and 2"):
        Advection(SMALL, u, v, time_step=0.0)
    with pytest.raises(ValueError, match=r"`u` of shape \(9, 20\) does not lie"):
        Advection(SMALL, u[:9], v[:9])
