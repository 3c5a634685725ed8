import equinox as eqx
import exponax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import ive

from skyens.dynamics import Burgers, rollout

SIZE, LENGTH = 32, 5.0
EVERY = {"uux": 1.2, "viscosity": 0.3, "uxxx": 0.05, "uuux": 0.4}


def smooth(seed, waves=3, size=SIZE):
    """A random field of a few long waves."""
    numbers = np.random.default_rng(seed).normal(size=(2, waves))
    angle = 2 * np.pi * np.arange(size)[None] * np.arange(1, waves + 1)[:, None] / size
    return jnp.asarray(numbers[0] @ np.cos(angle) + numbers[1] @ np.sin(angle))


def cole_hopf(x, time, viscosity):
    """The solution from sin(x): heat flows where Burgers' waves steepen."""
    n = np.arange(1, 80)
    # exp(cos(x) / (2 nu)) is a series of Bessel functions; the scale cancels.
    weights = 2 * ive(n, 1 / (2 * viscosity)) * np.exp(-viscosity * n**2 * time)
    heat = ive(0, 1 / (2 * viscosity)) + weights @ np.cos(n[:, None] * x[None])
    slope = -(weights * n) @ np.sin(n[:, None] * x[None])
    return -2 * viscosity * slope / heat


def test_it_is_the_solution_of_cole_and_hopf_to_fourth_order():
    viscosity, error = 0.1, []
    for dt in (0.1, 0.05):
        world = Burgers(128, dt=dt, viscosity=viscosity)
        start = jnp.asarray(np.sin(world.points))
        later = rollout(world, start, round(1.5 / dt))[-1]
        exact = cole_hopf(world.points, 1.5, viscosity)
        error.append(np.abs(later - exact).max())
    assert error[1] < 1e-5
    assert 11 < error[0] / error[1] < 23  # 2**4, near enough


def test_every_term_is_that_of_the_equation():
    start, push = smooth(0), 0.5 * smooth(1)
    wave = 2j * np.pi / LENGTH * np.append(np.arange(SIZE // 2), 0)

    def right(_, u):
        v = np.fft.rfft(u)
        many = 4 * SIZE
        fine = np.fft.irfft(v, many) * (many / SIZE)
        square, cube = (np.fft.rfft(fine**n)[: len(v)] * (SIZE / many) for n in (2, 3))
        change = EVERY["uux"] * wave * square / 2 + EVERY["uuux"] * wave * cube / 3
        change += EVERY["uxxx"] * wave**3 * v - EVERY["viscosity"] * wave**2 * v
        return np.fft.irfft(-change, SIZE) + push

    settings = {"method": "LSODA", "rtol": 1e-11, "atol": 1e-11}
    exact = solve_ivp(right, (0, 0.2), start, **settings).y[:, -1]
    world = Burgers(SIZE, LENGTH, 0.005, **EVERY)
    pushes = jnp.broadcast_to(push, (40, SIZE))
    later = eqx.filter_jit(rollout)(world, start, 40, pushes)[-1]
    np.testing.assert_allclose(later, exact, atol=1e-6)


def test_only_viscosity_takes_energy_and_the_mean_stays():
    dt, viscosity = 1e-3, 0.2
    world = Burgers(SIZE, LENGTH, dt, viscosity=viscosity, uuux=0.5, uxxx=0.1)
    start = smooth(2) + 0.3
    middle, end = rollout(world, start, 2)
    power = (np.mean(end**2) - np.mean(start**2)) / (4 * dt)
    wave = 2j * np.pi / LENGTH * np.append(np.arange(SIZE // 2), 0)
    slope = np.fft.irfft(wave * np.fft.rfft(middle), SIZE)
    np.testing.assert_allclose(power, -viscosity * np.mean(slope**2), rtol=1e-4)
    np.testing.assert_allclose(np.mean(end), 0.3, rtol=1e-12)


def test_it_steps_as_exponax_does():
    world = Burgers(48, LENGTH, 1e-3, viscosity=0.2)
    start = smooth(3, size=48)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        # Of fourth order too; theirs drops the waves above two thirds.
        theirs = exponax.stepper.Burgers(
            1, LENGTH, 48, 1e-3, diffusivity=0.2, conservative=True, order=4
        )
        expected = theirs(start[None])[0]
    np.testing.assert_allclose(world(start), expected, atol=1e-9)


def test_gradients_in_every_coefficient_match_finite_differences():
    start = smooth(4)

    @jax.jit
    def loss(coefficients):
        world = Burgers(SIZE, LENGTH, 0.02, **coefficients)
        return jnp.sum(rollout(world, start, 5)[-1] ** 2)

    slopes = jax.grad(loss)(EVERY)
    for name, value in EVERY.items():
        ahead, behind = (loss(EVERY | {name: value + e}) for e in (1e-5, -1e-5))
        np.testing.assert_allclose(slopes[name], (ahead - behind) / 2e-5, rtol=1e-6)
    known = Burgers(SIZE, LENGTH, 0.02, **EVERY)
    final = jnp.sum(rollout(known, start, 5)[-1] ** 2)
    np.testing.assert_allclose(loss(EVERY), final, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_states_keep_their_dtype(dtype):
    world, start = Burgers(SIZE, LENGTH, uuux=0.5), smooth(5).astype(dtype)
    later = eqx.filter_jit(lambda u: jax.vmap(world)(u))(start[None])[0]
    assert later.dtype == dtype
    tolerance = 10 * float(jnp.finfo(dtype).eps) * float(abs(start).max())
    np.testing.assert_allclose(
        later.astype(float), world(start.astype(float)), atol=tolerance
    )


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="`size` must be at least 8 and `length` pos"):
        Burgers(7)
    with pytest.raises(ValueError, match="got 256 and 0"):
        Burgers(length=0.0)
    with pytest.raises(ValueError, match="`dt` must be positive and finite, got -1"):
        Burgers(dt=-1.0)
    with pytest.raises(ValueError, match=r"must have the shape \(256,\), got \(64,\)"):
        Burgers()(jnp.ones(64))
