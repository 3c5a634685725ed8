import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from skyens.diffusion import (
    EDM,
    Levels,
    LogNormalLevels,
    LogUniformLevels,
    Preconditioned,
    ScheduleLevels,
)
from skyens.diffusion._levels import draw_levels, spread_uniform

UNIFORM = np.linspace(0.001, 0.999, 21)


class QuantilesTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_they_are_those_of_scipy(self):
        laws = (LogNormalLevels(-0.5, 0.8), LogUniformLevels(0.1, 50.0))
        exact = (
            stats.lognorm(s=0.8, scale=np.exp(-0.5)),
            stats.loguniform(0.1, 50.0),
        )
        quantiles = self.variant(lambda law, uniform: law(uniform))
        for law, oracle in zip(laws, exact, strict=True):
            assert isinstance(law, Levels)
            levels = quantiles(law, jnp.asarray(UNIFORM))
            chex.assert_trees_all_close(levels, oracle.ppf(UNIFORM), rtol=1e-12)


def test_a_schedules_levels_are_as_frequent_as_its_steps():
    # In between, EDM's levels are quantiles at equidistant times.
    schedule = EDM(0.02, 88.0)
    levels = ScheduleLevels(schedule)(jnp.linspace(1, 0, 20))
    chex.assert_trees_all_close(levels, schedule.sigmas(20)[:-1], rtol=1e-12)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_a_batch_has_one_number_in_each_part(seed):
    uniform = spread_uniform(16, jnp.float64, key=jr.key(seed))
    np.testing.assert_array_equal(np.floor(16 * np.asarray(uniform)), np.arange(16))


def test_each_part_is_filled_uniformly():
    draw = jax.jit(jax.vmap(lambda key: spread_uniform(8, jnp.float64, key=key)))
    uniform = draw(jr.split(jr.key(0), 2000))
    assert stats.kstest(np.ravel(uniform), "uniform").pvalue > 1e-3
    inside = np.asarray(8 * uniform) % 1
    assert abs(np.corrcoef(inside.T) - np.eye(8)).max() < 5 / np.sqrt(2000)


def test_levels_stay_in_the_range_that_a_denoiser_names():
    network = lambda x, level, *, condition=None: x
    named = Preconditioned(network, sigma_min=0.2, sigma_max=0.6)
    unnamed = lambda x, sigma, *, condition=None: x
    law = LogNormalLevels()
    free = draw_levels(law, unnamed, 100, jnp.float64, key=jr.key(1))
    kept = draw_levels(law, named, 100, jnp.float64, key=jr.key(1))
    assert free.min() < 0.2
    assert free.max() > 0.6
    chex.assert_trees_all_equal(kept, jnp.clip(free, 0.2, 0.6))


def test_float32_levels_are_positive_and_finite_in_large_batches():
    for law in (LogNormalLevels(), LogUniformLevels(), ScheduleLevels(EDM())):
        unnamed = lambda x, sigma, *, condition=None: x
        levels = draw_levels(law, unnamed, 2**18, jnp.float32, key=jr.key(2))
        assert levels.dtype == jnp.float32
        assert jnp.isfinite(levels).all()
        assert (levels > 0).all()


def test_laws_are_differentiable_in_their_settings():
    total = lambda law: jnp.sum(law(jnp.asarray(UNIFORM)))
    slope = jax.grad(total)(LogNormalLevels(0.3, 0.5))
    normal = stats.norm.ppf(UNIFORM)
    levels = np.exp(0.3 + 0.5 * normal)
    chex.assert_trees_all_close(slope.mean, levels.sum(), rtol=1e-12)
    chex.assert_trees_all_close(slope.std, (normal * levels).sum(), rtol=1e-10)


def test_wrong_use_is_reported():
    error = eqx.EquinoxRuntimeError
    for mean, std in ((0.0, 0.0), (0.0, -1.0), (jnp.nan, 1.0), (0.0, jnp.inf)):
        with pytest.raises(error, match="`std` positive and finite"):
            LogNormalLevels(mean, std)
    for low, high in ((0.0, 1.0), (2.0, 1.0), (1.0, jnp.inf), (1.0, jnp.nan)):
        with pytest.raises(error, match="0 < `sigma_min` < `sigma_max` < inf"):
            LogUniformLevels(low, high)
