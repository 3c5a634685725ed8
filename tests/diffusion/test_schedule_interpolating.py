import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens.diffusion import (
    CosineVariancePreserving,
    RectifiedFlow,
    Schedule,
    VariancePreserving,
    level,
)

SCHEDULES = [VariancePreserving(), CosineVariancePreserving(), RectifiedFlow()]
every_schedule = pytest.mark.parametrize(
    "schedule", SCHEDULES, ids=[type(schedule).__name__ for schedule in SCHEDULES]
)
TIME = np.linspace(0.01, 0.98, 7)


def test_the_linear_schedule_is_that_of_ddpm_in_the_limit_of_many_steps():
    # Ho, Jain & Abbeel (2020): 1,000 steps, rates from 1e-4 to 0.02
    rates = np.linspace(1e-4, 0.02, 1000)
    signal = np.sqrt(np.cumprod(1 - rates))[99::100]
    time = jnp.linspace(0.1, 1, 10)
    schedule = VariancePreserving()
    chex.assert_trees_all_close(schedule.alpha(time), signal, rtol=0.07)
    # Twice the steps of half the rates come twice as near.
    finer = np.sqrt(np.cumprod(1 - np.linspace(5e-5, 0.01, 2000)))[199::200]
    far, near = (
        np.abs(np.log(s / schedule.alpha(time))).max() for s in (signal, finer)
    )
    np.testing.assert_allclose(near / far, 0.5, rtol=0.05)


def test_the_cosine_schedule_is_the_published_one():
    angle = lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    signal = CosineVariancePreserving().alpha(jnp.asarray(TIME))
    chex.assert_trees_all_close(signal**2, angle(TIME) / angle(0.0), rtol=1e-12)


def test_all_are_schedules():
    assert all(isinstance(schedule, Schedule) for schedule in SCHEDULES)


def test_a_rectified_flow_is_a_straight_line():
    time = jnp.asarray(TIME)
    chex.assert_trees_all_close(RectifiedFlow().alpha(time), 1 - time)
    chex.assert_trees_all_close(RectifiedFlow().sigma(time), time)


@pytest.mark.parametrize("schedule", SCHEDULES[:2])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_variance_is_preserved(schedule, dtype):
    time = jnp.append(jnp.logspace(-6, 0, 13), 0.0).astype(dtype)
    alpha, sigma = schedule.alpha(time), schedule.sigma(time)
    assert alpha.dtype == sigma.dtype == dtype
    rounding = 8 * float(jnp.finfo(dtype).eps)
    chex.assert_trees_all_close(alpha**2 + sigma**2, jnp.ones_like(time), rtol=rounding)


@pytest.mark.parametrize("schedule", SCHEDULES[:2])
def test_small_noise_keeps_its_digits_in_single_precision(schedule):
    time = jnp.logspace(-6, -1, 6)
    single = schedule.sigma(time.astype(jnp.float32)).astype(float)
    chex.assert_trees_all_close(single, schedule.sigma(time), rtol=1e-5)


@every_schedule
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_time_of_a_level_is_found_again(schedule, dtype):
    time = jnp.asarray(np.append(TIME, 1e-5), dtype)
    again = schedule.time_of(level(schedule, time))
    assert again.dtype == dtype
    chex.assert_trees_all_close(again, time, rtol=100 * float(jnp.finfo(dtype).eps))
    chex.assert_trees_all_equal(
        schedule.time_of(jnp.zeros(1, dtype)), jnp.zeros(1, dtype)
    )


@every_schedule
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_levels_are_those_at_equidistant_times_and_decrease(schedule, steps):
    levels = np.asarray(schedule.sigmas(steps))
    assert levels.shape == (steps + 1,)
    assert (np.diff(levels) < 0).all()
    assert np.isfinite(levels).all()
    time = np.linspace(schedule.time_max, schedule.time_min, steps)
    ratio = schedule.sigma(jnp.asarray(time)) / schedule.alpha(jnp.asarray(time))
    chex.assert_trees_all_close(levels, np.append(ratio, 0), rtol=1e-12)
    with pytest.raises(ValueError, match="`steps` must be at least 1, got 0"):
        schedule.sigmas(0)


@every_schedule
def test_gradients_are_finite_in_all_settings(schedule):
    slopes = jax.grad(lambda s: jnp.log(s.sigmas(5)[:-1]).sum())(schedule)
    chex.assert_tree_all_finite(slopes)
    slopes = jax.grad(lambda s: s.time_of(jnp.array([0.0, 3.0])).sum())(schedule)
    chex.assert_tree_all_finite(slopes)


def test_wrong_settings_are_reported():
    for ends in ((20.0, 0.1), (0.0, 1.0), (0.1, jnp.inf)):
        with pytest.raises(
            eqx.EquinoxRuntimeError, match="0 < `beta_min` < `beta_max`"
        ):
            VariancePreserving(*ends)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`time_max` <= 1"):
        VariancePreserving(time_max=1.1)
    for kind in (CosineVariancePreserving, RectifiedFlow):
        for ends in ((0.0, 0.5), (0.5, 0.1), (0.1, 1.0)):
            with pytest.raises(eqx.EquinoxRuntimeError, match="`time_max` < 1, where"):
                kind(time_min=ends[0], time_max=ends[1])
    with pytest.raises(eqx.EquinoxRuntimeError, match="`offset` must be positive"):
        CosineVariancePreserving(offset=0.0)
