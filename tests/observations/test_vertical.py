import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens import sphere
from skyens.observations import (
    Diagonal,
    Interpolate,
    LogPressure,
    Observation,
    Sounding,
)

LEVELS = np.asarray([1e4, 3e4, 5e4, 8.5e4, 1e5])
PRESSURE = np.asarray([2e4, 1e5, 4e4, 9.9e4, 1e4, 5e3, np.nan, 1.02e5])
INSIDE = np.asarray([True] * 5 + [False] * 3)


class LogPressureTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_it_is_linear_in_log_pressure_whichever_way_levels_run(self):
        columns = np.random.default_rng(0).normal(size=(5, 8))
        expected = [
            np.interp(np.log(p), np.log(LEVELS), column)
            for p, column in zip(PRESSURE, columns.T, strict=True)
        ]
        expected = np.where(INSIDE, expected, np.nan)
        see = self.variant(lambda operator, column: operator(column))
        down = see(LogPressure(LEVELS, PRESSURE), jnp.asarray(columns))
        np.testing.assert_allclose(down, expected, rtol=1e-12)
        up = see(LogPressure(LEVELS[::-1].copy(), PRESSURE), jnp.asarray(columns[::-1]))
        np.testing.assert_allclose(up, expected, rtol=1e-12)
        one = see(LogPressure(LEVELS, PRESSURE), jnp.asarray(columns[:, 0]))
        alone = np.interp(np.log(PRESSURE), np.log(LEVELS), columns[:, 0])
        np.testing.assert_allclose(one, np.where(INSIDE, alone, np.nan), rtol=1e-12)


@settings(deadline=None, max_examples=20)
@given(st.floats(1e4, 1e5))
def test_what_is_linear_in_log_pressure_is_seen_exactly(pressure):
    operator = LogPressure(LEVELS, np.asarray([pressure]))
    seen = operator(jnp.asarray(3 * np.log(LEVELS) - 1))
    np.testing.assert_allclose(seen, 3 * np.log(pressure) - 1, rtol=1e-12)


def test_nothing_is_extrapolated_and_what_is_masked_has_no_gradient():
    operator = LogPressure(LEVELS, PRESSURE)
    np.testing.assert_array_equal(operator.inside, INSIDE)
    observation = Observation(np.zeros(8), operator, Diagonal(1.0), operator.inside)
    column = jr.normal(jr.key(0), (5,))
    assert np.isfinite(observation.log_prob(column))
    gradient = jax.grad(observation.log_prob)(column)
    chex.assert_tree_all_finite(gradient)
    fewer = LogPressure(LEVELS, PRESSURE[INSIDE])
    expected = jax.grad(Observation(np.zeros(5), fewer, Diagonal(1.0)).log_prob)(column)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)
    assert observation.coordinates is not None
    np.testing.assert_array_equal(observation.coordinates["pressure"], PRESSURE)


def test_pressures_may_be_traced_and_differentiated():
    column = jnp.asarray(np.log(LEVELS))
    see = lambda pressure: LogPressure(LEVELS, pressure)(column).sum()
    pressure = jnp.asarray([2e4, 9e4])
    slope = jax.jit(jax.grad(see))(pressure)
    np.testing.assert_allclose(slope, 1 / pressure, rtol=1e-10)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtype_is_that_of_the_column(dtype):
    seen = LogPressure(LEVELS, PRESSURE)(jnp.ones(5, dtype))
    assert seen.dtype == dtype
    np.testing.assert_array_equal(seen[INSIDE], 1)


def test_a_sounding_is_horizontal_and_then_vertical():
    grid = sphere.equiangular(7, 12)
    generator = np.random.default_rng(1)
    latitude, longitude = generator.uniform(-90, 90, 8), generator.uniform(0, 360, 8)
    latitude[2] = np.nan
    sounding = Sounding(grid, LEVELS, latitude, longitude, PRESSURE)
    field = jr.normal(jr.key(1), (5, 7, 12))
    columns = Interpolate(grid, latitude, longitude)(field)
    expected = np.asarray(LogPressure(LEVELS, PRESSURE)(columns))
    seen = jax.jit(lambda sounding, field: sounding(field))(sounding, field)
    np.testing.assert_allclose(seen, expected, rtol=1e-12)
    known = INSIDE & np.isfinite(latitude)
    np.testing.assert_array_equal(np.isfinite(seen), known)
    np.testing.assert_array_equal(sounding.inside, known)
    observation = Observation(np.zeros(8), sounding, Diagonal(1.0), sounding.inside)
    assert observation.coordinates is not None
    assert set(observation.coordinates) == {"latitude", "longitude", "pressure"}
    chex.assert_tree_all_finite(jax.grad(observation.log_prob)(field))


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="at least 2 pressures, got 1"):
        LogPressure(LEVELS[:1], PRESSURE)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`levels` must be finite, above"):
        LogPressure(np.asarray([1e4, 5e4, 3e4]), PRESSURE)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`pressure` must be above 0: 1 "):
        LogPressure(LEVELS, np.asarray([0.0, 5e4]))
    with pytest.raises(ValueError, match=r"\(5,\) or \(5, 8\), got \(4, 8\)"):
        LogPressure(LEVELS, PRESSURE)(jnp.ones((4, 8)))
    place = np.asarray([95.0])
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"in \[-90, 90\]"):
        Sounding(sphere.equiangular(7, 12), LEVELS, place, place, PRESSURE[:1])
