import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from skyens.dynamics import KuramotoSivashinsky, rollout

SIZE, LENGTH = 24, 22.0
# The shortest wave has no derivative on its grid.
WAVE = 2j * np.pi / LENGTH * np.append(np.arange(SIZE // 2), 0)
EVERY = {"uux": 1.2, "uxx": 0.9, "uxxx": 0.4, "uxxxx": 1.1, "uuux": 0.3}


def smooth(seed, waves=3, size=SIZE):
    """A random field of a few long waves."""
    numbers = np.random.default_rng(seed).normal(size=(2, waves))
    angle = 2 * np.pi * np.arange(size)[None] * np.arange(1, waves + 1)[:, None] / size
    return jnp.asarray(numbers[0] @ np.cos(angle) + numbers[1] @ np.sin(angle))


def equation(_, u, uux, uxx, uxxx, uxxxx, uuux=0.0, push=None):
    """The right side, with products on a grid four times as fine."""
    v = np.fft.rfft(u)
    many = 4 * SIZE
    fine = np.fft.irfft(v, many) * (many / SIZE)
    square, cube = (np.fft.rfft(fine**n)[: len(v)] * (SIZE / many) for n in (2, 3))
    change = uux * WAVE * square / 2 + uuux * WAVE * cube / 3
    change += uxx * WAVE**2 * v + uxxx * WAVE**3 * v + uxxxx * WAVE**4 * v
    tendency = np.fft.irfft(-change, SIZE)
    return tendency if push is None else tendency + push


@pytest.mark.parametrize("terms", [(1.0, 1.0, 0.0, 1.0, 0.0), tuple(EVERY.values())])
def test_it_is_the_solution_to_fourth_order(terms):
    start, names = smooth(0), EVERY.keys()
    right = lambda t, u: equation(t, u, *terms)
    settings = {"method": "LSODA", "rtol": 1e-12, "atol": 1e-12}
    exact = solve_ivp(right, (0, 1.0), start, **settings).y[:, -1]
    error = []
    for dt in (0.04, 0.02):
        world = KuramotoSivashinsky(
            SIZE, LENGTH, dt, **dict(zip(names, terms, strict=True))
        )
        later = rollout(world, start, round(1 / dt))[-1]
        error.append(np.abs(later - exact).max())
    assert error[1] < 1e-5
    assert 11 < error[0] / error[1] < 23  # 2**4, near enough


def test_linear_waves_grow_and_travel_exactly():
    world = KuramotoSivashinsky(
        SIZE, LENGTH, 1.5, uux=0.0, uxx=0.8, uxxx=0.3, uxxxx=0.5
    )
    k = 2 * np.pi / LENGTH * 2
    growth, speed = 0.8 * k**2 - 0.5 * k**4, -0.3 * k**2
    later = world(jnp.sin(k * world.points))
    exact = np.exp(growth * 1.5) * np.sin(k * (world.points - speed * 1.5))
    np.testing.assert_allclose(later, exact, atol=1e-13)


def test_energy_comes_from_long_waves_and_goes_by_short_ones():
    # d/dt mean(u**2) / 2 = mean(u_x**2) - mean(u_xx**2); advection moves, no more.
    dt = 1e-3
    world, start = KuramotoSivashinsky(SIZE, LENGTH, dt), smooth(1)
    middle, end = rollout(world, start, 2)
    power = (np.mean(end**2) - np.mean(start**2)) / (4 * dt)
    v = np.fft.rfft(middle)
    slope, bend = (np.fft.irfft(WAVE**n * v, SIZE) for n in (1, 2))
    np.testing.assert_allclose(power, np.mean(slope**2) - np.mean(bend**2), rtol=1e-5)


def test_the_climate_of_the_usual_setting_is_the_known_one():
    # 128 points on 32 pi in steps of 0.5, from the start of Kassam & Trefethen (2005);
    # the standard deviation, DAPPER's error of a climatology, is 1.3.
    world = KuramotoSivashinsky()
    x = world.points / 16
    start = jnp.cos(x) * (1 + jnp.sin(x))
    states = eqx.filter_jit(rollout)(world, start, 3000)[500:]
    assert abs(np.std(states) - 1.3) < 0.03
    np.testing.assert_allclose(np.mean(states, axis=1), 0, atol=1e-12)
    spectrum = np.mean(np.abs(np.fft.rfft(states)), axis=0)
    assert spectrum[60] < 1e-2 * spectrum.max()  # it is resolved


def test_a_forcing_is_added_to_the_tendency():
    start, push = smooth(2), 0.5 * smooth(3)
    right = lambda t, u: equation(t, u, 1.0, 1.0, 0.0, 1.0, push=push)
    settings = {"method": "LSODA", "rtol": 1e-10, "atol": 1e-10}
    exact = solve_ivp(right, (0, 0.1), start, **settings).y[:, -1]
    world = KuramotoSivashinsky(SIZE, LENGTH, 0.01)
    pushes = jnp.broadcast_to(push, (10, SIZE))
    later = rollout(world, start, 10, pushes)[-1]
    np.testing.assert_allclose(later, exact, atol=1e-5)


def test_gradients_in_every_coefficient_match_finite_differences():
    start = smooth(4)

    @jax.jit
    def loss(coefficients):
        world = KuramotoSivashinsky(SIZE, LENGTH, 0.25, **coefficients)
        return jnp.sum(rollout(world, start, 8)[-1] ** 2)

    slopes = jax.grad(loss)(EVERY)
    for name, value in EVERY.items():
        ahead, behind = (loss(EVERY | {name: value + e}) for e in (1e-5, -1e-5))
        np.testing.assert_allclose(slopes[name], (ahead - behind) / 2e-5, rtol=1e-6)
    known = KuramotoSivashinsky(SIZE, LENGTH, 0.25, **EVERY)
    final = jnp.sum(rollout(known, start, 8)[-1] ** 2)
    np.testing.assert_allclose(loss(EVERY), final, rtol=1e-12)


def test_each_member_may_have_its_own_coefficient():
    members, factors = jnp.stack([smooth(5), smooth(6)]), jnp.asarray([0.5, 2.0])
    build = lambda uux: KuramotoSivashinsky(SIZE, LENGTH, uux=uux)
    later = jax.vmap(lambda factor, u: build(factor)(u))(factors, members)
    np.testing.assert_allclose(later[1], build(2.0)(members[1]), rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_states_keep_their_dtype(dtype):
    world, start = KuramotoSivashinsky(SIZE, LENGTH), smooth(7).astype(dtype)
    later = eqx.filter_jit(lambda u: jax.vmap(world)(u))(start[None])[0]
    assert later.dtype == dtype
    tolerance = 10 * float(jnp.finfo(dtype).eps) * float(abs(start).max())
    np.testing.assert_allclose(
        later.astype(float), world(start.astype(float)), atol=tolerance
    )


def test_odd_numbers_of_points_resolve_every_wave():
    size = 25
    start = jr.normal(jr.key(0), (size,))
    world = KuramotoSivashinsky(size, LENGTH, 1e-4, uxx=0.0, uxxxx=0.0)
    v = np.fft.rfft(start)
    square = np.fft.rfft(np.fft.irfft(v, 100) ** 2)[: len(v)] * 4
    wave = 2j * np.pi / LENGTH * np.arange(len(v))
    change = np.fft.irfft(-wave * square / 2, size)
    np.testing.assert_allclose((world(start) - start) / 1e-4, change, atol=1e-2)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="`size` must be at least 8 and `length` pos"):
        KuramotoSivashinsky(7)
    with pytest.raises(ValueError, match="got 128 and -1"):
        KuramotoSivashinsky(length=-1.0)
    with pytest.raises(ValueError, match="`dt` must be positive and finite, got inf"):
        KuramotoSivashinsky(dt=np.inf)
    with pytest.raises(ValueError, match=r"must have the shape \(128,\), got \(64,\)"):
        KuramotoSivashinsky()(jnp.ones(64))
