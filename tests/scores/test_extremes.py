import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import integrate

from skyens.scores import extreme_forecast_index, shift_of_tails

index = jax.jit(extreme_forecast_index, static_argnames=("above", "axis"))


def normal(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def by_quadrature(ensemble, quantiles, used=None, levels=None):
    """Return the definition over the angle, integrated panel by panel."""
    levels = np.linspace(0, 1, len(quantiles)) if levels is None else levels
    share = [(ensemble <= q).mean() for q in quantiles]
    total = 0.0
    for k in range(len(levels) - 1):
        if used is None or used[k + 1]:
            ends = levels[k : k + 2]
            angles = np.arcsin(np.sqrt(ends))
            inner = lambda t: np.sin(t) ** 2 - np.interp(np.sin(t) ** 2, levels, share)
            total += integrate.quad(inner, *angles)[0] * 4 / np.pi
    return total


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_it_is_the_integral_over_the_climate(seed):
    ensemble, quantiles = normal(seed, (5, 2)), normal(seed + 1, (11, 2)).sort(axis=0)
    found = index(ensemble, quantiles)
    for point in range(2):
        expected = by_quadrature(
            np.asarray(ensemble)[:, point], np.asarray(quantiles)[:, point]
        )
        np.testing.assert_allclose(found[point], expected, atol=1e-10)


def test_the_singular_form_has_the_same_value():
    ensemble, levels = np.array([0.1, 0.35, 0.8]), np.linspace(0, 1, 5)
    share = [(ensemble <= q).mean() for q in levels]
    inner = lambda p: (p - np.interp(p, levels, share)) / np.sqrt(p * (1 - p))
    panels = [integrate.quad(inner, *levels[k : k + 2])[0] for k in range(4)]
    found = extreme_forecast_index(jnp.asarray(ensemble), jnp.asarray(levels))
    np.testing.assert_allclose(found, 2 / np.pi * np.sum(panels), rtol=1e-7)


def test_ends_are_one_and_the_climate_itself_is_near_zero():
    quantiles = jnp.linspace(0, 1, 101)
    for value, expected in [(2.0, 1.0), (-1.0, -1.0)]:
        found = extreme_forecast_index(jnp.full(4, value), quantiles)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    climate = jnp.asarray((np.arange(1000) + 0.5) / 1000)
    found = extreme_forecast_index(climate, quantiles)
    np.testing.assert_allclose(found, 0, atol=1e-3)


def test_levels_need_not_be_equally_spaced():
    levels = np.array([0, 0.01, 0.1, 0.5, 0.9, 0.99, 1])
    ensemble = normal(0, (3,)) * 0.2 + 0.5
    quantiles = np.array([-1.0, 0.0, 0.3, 0.5, 0.7, 2.0, 3.0])
    found = extreme_forecast_index(ensemble, jnp.asarray(quantiles), levels=levels)
    expected = by_quadrature(np.asarray(ensemble), quantiles, levels=levels)
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_a_dry_climate_counts_from_its_first_wet_quantile():
    quantiles = jnp.maximum(jnp.linspace(-1, 1, 11), 0)
    dry, wet = jnp.zeros(4), jnp.array([0.0, 0.3, 0.7, 2.0])
    assert extreme_forecast_index(dry, quantiles) < -0.4
    used = np.asarray(quantiles) > 0
    most = by_quadrature(np.full(1, 9.0), np.asarray(quantiles), used)
    for ensemble in (dry, wet):
        found = extreme_forecast_index(ensemble, quantiles, above=0.0)
        expected = by_quadrature(np.asarray(ensemble), np.asarray(quantiles), used)
        np.testing.assert_allclose(found, expected / most, atol=1e-10)
    assert extreme_forecast_index(wet, 0 * quantiles, above=0.0) == 0


def test_masks_axes_dtypes_and_nan():
    ensemble, quantiles = normal(1, (4, 2, 3)), normal(2, (5, 3)).sort(axis=0)
    where = jnp.asarray(np.random.default_rng(3).random(ensemble.shape) < 0.5)
    where = where.at[0].set(True).at[:, 0, 0].set(False)
    spoilt = jnp.where(where, ensemble, jnp.nan)
    found = extreme_forecast_index(spoilt, quantiles, where=where)
    assert found[0, 0] == 0
    for point in [(0, 1), (1, 2)]:
        here = np.asarray(where)[(slice(None), *point)]
        kept = ensemble[(slice(None), *point)][here]
        one = extreme_forecast_index(kept, quantiles[:, point[1]])
        np.testing.assert_allclose(found[point], one, atol=1e-14)
    last = extreme_forecast_index(jnp.moveaxis(spoilt, 0, 1), quantiles, axis=1)
    assert jnp.isnan(last)[0, 0]
    narrow = (x.astype(jnp.float32) for x in (ensemble, quantiles))
    single = extreme_forecast_index(*narrow)
    assert single.dtype == jnp.float32
    total = lambda x: extreme_forecast_index(x, quantiles).sum()
    assert not jax.grad(total)(ensemble).any()


def test_the_shift_is_that_of_numpys_percentiles():
    ensemble = normal(4, (11, 6))
    for level, sign in [(0.9, 1.0), (0.1, -1.0)]:
        quantile, tail = jnp.full(6, sign * 1.0), jnp.full(6, sign * 1.8)
        found = shift_of_tails(ensemble, quantile, tail, level=level)
        q = np.quantile(np.asarray(ensemble), level, axis=0)
        expected = (q - sign * 1.8) / (sign * 0.8)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_masked_members_and_limits_of_the_shift():
    ensemble, quantile, tail = normal(5, (6, 4)), jnp.zeros(4), jnp.ones(4)
    where = jnp.asarray(np.random.default_rng(6).random((6, 4)) < 0.6)
    where = where.at[0].set(True).at[:, 3].set(False)
    spoilt = jnp.where(where, ensemble, jnp.nan)
    score = lambda x: shift_of_tails(x, quantile, tail, where=where)
    found, slope = score(spoilt), jax.grad(lambda x: score(x).sum())(spoilt)
    for point in range(3):
        kept = np.asarray(ensemble)[np.asarray(where)[:, point], point]
        np.testing.assert_allclose(found[point], np.quantile(kept, 0.9) - 1, rtol=1e-12)
    assert found[3] == 0
    chex.assert_tree_all_finite(slope)
    # One quantile of members moves one for one with them all.
    np.testing.assert_allclose(slope.sum(0), [1, 1, 1, 0], atol=1e-14)
    assert (shift_of_tails(100 + ensemble, quantile, tail) == 10).all()
    assert (shift_of_tails(100 + ensemble, quantile, quantile) == 0).all()
    assert jnp.isnan(shift_of_tails(spoilt, quantile, tail)[3])


def test_wrong_use_is_reported():
    ensemble, quantiles = jnp.zeros((3, 4)), jnp.zeros((5, 4))
    with pytest.raises(ValueError, match="`levels` must ascend from 0 to 1"):
        extreme_forecast_index(ensemble, quantiles, levels=(0.0, 0.5, 0.4, 0.9, 1.0))
    with pytest.raises(ValueError, match="`levels` must be 5"):
        extreme_forecast_index(ensemble, quantiles, levels=(0.0, 0.5, 1.0))
    with pytest.raises(ValueError, match="at least 2 levels, got 1"):
        extreme_forecast_index(ensemble, quantiles[:1])
    with pytest.raises(ValueError, match="no members"):
        extreme_forecast_index(ensemble[:0], quantiles)
    with pytest.raises(ValueError, match=r"`level` must lie in \(0, 1\), got 1.0"):
        shift_of_tails(ensemble, quantiles[0], quantiles[1], level=1.0)
    with pytest.raises(ValueError, match=r"do not broadcast to the points, \(4,\)"):
        shift_of_tails(ensemble, quantiles[0], jnp.zeros(3))
