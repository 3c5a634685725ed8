import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.integrate import solve_ivp

from skyens.diffusion import (
    EDM,
    CosineVariancePreserving,
    RectifiedFlow,
    Schedule,
    VarianceExploding,
    VariancePreserving,
    dispersion,
    drift,
    level,
)

TIMES = jnp.array([0.02, 0.3, 0.7, 0.98])
rates_of = jax.jit(
    lambda schedule, time: (drift(schedule, time), dispersion(schedule, time))
)


class EDMTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_levels_follow_the_published_formula(self):
        levels = self.variant(lambda schedule: schedule.sigmas(18))(EDM())
        i = np.arange(18)
        low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
        expected = np.append((high + i / 17 * (low - high)) ** 7, 0)
        chex.assert_trees_all_close(levels, expected, rtol=1e-12)


@settings(deadline=None, max_examples=8)
@given(
    steps=st.sampled_from([1, 2, 18, 300]),
    low=st.floats(1e-4, 0.1),
    high=st.floats(0.5, 1e4),
    rho=st.floats(1, 12),
)
def test_levels_decrease_from_one_end_to_the_other_and_to_zero(steps, low, high, rho):
    schedule = EDM(low, high, rho)
    levels = np.asarray(schedule.sigmas(steps))
    assert levels.shape == (steps + 1,)
    assert (np.diff(levels) < 0).all()
    np.testing.assert_allclose(levels[0], high, rtol=1e-12)
    assert levels[-1] == 0
    if steps > 1:
        np.testing.assert_allclose(levels[-2], low, rtol=1e-12)


def test_time_runs_from_clean_to_noise_and_the_signal_stays():
    schedule, time = EDM(0.01, 10.0), jnp.linspace(0, 1, 5)
    assert isinstance(schedule, Schedule)
    chex.assert_trees_all_equal(schedule.alpha(time), jnp.ones(5))
    sigma = schedule.sigma(time)
    chex.assert_trees_all_close(sigma[jnp.array([0, -1])], jnp.array([0.01, 10.0]))
    assert schedule.sigma(time.astype(jnp.float32)).dtype == jnp.float32


def test_levels_are_differentiable_in_the_settings():
    slopes = jax.grad(lambda *ends: EDM(*ends).sigmas(2)[0], argnums=(0, 1, 2))
    low, high, rho = slopes(*map(jnp.asarray, (0.002, 80.0, 7.0)))
    chex.assert_trees_all_close(
        jnp.stack([low, high, rho]), jnp.array([0.0, 1.0, 0.0]), atol=1e-9
    )
    middle = jax.grad(lambda rho: EDM(1.0, 16.0, rho).sigmas(3)[1])(jnp.asarray(2.0))
    # ((1 + 16^(1/r)) / 2)^r at r = 2: 2.5^2 (ln 2.5 - (4 / 5) (ln 16) / 2)
    expected = 6.25 * (np.log(2.5) - 0.4 * np.log(16))
    chex.assert_trees_all_close(middle, expected, rtol=1e-10)


@pytest.mark.parametrize("steps", [0, -3])
def test_too_few_steps_are_reported(steps):
    with pytest.raises(ValueError, match=f"`steps` must be at least 1, got {steps}"):
        EDM().sigmas(steps)


@pytest.mark.parametrize(
    "ends", [(80.0, 0.002), (0.0, 1.0), (-1.0, 1.0), (1.0, 1.0), (0.1, jnp.inf)]
)
def test_levels_that_do_not_decrease_are_reported(ends):
    with pytest.raises(eqx.EquinoxRuntimeError, match="0 < `sigma_min` < `sigma_max`"):
        EDM(*ends)
    with pytest.raises(eqx.EquinoxRuntimeError, match="0 < `sigma_min` < `sigma_max`"):
        eqx.filter_jit(EDM)(*map(jnp.asarray, ends))


@pytest.mark.parametrize("rho", [0.0, -7.0, jnp.nan])
def test_a_bad_exponent_is_reported(rho):
    with pytest.raises(eqx.EquinoxRuntimeError, match="`rho` must be positive"):
        EDM(rho=rho)


def test_a_schedule_compiles_once_for_all_its_values():
    traces = []

    @jax.jit
    def first(schedule):
        traces.append(None)
        return schedule.sigmas(4)[0]

    levels = jnp.stack([first(EDM(sigma_max=high)) for high in (10.0, 20.0)])
    chex.assert_trees_all_close(levels, jnp.array([10.0, 20.0]))
    assert len(traces) == 1


def test_exploding_levels_are_equidistant_in_their_logarithm():
    schedule, steps = VarianceExploding(0.02, 50.0), 6
    assert isinstance(schedule, Schedule)
    levels = schedule.sigmas(steps)
    chex.assert_trees_all_close(levels[:-1], jnp.geomspace(50, 0.02, steps), rtol=1e-12)
    assert levels[-1] == 0
    chex.assert_trees_all_close(VarianceExploding().sigmas(1), jnp.array([80.0, 0.0]))
    with pytest.raises(eqx.EquinoxRuntimeError, match="0 < `sigma_min` < `sigma_max`"):
        VarianceExploding(80.0, 0.01)


@pytest.mark.parametrize("schedule", [EDM(0.01, 90.0), VarianceExploding(0.01, 90.0)])
def test_the_time_of_a_level_is_found_again(schedule):
    time = jnp.linspace(0, 1, 9)
    chex.assert_trees_all_close(
        schedule.time_of(level(schedule, time)), time, atol=1e-13
    )
    near = schedule.time_of(jnp.array(0.01, jnp.float32))
    assert near.dtype == jnp.float32
    chex.assert_trees_all_close(near, jnp.zeros((), jnp.float32), atol=1e-6)


# The process `dx = f x dt + g dW` of each schedule, as its paper gives it.
FORMULAS = {
    "exploding": (
        VarianceExploding(0.01, 50.0),
        lambda t: 0 * t,
        lambda t: 0.01 * 5000**t * np.sqrt(2 * np.log(5000)),
    ),
    "preserving": (
        VariancePreserving(0.1, 20.0),
        lambda t: -(0.1 + 19.9 * t) / 2,
        lambda t: np.sqrt(0.1 + 19.9 * t),
    ),
    "cosine": (
        CosineVariancePreserving(0.008),
        lambda t: -np.pi / 2.016 * np.tan((t + 0.008) / 1.008 * np.pi / 2),
        lambda t: np.sqrt(2 * np.pi / 2.016 * np.tan((t + 0.008) / 1.008 * np.pi / 2)),
    ),
    "rectified": (
        RectifiedFlow(),
        lambda t: -1 / (1 - t),
        lambda t: np.sqrt(2 * t / (1 - t)),
    ),
    "elucidated": (
        EDM(0.01, 90.0, rho=3.0),
        lambda t: 0 * t,
        lambda t: np.sqrt(
            6 * (90 ** (1 / 3) - 0.01 ** (1 / 3)) * edm_root(t) ** 5  # 2 sigma sigma'
        ),
    ),
}


def edm_root(t):
    return t * 90 ** (1 / 3) + (1 - t) * 0.01 ** (1 / 3)


@pytest.mark.parametrize("name", FORMULAS)
def test_drift_and_dispersion_are_the_published_ones(name):
    schedule, falls, stirs = FORMULAS[name]
    time = np.asarray(TIMES)
    chex.assert_trees_all_close(
        rates_of(schedule, TIMES), (falls(time), stirs(time)), rtol=1e-10
    )
    start = rates_of(schedule, 0 * TIMES)[1]
    chex.assert_trees_all_close(start, stirs(0 * time), rtol=1e-6, atol=1e-6)
    fall, stir = rates_of(schedule, TIMES.astype(jnp.float32))
    assert fall.dtype == stir.dtype == jnp.float32
    chex.assert_trees_all_close(stir, stirs(time).astype(np.float32), rtol=1e-3)


@pytest.mark.parametrize("name", FORMULAS)
def test_the_process_has_the_law_of_the_schedule(name):
    """Its variance grows by `dv = (2 f v + g^2) dt`, as a solver of SciPy finds."""
    schedule = FORMULAS[name][0]

    def rate(t, v):
        fall, stir = map(float, rates_of(schedule, jnp.asarray(t)))
        return 2 * fall * v + stir**2

    first, last = 0.1, 0.9
    at = lambda t: float(schedule.sigma(jnp.asarray(t))) ** 2
    found = solve_ivp(rate, (first, last), [at(first)], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.y[0, -1], at(last), rtol=1e-6)


def test_gradients_in_the_settings_pass_through_the_rates():
    rate = lambda high: dispersion(EDM(sigma_max=high), TIMES).sum()
    slope = jax.jit(jax.grad(rate))(50.0)
    at = jax.jit(rate)
    change = (at(50 + 1e-4) - at(50 - 1e-4)) / 2e-4
    chex.assert_trees_all_close(slope, change, rtol=1e-6)
