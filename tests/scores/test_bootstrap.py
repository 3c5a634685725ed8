import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.stats

from skyens import scores
from skyens.scores import (
    RMSE,
    Bootstrap,
    SpreadSkill,
    bias_corrected_interval,
    bootstrap,
    optimal_block_length,
    paired_bootstrap,
    percentile_interval,
    stationary_bootstrap_indices,
)

TIMES = 60
resample = jax.jit(bootstrap, static_argnames=("statistic", "samples", "axis", "width"))
compare = jax.jit(
    paired_bootstrap, static_argnames=("statistic", "samples", "width", "contrast")
)


def normal(seed, shape, dtype=float):
    """Draw by NumPy, which has nothing to compile."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def ar1(seed, persistence, shape):
    """Draw time series of variance 1, time leading."""
    noise = np.random.default_rng(seed).normal(size=shape)
    series = noise.copy()
    for t in range(1, shape[0]):
        kick = np.sqrt(1 - persistence**2) * noise[t]
        series[t] = persistence * series[t - 1] + kick
    return jnp.asarray(series)


def state_of(errors, stat=None):
    """Return the state of a forecast with these errors, `(time, *field)`."""
    stat = RMSE() if stat is None else stat
    truth = jnp.zeros_like(errors)
    return stat.update(stat.init(errors.shape[:1]), errors[None], truth)


@pytest.mark.parametrize("block", [1.0, 4.0, 1e9])
def test_stretches_have_geometric_lengths_and_uniform_starts(block):
    indices = np.asarray(stationary_bootstrap_indices(jr.key(0), TIMES, block, 2_000))
    assert indices.min() == 0
    assert indices.max() == TIMES - 1
    follows = (indices[:, 1:] - indices[:, :-1]) % TIMES == 1
    # A stretch goes on, or the next starts, by chance, where it would have gone on.
    chance = 1 - 1 / block + 1 / block / TIMES
    error = np.sqrt(chance * (1 - chance) / follows.size)
    np.testing.assert_allclose(follows.mean(), chance, atol=5 * error + 1e-12)
    for time in (0, 1, TIMES - 1):
        count = np.bincount(indices[:, time], minlength=TIMES)
        assert scipy.stats.chisquare(count).pvalue > 1e-4
    few = stationary_bootstrap_indices(jr.key(0), TIMES, block, 7)
    chex.assert_trees_all_equal(few, indices[:7])


def test_samples_are_the_statistic_of_the_resampled_times():
    errors = normal(0, (TIMES, 3))
    found = resample(RMSE(), state_of(errors), key=jr.key(1), samples=8, block_length=5)
    indices = np.asarray(stationary_bootstrap_indices(jr.key(1), TIMES, 5, 8))
    expected = np.sqrt((np.asarray(errors)[indices] ** 2).mean((1, 2)))
    chex.assert_trees_all_close(found.samples, expected, rtol=1e-12)
    whole = np.sqrt((np.asarray(errors) ** 2).mean())
    chex.assert_trees_all_close(found.value, whole, rtol=1e-12)


def test_time_may_be_any_kept_axis_and_values_any_tree():
    stat = SpreadSkill()
    ensemble, truth = normal(2, (4, 2, TIMES, 3)), normal(3, (2, TIMES, 3))
    state = stat.update(stat.init((2, TIMES)), ensemble, truth)
    settings = {"key": jr.key(4), "samples": 5, "block_length": 3.0}
    found = resample(stat, state, axis=1, width=2, **settings)
    assert found.samples.ratio.shape == (5, 2)
    for region in range(2):
        one = jax.tree.map(lambda x, i=region: x[i], state)
        alone = resample(stat, one, width=4, **settings)
        here = jax.tree.map(lambda x, i=region: x[..., i], found)
        chex.assert_trees_all_close(here, alone, rtol=1e-12)


def test_intervals_cover_as_often_as_they_say_and_blocks_are_why():
    """The mean of persistent series; 95 percent, some of it lost to finite length."""
    trials, length = 100, 200
    series = ar1(5, 0.7, (length, trials)).T
    stat = scores.Bias()

    def covers(series, key, block):
        state = stat.update(
            stat.init((length,)), series[None, :, None], jnp.zeros((length, 1))
        )
        found = bootstrap(stat, state, key=key, samples=199, block_length=block)
        lower, upper = percentile_interval(found)
        return (lower <= 0) & (upper >= 0)

    keys = jr.split(jr.key(6), trials)
    run = jax.jit(jax.vmap(covers, in_axes=(0, 0, None)))
    blocks, single = (run(series, keys, block).mean() for block in (12.0, 1.0))
    assert 0.8 < blocks <= 1
    assert single < 0.75  # the true spread is 2.4 times what single times make of it


def test_a_difference_that_is_common_is_found_by_pairing_alone():
    hard = 3 * normal(7, (TIMES, 4)) ** 2  # days differ more than systems do
    first, second = (jnp.sqrt(hard + x) for x in (0.3, 0.0))
    settings = {"key": jr.key(8), "samples": 199, "block_length": 2.0}
    states = state_of(first), state_of(second)
    found = compare(RMSE(), *states, **settings)
    lower, upper = percentile_interval(found.difference)
    assert 0 < lower < found.difference.value < upper
    chex.assert_trees_all_close(found.p_value, 1 / 200, rtol=1e-12)
    alone = [percentile_interval(resample(RMSE(), x, **settings)) for x in states]
    assert alone[0].lower < alone[1].upper
    # The same times for both: differences of samples are samples of differences.
    one, two = (resample(RMSE(), x, **settings).samples for x in states)
    chex.assert_trees_all_close(found.difference.samples, one - two, rtol=1e-12)
    skill = lambda a, b: 1 - a / b
    scored = compare(RMSE(), *states, contrast=skill, **settings)
    chex.assert_trees_all_close(scored.difference.samples, 1 - one / two, rtol=1e-12)


def test_p_values_are_uniform_where_there_is_no_difference():
    trials = 200

    def p_value(first, second, key):
        states = state_of(first), state_of(second)
        found = paired_bootstrap(RMSE(), *states, key=key, samples=99, block_length=1.0)
        return found.p_value

    keys = jr.split(jr.key(9), trials)
    draws = normal(10, (2, trials, TIMES, 2))
    found = np.asarray(jax.jit(jax.vmap(p_value))(*draws, keys))
    for level in (0.1, 0.5):
        error = np.sqrt(level * (1 - level) / trials)
        np.testing.assert_allclose((found <= level).mean(), level, atol=4 * error)
    same = compare(
        RMSE(),
        state_of(draws[0, 0]),
        state_of(draws[0, 0]),
        key=keys[0],
        samples=9,
        block_length=1.0,
    )
    assert same.p_value == 1


def test_intervals_are_quantiles_and_scipys_without_acceleration():
    data = np.asarray(normal(11, (40,))) ** 2
    rng = np.random.default_rng(12)
    draws = data[rng.integers(0, 40, (3_999, 40))].std(1)
    found = Bootstrap(jnp.asarray(data.std()), jnp.asarray(draws))
    plain = percentile_interval(found, 0.9)
    chex.assert_trees_all_close(tuple(plain), tuple(np.quantile(draws, [0.05, 0.95])))
    lower, upper = bias_corrected_interval(found, 0.9)
    bias = scipy.stats.norm.ppf((draws < data.std()).mean())
    ends = scipy.stats.norm.cdf(2 * bias + scipy.stats.norm.ppf([0.05, 0.95]))
    chex.assert_trees_all_close((lower, upper), tuple(np.quantile(draws, ends)))
    assert lower > plain.lower  # the standard deviation is biased low
    one_sided = Bootstrap(jnp.asarray(9.0), jnp.arange(5.0))
    chex.assert_tree_all_finite(tuple(bias_corrected_interval(one_sided)))


@pytest.mark.parametrize("persistence", [0.3, 0.7, 0.9])
def test_the_block_length_is_that_of_theory(persistence):
    """Of an autoregression it is (2 p / (1 - p^2))^(2/3) n^(1/3)."""
    length = 2_000
    series = ar1(13, persistence, (length, 60)).T
    found = jax.jit(jax.vmap(optimal_block_length))(series)
    theory = (2 * persistence / (1 - persistence**2)) ** (2 / 3) * length ** (1 / 3)
    np.testing.assert_allclose(np.median(found), theory, rtol=0.2)


def dense_block_length(series):
    """Politis & White's rule, step by step."""
    n = len(series)
    d = series - series.mean()
    r = lambda k: (d[: n - k] * d[k:]).sum() / n
    run = max(5, int(np.ceil(np.sqrt(np.log10(n)))))
    most = int(np.ceil(np.sqrt(n))) + run
    small = lambda k: abs(r(k) / r(0)) < 2 * np.sqrt(np.log10(n) / n)
    quiet = lambda m: all(small(m + k) for k in range(1, run + 1) if m + k <= most)
    end = next((m for m in range(most) if quiet(m)), most)
    reach = min(max(2 * end, 1), most)
    taper = lambda k: min(1.0, max(0.0, 2 * (1 - abs(k) / reach)))
    lags = range(-reach, reach + 1)
    g = sum(taper(k) * r(abs(k)) for k in lags)
    big = sum(taper(k) * abs(k) * r(abs(k)) for k in lags)
    length = (2 * big**2 / (2 * g**2)) ** (1 / 3) * n ** (1 / 3)
    return np.clip(length, 1, np.ceil(min(3 * np.sqrt(n), n / 3)))


def test_the_block_length_is_a_dense_one():
    series = ar1(14, 0.6, (150, 10)).T
    found = jax.jit(jax.vmap(optimal_block_length))(series)
    expected = np.array([dense_block_length(np.asarray(x)) for x in series])
    chex.assert_trees_all_close(found, expected, rtol=1e-10)
    block = jax.jit(optimal_block_length)
    assert block(jnp.ones(150)) == 1
    single = block(series[0].astype(jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, expected[0], rtol=1e-4)


def test_wrong_use_is_reported():
    state = state_of(normal(15, (TIMES, 2)))
    run = lambda **more: bootstrap(
        RMSE(), state, **{"key": jr.key(0), "block_length": 1.0, **more}
    )
    for wrong in ({"block_length": 0.5}, {"samples": 0}, {"width": 0}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be at least"):
            run(**wrong)
    for axis in (-1, 1):
        with pytest.raises(ValueError, match=f"kept axes, .* got {axis}"):
            run(axis=axis)
    mixed = {"a": jnp.zeros(3), "b": jnp.zeros(4)}
    with pytest.raises(ValueError, match=r"share the length of axis 0; got \[3, 4\]"):
        bootstrap(RMSE(), mixed, key=jr.key(0), block_length=1.0)
    with pytest.raises(ValueError, match="`first` and `second` differ"):
        paired_bootstrap(
            RMSE(), state, state_of(jnp.ones((9, 2))), key=jr.key(0), block_length=1.0
        )
    found = Bootstrap(jnp.zeros(()), jnp.zeros(3))
    for interval in (percentile_interval, bias_corrected_interval):
        with pytest.raises(ValueError, match="`level` must lie in"):
            interval(found, 1.0)
    with pytest.raises(ValueError, match="at least 8 times, got 7"):
        optimal_block_length(jnp.ones(7))


def test_intervals_are_made_inside_jit_and_nan_spoils_both():
    samples = jnp.asarray(np.random.default_rng(0).normal(size=(50, 2)))
    found = Bootstrap(jnp.zeros(2), samples.at[7, 1].set(jnp.nan))
    for interval in percentile_interval, bias_corrected_interval:
        made = jax.jit(interval)(found)
        for bound, plain in zip(made, interval(found), strict=True):
            np.testing.assert_allclose(bound, plain, rtol=1e-14)
            np.testing.assert_array_equal(np.isnan(bound), [False, True])
