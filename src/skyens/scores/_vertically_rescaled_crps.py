"""The CRPS of values squeezed together where a weight is small."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float

from skyens.scores._crps import enough_members
from skyens.scores._members import (
    check_alpha,
    check_members,
    gather,
    score_dtype,
)
from skyens.scores._sorting import in_blocks
from skyens.scores._weighted_crps import Weight, weigh


def vertically_rescaled_crps(
    ensemble: Float[Array, "..."],
    truth: Float[Array, "..."],
    *,
    weight: Weight,
    centre: float | Float[Array, "..."] = 0.0,
    alpha: float | Float[Array, ""] = 1.0,
    axis: int = 0,
    where: Bool[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Return the CRPS in which each member and the truth count by their `weight`.

    The integral over thresholds t on each side of the centre `c` of `(mean(w(x) 1[x
    beyond t]) - w(y) 1[y beyond t])^2`: unlike the threshold-weighted score it lets a
    value keep its distance to others and lose its mass instead, and unlike the
    outcome-weighted one it punishes a forecast that misses or invents the event. It
    depends on the centre, by the distance to which the difference in mass is paid for.
    With a constant weight of 1 it is `crps` for any centre. In this form it is never
    negative at `alpha=0`; the fair one, unbiased in the number of members, may be, for
    weights other than 0 and 1.

    Args:
        ensemble: members along `axis`, in any units.
        truth: broadcasts against the ensemble without its member axis.
        weight: of arrays of the points' shape, never negative; booleans count as 0
            and 1, and a smooth weight is differentiated.
        centre: in the units of the ensemble, a number or one for each point. Take one
            in reach of the values: zero for rain, not for geopotential.
        alpha: 0 standard, 1 fair, 0.95 almost fair.
        axis: the member axis of `ensemble`.
        where: broadcasts against `ensemble`; members where it is False do not count.

    Returns:
        The score, in the units and dtype of the ensemble.

    Raises:
        ValueError: as `crps` does, or `centre` does not broadcast to the points, or
            `weight` returns another shape.
        EquinoxRuntimeError: a known weight is negative or not finite.

    Source: Allen et al. (2023), SIAM/ASA J. Uncertain. Quantif. 11, 906-940, section
        3.3, in which the pairs of the kernel `w w' (|u| + |u'| - |u - u'|)`, with `u`
        the distance to the centre, are summed here as one integral.
    """
    check_members(ensemble, axis)
    dtype = score_dtype(ensemble, truth)
    seen = gather(ensemble, truth, axis, where)
    alpha = check_alpha(alpha, ensemble, axis, seen.truth.dtype)
    weights, at_truth = weigh(weight, seen)
    try:
        centre = jnp.broadcast_to(jnp.asarray(centre, at_truth.dtype), at_truth.shape)
    except ValueError:
        raise ValueError(
            f"`centre` of shape {jnp.shape(centre)} does not broadcast to the points, "
            f"{at_truth.shape}."
        ) from None
    departures = seen.masked(seen.members - centre[None])
    count, enough = enough_members(alpha, seen.members, seen.valid)
    count = jnp.broadcast_to(count, at_truth.shape)
    # The truth stands last, as one more member whose weight counts the other way.
    stacked = (
        jnp.concatenate([departures, jnp.where(enough, seen.truth - centre, 0)[None]]),
        jnp.concatenate([weights, jnp.where(enough, at_truth, 0)[None]]),
    )
    score = _rescaled(alpha, *stacked, count)
    return jnp.where(enough, score, 0).astype(dtype)


@jax.custom_jvp
def _kernel(
    alpha: Float[Array, ""],
    departures: Float[Array, "all *points"],
    weights: Float[Array, "all *points"],
    count: Float[Array, "*points"],
) -> Float[Array, "*points"]:
    flat = _flatten(departures, weights, count)
    value = functools.partial(_value, alpha)
    return in_blocks(value, *flat, block=1024).reshape(count.shape)


def _tangent(primals, tangents):
    alpha, departures, weights, count = primals
    alpha_dot, *moves, _ = tangents
    flat = _flatten(departures, weights, count)
    slopes = in_blocks(functools.partial(_slopes, alpha), *flat, block=1024)
    slopes = slopes.reshape(2, *departures.shape)
    tangent = jnp.zeros_like(count)
    for slope, move in zip(slopes, moves, strict=True):
        if not isinstance(move, SymbolicZero):
            tangent += jnp.sum(slope * move, axis=0)
    if not isinstance(alpha_dot, SymbolicZero):
        ends = (_kernel(jnp.full_like(alpha, x), *primals[1:]) for x in (1, 0))
        tangent += alpha_dot * functools.reduce(jnp.subtract, ends)
    return _kernel(*primals), tangent


_kernel.defjvp(_tangent, symbolic_zeros=True)
_rescaled = jax.jit(_kernel)


def _flatten(departures, weights, count):
    size = departures.shape[0]
    return departures.reshape(size, -1), weights.reshape(size, -1), count.reshape(1, -1)


def _value(alpha, departures, weights, count):
    """Add up the steps of the integrand, `(p - o)^2 - alpha / (M - 1) (r - p^2)`.

    `p` and `r` are means over members of `w` and `w^2` beyond the threshold, and `o` is
    the truth's: a Brier score with weights, fair as that one is.
    """
    lack = alpha / jnp.maximum(count - 1, 1)
    total = jnp.zeros_like(count)
    for side in (departures, -departures):
        beyond = jnp.maximum(side, 0)
        steps = _integrate(beyond, weights, count)
        height = steps.gap**2 - lack * (steps.square - steps.mean**2)
        total += jnp.sum(steps.length * height, axis=0, keepdims=True)
    return total[0]


def _slopes(alpha, departures, weights, count):
    lack = alpha / jnp.maximum(count - 1, 1)
    members = jnp.arange(weights.shape[0])[:, None] < weights.shape[0] - 1
    share = jnp.where(members, weights / count, -weights)
    by_departure, by_weight = jnp.zeros_like(weights), jnp.zeros_like(weights)
    for sign, side in ((1, departures), (-1, -departures)):
        beyond = jnp.maximum(side, 0)
        steps = _integrate(beyond, weights, count)
        # The mean of the slopes to both sides; on the centre, half of each side's, of
        # which the terms dropped here cancel.
        inside = side > 0
        gaps = steps.gap_above + jnp.where(inside, steps.gap, 0)
        means = steps.mean_above + jnp.where(inside, steps.mean, 0)
        own = jnp.where(inside, weights, 0)
        pull = gaps + jnp.where(members, lack * (means - own), 0)
        by_departure += jnp.where(side >= 0, sign * share * pull, 0)
        fair = lack * (steps.mean_integral - weights * beyond)
        slope = 2 * (steps.gap_integral + jnp.where(members, fair, 0))
        by_weight += jnp.where(members, slope / count, -slope)
    return jnp.stack([by_departure, by_weight])


class _Steps(NamedTuple):
    """What each value, as a threshold, sees of the weights from there on."""

    length: Float[Array, "..."]  # down to the next smaller value, shared by the tied
    mean: Float[Array, "..."]  # of members' weights at or beyond it
    mean_above: Float[Array, "..."]  # strictly beyond it
    square: Float[Array, "..."]  # mean of squared weights at or beyond it
    gap: Float[Array, "..."]  # `mean` less the truth's weight, if at or beyond it
    gap_above: Float[Array, "..."]
    mean_integral: Float[Array, "..."]  # of the mean beyond t, from 0 to the value
    gap_integral: Float[Array, "..."]


def _integrate(beyond, weights, count) -> _Steps:
    """Compare all values with each member in a loop, in the memory of a few copies."""
    truth, at_truth = beyond[-1:], weights[-1:]

    def compare(sums, member):
        value, weight = (x[None] for x in member)
        reached = jnp.where(value >= beyond, weight, 0)
        exceeded = jnp.where(value > beyond, weight, 0)
        shared = jnp.minimum(value, beyond)
        sums = {
            "below": jnp.maximum(sums["below"], jnp.where(value < beyond, value, 0)),
            "tied": sums["tied"] + (value == beyond).astype(beyond.dtype),
            "mean": sums["mean"] + reached,
            "mean_above": sums["mean_above"] + exceeded,
            "square": sums["square"] + weight * reached,
            "mean_integral": sums["mean_integral"] + weight * shared,
            # Against the truth: what they share may be large.
            "excess": sums["excess"] + weight * (shared - jnp.minimum(truth, beyond)),
        }
        return sums, None

    zero = jnp.zeros_like(beyond)
    names = "mean", "mean_above", "square", "mean_integral", "excess"
    start = {
        "below": jnp.where(truth < beyond, truth, 0),
        "tied": (truth == beyond).astype(beyond.dtype),
        **dict.fromkeys(names, zero),
    }
    sums, _ = lax.scan(compare, start, (beyond[:-1], weights[:-1]))
    mean, above = sums["mean"] / count, sums["mean_above"] / count
    mass = jnp.sum(weights[:-1], axis=0, keepdims=True) / count - at_truth
    return _Steps(
        length=(beyond - sums["below"]) / sums["tied"],
        mean=mean,
        mean_above=above,
        square=sums["square"] / count,
        gap=mean - jnp.where(truth >= beyond, at_truth, 0),
        gap_above=above - jnp.where(truth > beyond, at_truth, 0),
        mean_integral=sums["mean_integral"] / count,
        gap_integral=sums["excess"] / count + mass * jnp.minimum(truth, beyond),
    )
