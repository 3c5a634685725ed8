"""Scores of quantiles and of central prediction intervals."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from skyens.scores._checks import check_known
from skyens.scores._members import (
    check_members,
    check_together,
    lead_with_members,
    points_of,
    score_dtype,
    wide_dtype,
)


def quantile_score(
    quantiles: Float[Array, "..."],
    truth: Float[Array, "..."],
    *,
    levels: Sequence[float] | np.ndarray,
    axis: int = 0,
) -> Float[Array, "..."]:
    """Return the mean quantile score (pinball loss) over the levels, point by point.

    `(1 - level) max(q - y, 0) + level max(y - q, 0)`: for each level alone the true
    quantile is best. Twice the mean over `(k - 1/2) / K` tends to the CRPS as `K`
    grows. On the truth itself the slope is the mean of those beside it. Quantiles that
    cross are scored as they are, and can only lose by it.

    Args:
        quantiles: along `axis`, in any units, one for each level.
        truth: broadcasts against the quantiles without their axis.
        levels: ascending, in (0, 1).
        axis: of the levels in `quantiles`.

    Returns:
        The score, in the units and dtype of the quantiles.

    Raises:
        ValueError: levels do not ascend, or lie outside (0, 1), or are not as many as
            the quantiles, or the shapes do not broadcast.

    Source: Koenker & Bassett (1978), Econometrica 46, 33-50; Gneiting & Raftery
        (2007), J. Amer. Stat. Assoc. 102, 359-378, section 6.1.
    """
    check_members(quantiles, axis, "quantiles")
    levels = check_levels("levels", levels, quantiles.shape[axis])
    dtype = score_dtype(quantiles, truth)
    wide = wide_dtype(dtype)
    points = points_of(quantiles, truth, axis, ("quantiles", "truth"))
    quantiles = lead_with_members(quantiles.astype(wide), axis, points)
    departures = quantiles - jnp.broadcast_to(truth.astype(wide), points)[None]
    level = jnp.asarray(levels, wide).reshape(-1, *(1,) * len(points))
    above = jnp.maximum(departures, 0)
    below = jnp.maximum(-departures, 0)
    return jnp.mean((1 - level) * above + level * below, axis=0).astype(dtype)


def interval_score(
    lower: Float[Array, "..."],
    upper: Float[Array, "..."],
    truth: Float[Array, "..."],
    *,
    coverage: float,
) -> Float[Array, "..."]:
    """Return the score of a central prediction interval, point by point.

    Its width, and `2 / (1 - coverage)` times the distance of the truth from it: best
    are the quantiles of levels `(1 - coverage) / 2` and `(1 + coverage) / 2`.

    Args:
        lower: end of the interval, in any units.
        upper: end of the interval, likewise; the three broadcast.
        truth: what happened.
        coverage: the probability of the interval, in (0, 1).

    Returns:
        The score, in the units and dtype of the interval.

    Raises:
        ValueError: `coverage` lies outside (0, 1), or the shapes do not broadcast.
        EquinoxRuntimeError: a known interval ends before it starts.

    Source: Gneiting & Raftery (2007), J. Amer. Stat. Assoc. 102, 359-378, equation 43.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"`coverage` must lie in (0, 1), got {coverage}.")
    shape = check_together(lower=lower, upper=upper, truth=truth)
    dtype = score_dtype(lower, upper, truth)
    wide = wide_dtype(dtype)
    lower, upper, truth = (
        jnp.broadcast_to(x.astype(wide), shape) for x in (lower, upper, truth)
    )
    ordered = lambda x: ~(x < 0)
    width = check_known("upper - lower", "not negative", upper - lower, ordered)
    outside = jnp.maximum(lower - truth, 0) + jnp.maximum(truth - upper, 0)
    return (width + 2 / (1 - coverage) * outside).astype(dtype)


def weighted_interval_score(
    lower: Float[Array, "..."],
    upper: Float[Array, "..."],
    median: Float[Array, "..."],
    truth: Float[Array, "..."],
    *,
    coverages: Sequence[float] | np.ndarray,
    axis: int = 0,
) -> Float[Array, "..."]:
    """Return the score of several central intervals and a median, point by point.

    `(|y - median| / 2 + sum_k (1 - coverage_k) / 2 * interval_score_k) / (K + 1/2)`:
    twice the mean quantile score of all `2 K + 1` ends, which tends to the CRPS.

    Args:
        lower: ends of the intervals along `axis`, in any units.
        upper: likewise.
        median: broadcasts against the intervals without their axis, as `truth` does.
        truth: what happened.
        coverages: of the intervals, ascending, in (0, 1).
        axis: of the intervals in `lower` and `upper`.

    Returns:
        The score, in the units and dtype of the intervals.

    Raises:
        ValueError: coverages do not ascend, or lie outside (0, 1), or are not as many
            as the intervals, or the shapes do not broadcast.
        EquinoxRuntimeError: a known interval ends before it starts.

    Source: Bracher et al. (2021), PLoS Comput. Biol. 17, e1008618.
    """
    check_members(lower, axis, "lower")
    check_members(upper, axis, "upper")
    sizes = lower.shape[axis], upper.shape[axis]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"`lower` has {sizes[0]} intervals along axis {axis}, `upper` {sizes[1]}."
        )
    coverages = check_levels("coverages", coverages, sizes[0])
    dtype = score_dtype(lower, upper, median, truth)
    wide = wide_dtype(dtype)
    one = lambda intervals: lax.index_in_dim(intervals, 0, axis, keepdims=False)
    points = check_together(
        lower=one(lower), upper=one(upper), median=median, truth=truth
    )
    lower, upper = (
        lead_with_members(x.astype(wide), axis, points) for x in (lower, upper)
    )
    median, truth = (jnp.broadcast_to(x.astype(wide), points) for x in (median, truth))
    # |y - median|, with slope 0 where it is 0.
    error = jnp.maximum(truth - median, 0) + jnp.maximum(median - truth, 0)
    total = error / 2
    for k, coverage in enumerate(coverages.tolist()):
        score = interval_score(lower[k], upper[k], truth, coverage=coverage)
        total += (1 - coverage) / 2 * score
    return (total / (len(coverages) + 0.5)).astype(dtype)


def check_levels(name: str, levels: Sequence[float] | np.ndarray, size: int):
    """Return levels as float64 NumPy.

    Raises:
        ValueError: they do not ascend, or lie outside (0, 1), or are not `size`.
    """
    levels = np.asarray(levels, float)
    if levels.shape != (size,):
        raise ValueError(
            f"`{name}` must be {size}, one for each; their shape is {levels.shape}."
        )
    if not ((levels > 0) & (levels < 1)).all():
        raise ValueError(f"`{name}` must lie in (0, 1), got {levels.tolist()}.")
    if not (np.diff(levels) > 0).all():
        raise ValueError(f"`{name}` must ascend, got {levels.tolist()}.")
    return levels
