import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens.diffusion import EDM, Schedule


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
