import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings, strategies as st

from skyens.scores import benjamini_hochberg, benjamini_yekutieli, diebold_mariano

ADJUST = {"bh": jax.jit(benjamini_hochberg), "by": jax.jit(benjamini_yekutieli)}


def normal(seed, shape, dtype=float):
    """Draw by NumPy, which has nothing to compile."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**31),
    method=st.sampled_from(list(ADJUST)),
    power=st.floats(0, 6),
)
def test_adjusted_values_are_scipys(seed, method, power):
    draws = np.random.default_rng(seed).uniform(size=(4, 5)) ** power
    draws[0, 1] = draws[2, 3]  # a tie
    found = ADJUST[method](jnp.asarray(draws))
    expected = scipy.stats.false_discovery_control(draws.ravel(), method=method)
    chex.assert_trees_all_close(found, expected.reshape(4, 5), rtol=1e-13)


def test_what_was_not_tested_might_as_well_not_be_there():
    draws = np.random.default_rng(0).uniform(size=(4, 5))
    where = np.random.default_rng(1).uniform(size=(4, 5)) > 0.4
    holes = jnp.where(where, draws, jnp.nan)
    for method, adjust in ADJUST.items():
        found = np.asarray(adjust(holes, where=jnp.asarray(where)))
        expected = scipy.stats.false_discovery_control(draws[where], method=method)
        np.testing.assert_allclose(found[where], expected, rtol=1e-13)
        assert (found[~where] == 1).all()
    assert (benjamini_hochberg(jnp.array([0.5]), where=jnp.array([False])) == 1).all()


def test_false_discoveries_are_no_more_than_allowed():
    """A tenth of the tests have something to find."""
    rng = np.random.default_rng(2)
    truth = np.arange(200) < 20
    signal = 3 * truth + rng.normal(size=(400, 200))
    p_values = 2 * scipy.stats.norm.sf(abs(signal))
    found = np.asarray(jax.vmap(benjamini_hochberg)(jnp.asarray(p_values))) <= 0.2
    shares = (found & ~truth).sum(1) / np.maximum(found.sum(1), 1)
    error = shares.std() / np.sqrt(400)
    # With 180 of 200 empty tests the rate is exactly 0.9 q.
    np.testing.assert_allclose(shares.mean(), 0.9 * 0.2, atol=4 * error)


def dense_statistic(series, horizon, bandwidth=None):
    """One series, lag by lag, as Harvey et al. print it."""
    n, d = len(series), series - series.mean()
    lags = horizon - 1 if bandwidth is None else bandwidth
    total = 0.0
    for lag in range(-lags, lags + 1):
        gamma = sum(d[t] * d[t - abs(lag)] for t in range(abs(lag), n)) / n
        total += gamma * (1 if bandwidth is None else 1 - abs(lag) / (bandwidth + 1))
    h = horizon
    correction = np.sqrt((n + 1 - 2 * h + h * (h - 1) / n) / n)
    return correction * series.mean() / np.sqrt(total / n)


@pytest.mark.parametrize(("horizon", "bandwidth"), [(1, None), (3, None), (2, 4)])
def test_the_statistic_is_a_dense_one_and_its_p_value_is_of_student(horizon, bandwidth):
    series = np.asarray(normal(3, (40, 6))) + 0.2
    test = jax.jit(lambda x: diebold_mariano(x, horizon=horizon, bandwidth=bandwidth))
    found = test(jnp.asarray(series))
    with np.errstate(invalid="ignore"):
        expected = [dense_statistic(x, horizon, bandwidth) for x in series.T]
    chex.assert_trees_all_close(found.statistic, np.array(expected), rtol=1e-11)
    p_value = 2 * scipy.stats.t.sf(np.abs(expected), 39)
    chex.assert_trees_all_close(found.p_value, p_value, rtol=1e-10)
    chex.assert_trees_all_close(found.mean, series.mean(0), rtol=1e-12)


def test_it_agrees_with_scores():
    import xarray as xr
    from scores.stats.statistical_tests import diebold_mariano as peer

    series = np.asarray(normal(4, (30, 3)))
    dims, steps = ("case", "time"), ("case", [2, 2, 2])
    array = xr.DataArray(series.T, dims=dims, coords={"h": steps})
    theirs = peer(array, "case", "h", method="HLN", statistic_distribution="t")
    ours = diebold_mariano(jnp.asarray(series), horizon=2)
    np.testing.assert_allclose(ours.statistic, theirs["dm_test_stat"], rtol=1e-11)


def test_no_variance_and_negative_variance_are_nan():
    alternate = jnp.where(jnp.arange(20) % 2 == 0, 1.0, -1.0) + 0.1
    for series, horizon in [(alternate, 2), (jnp.full(20, 0.1), 1)]:
        found = diebold_mariano(series, horizon=horizon)
        assert jnp.isnan(found.statistic)
        assert jnp.isnan(found.p_value)
    assert jnp.isfinite(diebold_mariano(alternate, horizon=2, bandwidth=3).p_value)


def test_float32_stays_and_gradients_are_finite():
    series = normal(5, (20, 2), jnp.float32)
    found = diebold_mariano(series)
    assert {x.dtype for x in found} == {jnp.dtype(jnp.float32)}
    assert benjamini_hochberg(found.p_value).dtype == jnp.float32
    for x in (series, jnp.zeros_like(series)):
        chex.assert_tree_all_finite(
            jax.grad(lambda x: diebold_mariano(x).mean.sum())(x)
        )
    slope = jax.grad(lambda x: diebold_mariano(x).statistic.sum())(series)
    chex.assert_tree_all_finite(slope)


def test_wrong_use_is_reported():
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"1 of 3 values .* at \(1,\)"):
        benjamini_hochberg(jnp.array([0.5, 1.5, 0.1]))
    assert jnp.isnan(ADJUST["bh"](jnp.array([0.5, 1.5, 0.1]))).all()
    with pytest.raises(ValueError, match=r"`where` of shape \(2,\)"):
        benjamini_hochberg(jnp.ones(3), where=jnp.ones(2, bool))
    for settings_, wrong in [
        ({"horizon": 0}, "at least 1"),
        ({"bandwidth": -1}, "at least 0"),
        ({"horizon": 9}, "too few"),
    ]:
        with pytest.raises(ValueError, match=wrong):
            diebold_mariano(jnp.ones(9), **settings_)
