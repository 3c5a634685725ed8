"""How unusual a forecast is in its climate: extreme forecast index, shift of tails."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from skyens.scores._members import (
    gather,
    score_dtype,
)


def extreme_forecast_index(
    ensemble: Float[Array, "..."],
    climate_quantiles: Float[Array, "level ..."],
    *,
    levels: Sequence[float] | np.ndarray | None = None,
    above: float | None = None,
    axis: int = 0,
    where: Bool[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Return how far the forecast lies towards an end of its climate, from -1 to 1.

    `(2 / pi) integral of (p - F(p)) / sqrt(p (1 - p)) dp`, with `F(p)` the share of
    members at or below the climate's quantile of level `p`, linear between the levels
    given. With `p = sin^2(theta)` it is `(4 / pi) integral of (p - F) dtheta`, which
    has no singular ends and is integrated exactly. 1: all members lie above all the
    climate. It counts members, and has no gradient.

    Args:
        ensemble: members along `axis`, in any units.
        climate_quantiles: `(level, ...)`, ascending, which broadcast to the points.
        levels: from 0 to 1, ascending; by default in equal steps, as percentiles are.
        above: only the quantiles above this value count, and the index is divided by
            the largest that they allow: for rain, of which a quantile may be 0 for most
            levels. Where there are none it is 0.
        axis: the member axis of `ensemble`.
        where: broadcasts against `ensemble`; members where it is False do not count.
            Points without members are 0.

    Returns:
        The index, in the dtype of the ensemble; NaN where a quantile or a member is.

    Raises:
        ValueError: there are no members or fewer than two quantiles, or shapes do not
            broadcast, or the levels do not ascend from 0 to 1 or are not as many as the
            quantiles.

    Source: Lalaurette (2003), Q. J. R. Meteorol. Soc. 129, 3037-3057; weights: Zsoter
        (2006), ECMWF Newsletter 107, 8-17.
    """
    p = _check_all_levels(levels, climate_quantiles.shape[0])
    names = "ensemble", "climate_quantiles[0]"
    seen = gather(ensemble, climate_quantiles[0], axis, where, names)
    dtype = score_dtype(ensemble, climate_quantiles)
    quantiles = _to_points(climate_quantiles.astype(seen.truth.dtype), seen.truth.shape)
    theta = np.arcsin(np.sqrt(p))
    width = np.diff(theta)
    square = width / 2 - np.diff(np.sin(2 * theta)) / 4  # of p over theta
    # Weights of F at the start and at the end of each panel, and of the panel's p.
    last = (square - p[:-1] * width) / np.diff(p)
    panels = np.stack([square, width - last, last], axis=1)
    if not np.isfinite(panels).all():
        raise ValueError(f"`levels` are too close to each other: {p.tolist()}.")
    count = jnp.broadcast_to(jnp.maximum(seen.count, 1), seen.truth.shape)

    def share(quantile):
        below = seen.masked((seen.members <= quantile[None]).astype(quantile.dtype))
        return jnp.sum(below, axis=0) / count

    def add(sums, panel):
        index, most, start = sums
        quantile, (square, first, last) = panel
        end = share(quantile)
        counts = True if above is None else quantile > above
        change = square - first * start - last * end
        index += jnp.where(counts, change, 0)
        return (index, most + jnp.where(counts, square, 0), end), None

    lost = jnp.isnan(quantiles).any(axis=0) | jnp.isnan(seen.members).any(axis=0)
    start = jnp.where(lost, jnp.nan, jnp.zeros_like(seen.truth))
    weights = tuple(jnp.asarray(panels.T, seen.truth.dtype))
    sums = start, jnp.zeros_like(start), share(quantiles[0])
    (index, most, _), _ = lax.scan(add, sums, (quantiles[1:], weights))
    whole = math.pi / 4 if above is None else jnp.where(most > 0, most, 1)
    index = jnp.where(seen.count > 0, index / whole, 0)
    return index.astype(dtype)


def shift_of_tails(
    ensemble: Float[Array, "..."],
    climate_quantile: Float[Array, "..."],
    climate_tail: Float[Array, "..."],
    *,
    level: float = 0.9,
    limit: float = 10.0,
    axis: int = 0,
    where: Bool[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Return how far the ensemble's tail reaches beyond that of the climate.

    `(q - tail) / (tail - quantile)`, with `q` the ensemble's quantile of `level`, and
    of the climate the quantile of that level and one farther out, usually those of 90
    and 99 percent. Above 0 at least a tenth of the members are more extreme than all
    but a hundredth of the climate. For the lower tail take level 0.1 and the quantiles
    of 10 and 1 percent: positive means extreme again. It is 0 where climate quantile
    and tail are equal (rain in a desert).

    Args:
        ensemble: members along `axis`, in any units.
        climate_quantile: of `level`; broadcasts against the ensemble without members.
        climate_tail: the quantile farther out; likewise.
        level: of the tail, in (0, 1). Quantiles of the ensemble are interpolated
            linearly between sorted members, `1 + level (M - 1)` being the rank.
        limit: what is beyond `-limit` or `limit` is set to it.
        axis: the member axis of `ensemble`.
        where: broadcasts against `ensemble`; members where it is False do not count.
            Points without members are 0.

    Returns:
        The shift, in the dtype of the ensemble; differentiable in its members.

    Raises:
        ValueError: there are no members, shapes do not broadcast, or `level` lies
            outside (0, 1), or `limit` is not positive.

    Source: Zsoter (2006), ECMWF Newsletter 107, 8-17.
    """
    if not 0 < level < 1:
        raise ValueError(f"`level` must lie in (0, 1), got {level}.")
    if not limit > 0:
        raise ValueError(f"`limit` must be positive, got {limit}.")
    names = "ensemble", "climate_quantile"
    seen = gather(ensemble, climate_quantile, axis, where, names)
    dtype = score_dtype(ensemble, climate_quantile, climate_tail)
    shape = seen.truth.shape
    tail = _to_points(climate_tail.astype(seen.truth.dtype)[None], shape)[0]
    # From the tail, so that nothing is lost at an offset.
    departures = seen.members - tail[None]
    if seen.valid is not None:
        departures = jnp.where(seen.valid, departures, jnp.inf)
    count = jnp.broadcast_to(jnp.maximum(seen.count, 1), shape)
    ordered = jnp.sort(departures, axis=0)
    place = level * (count - 1)
    lower = jnp.floor(place)
    pick = lambda k: jnp.take_along_axis(ordered, k.astype(int)[None], axis=0)[0]
    start, end = pick(lower), pick(jnp.minimum(lower + 1, count - 1))
    reach = start + (place - lower) * (end - start)
    known = seen.count > 0
    reach = jnp.where(known, reach, 0)
    span = jnp.where(known, tail - seen.truth, 0)
    shift = jnp.where(span == 0, 0, reach / jnp.where(span == 0, 1, span))
    # A NaN among the members sorts behind them; it must not pass for a member.
    lost = jnp.isnan(seen.members).any(axis=0)
    return jnp.where(lost, jnp.nan, jnp.clip(shift, -limit, limit)).astype(dtype)


def _check_all_levels(levels, size):
    levels = np.linspace(0, 1, size) if levels is None else np.asarray(levels, float)
    if size < 2:
        raise ValueError(f"`climate_quantiles` needs at least 2 levels, got {size}.")
    if levels.shape != (size,):
        raise ValueError(
            f"`levels` must be {size}, one for each quantile; their shape is "
            f"{levels.shape}."
        )
    if not (levels[0] == 0 and levels[-1] == 1 and (np.diff(levels) > 0).all()):
        raise ValueError(f"`levels` must ascend from 0 to 1, got {levels.tolist()}.")
    return levels


def _to_points(quantiles, points):
    missing = max(len(points) - (quantiles.ndim - 1), 0)
    quantiles = jnp.expand_dims(quantiles, tuple(range(1, 1 + missing)))
    try:
        return jnp.broadcast_to(quantiles, (quantiles.shape[0], *points))
    except ValueError:
        raise ValueError(
            f"Climate quantiles of shape {quantiles.shape[1:]} do not broadcast to the "
            f"points, {points}."
        ) from None
