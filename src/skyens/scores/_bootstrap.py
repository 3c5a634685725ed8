"""How certain is a verification? Resampling of its states, block by block of time.

A statistic that keeps time as an axis holds one state a block of time. Resampled states
are merged, and the root or ratio is taken of the merged one: never an average of
ratios. Time series of weather remember, so whole stretches are drawn, not single times.
"""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random as jr
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float, Int, Key, PyTree, Real

from skyens.scores._statistic import Statistic
from skyens.scores._sums import ratio


class Bootstrap(NamedTuple):
    """A value and the values of its resamples, in trees of one structure."""

    value: PyTree  # of all times
    samples: PyTree  # leaves lead with samples


class Comparison(NamedTuple):
    """What `paired_bootstrap` gives: a difference and how certain it is."""

    difference: Bootstrap
    p_value: PyTree  # two-sided, that there is no difference


class Interval(NamedTuple):
    """A confidence interval, in trees of the structure of the value."""

    lower: PyTree
    upper: PyTree


def stationary_bootstrap_indices(
    key: Key[Array, ""],
    length: int,
    block_length: float | int | Real[Array, ""],
    samples: int,
) -> Int[Array, "sample time"]:
    """Return the times that each resample draws.

    Stretches of consecutive times, the first following the last, start anywhere and
    have geometric lengths of mean `block_length`: the resampled series is stationary,
    and of `block_length=1` independent. Sample `i` depends on `key` and `i` alone.

    Raises:
        ValueError: `length` or `samples` is below 1, or `block_length` a number below
            1. A traced one below 1 counts as 1.

    Source: Politis & Romano (1994), J. Amer. Stat. Assoc. 89, 1303-1313.
    """
    _check(length, samples, block_length)
    keys = jax.vmap(lambda index: jr.fold_in(key, index))(jnp.arange(samples))
    return jax.vmap(lambda key: _draw(key, length, block_length))(keys)


def bootstrap(
    statistic: Statistic,
    state: PyTree,
    *,
    key: Key[Array, ""],
    block_length: float | int | Real[Array, ""],
    axis: int = 0,
    samples: int = 1000,
    width: int = 32,
) -> Bootstrap:
    """Return a statistic and its values over resampled times.

    Args:
        statistic: any that can `merge` and `finalize`.
        state: its state, with times (days, starts, blocks of them) as kept axis.
        key: of the draws; the same `key` draws the same times of any state.
        block_length: the mean length of the stretches drawn, in times; see
            `optimal_block_length`.
        axis: the axis of time among those that the state keeps, from 0.
        samples: how many resamples.
        width: how many of them are merged side by side: memory is that of so many
            merged states.

    Raises:
        ValueError: the leaves of `state` have no such axis, or not all one length, or
            a number is below 1.
    """
    length = _length(state, axis)
    _check(length, samples, block_length, width)

    def one(key):
        merged = _merge(statistic, state, axis, _draw(key, length, block_length))
        return statistic.finalize(merged)

    everything = _merge(statistic, state, axis, jnp.arange(length))
    resampled = _resample(one, key, samples, width)
    return Bootstrap(statistic.finalize(everything), resampled)


def paired_bootstrap(
    statistic: Statistic,
    first: PyTree,
    second: PyTree,
    *,
    key: Key[Array, ""],
    block_length: float | int | Real[Array, ""],
    axis: int = 0,
    samples: int = 1000,
    width: int = 32,
    contrast: Callable[[Array, Array], Array] = jnp.subtract,
) -> Comparison:
    """Return how two systems, verified at the same times, differ, and how certainly.

    Both are resampled at the same times, so that what is common to them, the hard days,
    cancels. The p value is the share of resamples that lie farther from the difference
    found than 0 does, that one counted too, so that it is at least `1 / (samples +
    1)`: the spread of the resamples about the difference stands for what chance makes
    of no difference. Of many p values some are small by chance: see
    `benjamini_hochberg`.

    Args:
        statistic: of both, as for `bootstrap`.
        first: state of one system.
        second: state of the other, of the same structure and shapes.
        key: of the draws.
        block_length: as for `bootstrap`; the series of differences tells it.
        axis: as for `bootstrap`.
        samples: how many resamples.
        width: as for `bootstrap`.
        contrast: of the two values, 0 where they are equal: `first - second`, or a
            skill score such as `lambda a, b: 1 - a / b`.

    Raises:
        ValueError: as for `bootstrap`, or the states differ in structure or shapes.
    """
    if (a := _shapes(first)) != (b := _shapes(second)):
        raise ValueError(f"`first` and `second` differ: {a} and {b}.")
    length = _length(first, axis)
    _check(length, samples, block_length, width)

    def difference(indices):
        values = (
            statistic.finalize(_merge(statistic, state, axis, indices))
            for state in (first, second)
        )
        return jax.tree.map(contrast, *values)

    one = lambda key: difference(_draw(key, length, block_length))
    found = Bootstrap(
        difference(jnp.arange(length)), _resample(one, key, samples, width)
    )

    def p_value(value, resampled):
        beyond = jnp.abs(resampled - value[None]) >= jnp.abs(value)[None]
        share = (jnp.sum(beyond, axis=0, dtype=value.dtype) + 1) / (samples + 1)
        lost = jnp.isnan(value) | jnp.isnan(resampled).any(axis=0)
        return jnp.where(lost, jnp.nan, share)

    return Comparison(found, jax.tree.map(p_value, *found))


def percentile_interval(found: Bootstrap, level: float = 0.95) -> Interval:
    """Return the interval between quantiles of the resamples.

    It goes along with any monotone change of units, and never leaves the values that
    the statistic can take: a good default. Where the resamples are biased (histograms,
    maxima, small samples of a ratio) prefer `bias_corrected_interval`.

    Raises:
        ValueError: `level` lies outside (0, 1).

    Source: Efron & Tibshirani (1993), An Introduction to the Bootstrap, chapter 13.
    """
    _check_level(level)
    tail = (1 - level) / 2
    quantile = lambda share: jax.tree.map(
        lambda x: jnp.quantile(x, jnp.asarray(share, x.dtype), axis=0), found.samples
    )
    return Interval(quantile(tail), quantile(1 - tail))


def bias_corrected_interval(found: Bootstrap, level: float = 0.95) -> Interval:
    """Return the interval between quantiles that are moved by the bias of the median.

    `BC_a` with acceleration 0: the acceleration is a third moment of the influence of
    single times, which says nothing right about times that are not independent. Where
    more than all but one in `samples` lie on one side, the correction is that of one.

    Raises:
        ValueError: `level` lies outside (0, 1).

    Source: Efron (1987), J. Amer. Stat. Assoc. 82, 171-185.
    """
    _check_level(level)
    reach = NormalDist().inv_cdf((1 + level) / 2)

    def quantile(value, samples, side):
        size = samples.shape[0]
        below = (samples < value[None]).astype(value.dtype)
        equal = (samples == value[None]).astype(value.dtype)
        share = jnp.mean(below + equal / 2, axis=0)
        median = ndtri(jnp.clip(share, 1 / (size + 1), size / (size + 1)))
        position = ndtr(2 * median + side * reach) * (size - 1)
        low = jnp.clip(jnp.floor(position), 0, size - 1)
        inside = position - low
        ordered = jnp.sort(samples, axis=0)
        take = lambda index: jnp.take_along_axis(ordered, index[None], axis=0)[0]
        low = low.astype(int)
        high = jnp.minimum(low + 1, size - 1)
        found = take(low) * (1 - inside) + take(high) * inside
        # NaN, which compares as false, must not pass as a resample above the value.
        lost = jnp.isnan(value) | jnp.isnan(samples).any(axis=0)
        return jnp.where(lost, jnp.nan, found)

    bound = lambda side: jax.tree.map(lambda x, y: quantile(x, y, side), *found)
    return Interval(bound(-1), bound(1))


def optimal_block_length(series: Float[Array, " time"]) -> Float[Array, ""]:
    """Return the mean block length that serves the mean of a series best.

    `(G / g)^(2/3) n^(1/3)`, with `g` the sum of the autocovariances and `G` that of lag
    times autocovariance, both tapered by a flat-top window that ends where they have
    become insignificant. It is at least 1 (independent times, a constant series) and at
    most `min(3 sqrt(n), n / 3)`. For a score use the series of what is averaged, or of
    differences between two systems.

    Raises:
        ValueError: there are fewer than 8 times.

    Source: Politis & White (2004), Econom. Rev. 23, 53-70, corrected by Patton et al.
        (2009), Econom. Rev. 28, 372-375.
    """
    if (length := series.shape[0]) < 8:
        raise ValueError(f"`series` needs at least 8 times, got {length}.")
    series = jnp.asarray(series)
    run = max(5, math.ceil(math.sqrt(math.log10(length))))
    longest = min(math.ceil(math.sqrt(length)) + run, length - 2)
    departures = series - jnp.mean(series)
    ahead = jnp.pad(departures, (0, longest))
    shifted = lambda lag: lax.dynamic_slice(ahead, (lag,), (length,))
    lagged = lambda lag: jnp.sum(departures * shifted(lag)) / length
    lags = jnp.arange(longest + 1)
    covariance = jax.vmap(lagged)(lags)
    correlation = ratio(covariance, covariance[:1])
    significant = jnp.abs(correlation) >= 2 * math.sqrt(math.log10(length) / length)
    # The last lag before a run of insignificant ones.
    seen = jnp.cumsum(significant)
    quiet = seen[jnp.minimum(lags + run, longest)] == seen
    end = jnp.argmax(quiet)  # at the longest lag it is always quiet
    reach = jnp.clip(2 * end, 1, longest)
    window = jnp.clip(2 * (1 - lags / reach), 0, 1).astype(series.dtype)
    weighted = window[1:] * covariance[1:]
    spectrum = covariance[0] + 2 * jnp.sum(weighted)
    curvature = 2 * jnp.sum(lags[1:].astype(series.dtype) * weighted)
    most = math.ceil(min(3 * math.sqrt(length), length / 3))
    optimum = jnp.cbrt(ratio(curvature, spectrum) ** 2 * length)
    return jnp.clip(optimum, 1, most)


def _draw(key, length, block_length) -> Int[Array, " time"]:
    start_key, restart_key = jr.split(key)
    times = jnp.arange(length)
    starts = jr.randint(start_key, (length,), 0, length)
    chance = jr.uniform(restart_key, (length,), jnp.float32)
    restarts = chance * jnp.asarray(block_length, jnp.float32) < 1
    # Each time continues the stretch that started last.
    last = lax.cummax(jnp.where(restarts, times, 0))
    return (starts[last] + times - last) % length


def _merge(statistic, state, axis, indices):
    """Return the merge of the states at the times of `indices`."""
    at = lambda index: jax.tree.map(
        lambda x: lax.dynamic_index_in_dim(x, index, axis, keepdims=False), state
    )
    add = lambda merged, index: (statistic.merge(merged, at(index)), None)
    return lax.scan(add, at(indices[0]), indices[1:])[0]


def _resample(one, key, samples, width) -> Any:
    """Return `one` of the key of each sample, `width` side by side."""
    of_sample = lambda index: one(jr.fold_in(key, index))
    return lax.map(of_sample, jnp.arange(samples), batch_size=min(width, samples))


def _shapes(state) -> str:
    return str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", state))


def _length(state, axis: int) -> int:
    shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
    if axis < 0 or any(axis >= len(shape) for shape in shapes):
        raise ValueError(
            f"`axis` must be one of the kept axes, counted from 0; got {axis}, and "
            f"leaves of shapes {shapes}."
        )
    lengths = {shape[axis] for shape in shapes}
    if len(lengths) != 1:
        raise ValueError(
            f"The leaves of a state must share the length of axis {axis}; got "
            f"{sorted(lengths)}."
        )
    return lengths.pop()


def _check(length, samples, block_length, width=1) -> None:
    numbers = {"length": length, "samples": samples, "width": width}
    if isinstance(block_length, int | float):
        numbers["block_length"] = block_length
    for name, number in numbers.items():
        if not number >= 1:
            raise ValueError(f"`{name}` must be at least 1, got {number}.")


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"`level` must lie in (0, 1), got {level}.")
