"""The CRPS with more weight on some values: rain above a threshold, heat, cold."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from skyens.scores._checks import check_known
from skyens.scores._crps import crps
from skyens.scores._members import (
    Members,
    check_alpha,
    check_members,
    gather,
    score_dtype,
)
from skyens.scores._sorting import in_blocks

Threshold = float | Float[Array | np.ndarray, "..."]
Weight = Callable[[Float[Array, "..."]], Float[Array, "..."] | Bool[Array, "..."]]


def threshold_weighted_crps(
    ensemble: Float[Array, "..."],
    truth: Float[Array, "..."],
    *,
    lower: Threshold = -jnp.inf,
    upper: Threshold = jnp.inf,
    chaining: Callable[[Float[Array, "..."]], Float[Array, "..."]] | None = None,
    alpha: float | Float[Array, ""] = 1.0,
    axis: int = 0,
    where: Bool[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Return the CRPS integrated over the values from `lower` to `upper` only.

    It is the CRPS of `v(members)` and `v(truth)`, where the chaining function `v` is an
    antiderivative of the weight of each value: clipping to the interval, unless
    `chaining` is given. Proper, and it sees what the forecast says below the threshold
    too: that the event will not happen.

    Args:
        ensemble: members along `axis`, in any units.
        truth: broadcasts against the ensemble without its member axis.
        lower: where the weight starts; a number, or one for each point.
        upper: where it ends, likewise.
        chaining: never decreasing, of arrays of the points' shape, instead of `lower`
            and `upper`: for a weight that is a normal distribution function, say.
        alpha: 0 standard, 1 fair, 0.95 almost fair.
        axis: the member axis of `ensemble`.
        where: broadcasts against `ensemble`; members where it is False do not count.

    Returns:
        The score, in the units and dtype of the ensemble (or in those that `chaining`
        gives). Values outside the interval have no gradient, values on its ends half.

    Raises:
        ValueError: as `crps` does, or known numbers have `lower > upper`, or a
            threshold does not broadcast to the points, or both kinds are given, or
            `chaining` returns another shape.

    Source: Gneiting & Ranjan (2011), J. Bus. Econ. Stat. 29, 411-422; Allen et al.
        (2023), SIAM/ASA J. Uncertain. Quantif. 11, 906-940.
    """
    check_members(ensemble, axis)
    check_alpha(alpha, ensemble, axis, float)
    dtype = score_dtype(ensemble, truth)
    seen = gather(ensemble, truth, axis, where)
    if chaining is None:
        chaining = _clip_to(lower, upper, seen.truth)
    elif not _is_everything(lower, upper):
        raise ValueError("Give `chaining`, or `lower` and `upper`, but not both.")
    members, at_truth = _evaluate("chaining", chaining, seen)
    return crps(members, at_truth, alpha=alpha, where=seen.valid).astype(dtype)


def outcome_weighted_crps(
    ensemble: Float[Array, "..."],
    truth: Float[Array, "..."],
    *,
    weight: Weight,
    axis: int = 0,
    where: Bool[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Return `weight(truth)` times the CRPS of the ensemble weighted by `weight`.

    With an indicator of an event as weight it scores the members in the event against
    the truths in the event: how well is the size of a storm forecast, given one? Of
    whether one comes it knows nothing: look at it beside the Brier score of the event
    (Holzmann & Klar). For the same reason it is 0, with gradient 0, where no member has
    weight: there is no conditional forecast to be scored, and the Brier score counts
    the miss. It is exact at any offset and never negative. There is no fair version of
    it: a ratio of sums over members has a bias that depends on the weights.

    Args:
        ensemble: members along `axis`, in any units.
        truth: broadcasts against the ensemble without its member axis.
        weight: of arrays of the points' shape, never negative; booleans count as 0
            and 1, and a smooth weight is differentiated.
        axis: the member axis of `ensemble`.
        where: broadcasts against `ensemble`; members where it is False do not count.

    Returns:
        The score, in the units and dtype of the ensemble.

    Raises:
        ValueError: as `crps` does, or `weight` returns another shape.
        EquinoxRuntimeError: a known weight is negative or not finite.

    Source: Holzmann & Klar (2017), Ann. Appl. Stat. 11, 2404-2431; Allen et al.
        (2023), SIAM/ASA J. Uncertain. Quantif. 11, 906-940.
    """
    dtype = score_dtype(ensemble, truth)
    seen = gather(ensemble, truth, axis, where)
    weights, at_truth = weigh(weight, seen)
    departures = seen.members - seen.truth[None]
    return (at_truth * _weighted(weights, departures)).astype(dtype)


def weigh(
    weight: Weight, seen: Members
) -> tuple[Float[Array, "member *points"], Float[Array, "*points"]]:
    """Return the weights of members, 0 where they are masked, and truth.

    Raises:
        ValueError: it returns an array of another shape.
        EquinoxRuntimeError: a known weight is negative or not finite.
    """
    members, at_truth = _evaluate("weight", weight, seen)
    fine = lambda x: (x >= 0) & (x < np.inf) | np.isnan(x)
    check = lambda x: check_known("weight", "finite and not negative", x, fine)
    return check(seen.masked(members)), check(at_truth)


def _evaluate(name, function, seen):
    """Return what a function of the points gives for each member and the truth."""

    def apply(values):
        result = function(values)
        if result.shape != values.shape:
            raise ValueError(
                f"`{name}` must return an array of the points' shape, {values.shape}, "
                f"got {result.shape}."
            )
        return result.astype(values.dtype)

    return jax.vmap(apply)(seen.members), apply(seen.truth)


def _is_everything(lower: Threshold, upper: Threshold) -> bool:
    """Whether the thresholds are the defaults: known numbers without end."""
    return _known(lower, upper) and bool(lower == -jnp.inf and upper == jnp.inf)


def _known(lower, upper):
    return all(isinstance(x, int | float) for x in (lower, upper))


def _clip_to(lower, upper, truth):
    if _known(lower, upper) and lower > upper:
        raise ValueError(f"`lower` = {lower} lies above `upper` = {upper}.")
    ends = []
    for name, end in (("lower", lower), ("upper", upper)):
        try:
            ends.append(jnp.broadcast_to(jnp.asarray(end, truth.dtype), truth.shape))
        except ValueError:
            raise ValueError(
                f"`{name}` of shape {jnp.shape(end)} does not broadcast to the points, "
                f"{truth.shape}."
            ) from None
    return lambda x: jnp.minimum(jnp.maximum(x, ends[0]), ends[1])


@jax.custom_jvp
def _kernel(
    weights: Float[Array, "member *points"], departures: Float[Array, "member *points"]
) -> Float[Array, "*points"]:
    """Return the CRPS of members of any weights, by their departures from the truth.

    `2 sum_i p_i (a_i max(z_i, 0) + b_i max(-z_i, 0))`, with `p` the normalised weights,
    and `a_i` and `b_i` what weighs above and below member i, half of what is tied.
    """
    size = weights.shape[0]
    flat = weights.reshape(size, -1), departures.reshape(size, -1)
    return in_blocks(_value, *flat, block=1024).reshape(departures.shape[1:])


@_kernel.defjvp
def _tangent(primals, tangents):
    weights, departures = primals
    size = weights.shape[0]
    flat = weights.reshape(size, -1), departures.reshape(size, -1)
    slopes = in_blocks(_slopes, *flat, block=1024)
    by_weight, by_departure = slopes.reshape(2, *weights.shape)
    change = by_weight * tangents[0] + by_departure * tangents[1]
    return _kernel(*primals), jnp.sum(change, axis=0)


_weighted = jax.jit(_kernel)


def _normalised(weights):
    total = jnp.sum(weights, axis=0, keepdims=True)
    return weights / jnp.where(total > 0, total, 1), total


def _value(weights, departures):
    # By the largest, not by their sum: those of an event are added up without rounding.
    most = jnp.max(weights, axis=0, keepdims=True)
    weights /= jnp.where(most > 0, most, 1)
    above, below, _ = _compare(weights, departures)
    pulls = above * jnp.maximum(departures, 0) + below * jnp.maximum(-departures, 0)
    total = jnp.maximum(jnp.sum(weights, axis=0), 1)
    return 2 * jnp.sum(weights * pulls, axis=0) / total**2


def _slopes(weights, departures):
    share, total = _normalised(weights)
    above, below, apart = _compare(share, departures)
    by_departure = share * (jnp.sign(departures) + above - below)
    distance = jnp.abs(departures)
    excess = distance - jnp.sum(share * distance, axis=0, keepdims=True)
    excess -= apart - jnp.sum(share * apart, axis=0, keepdims=True)
    by_weight = jnp.where(total > 0, excess / jnp.where(total > 0, total, 1), 0)
    return jnp.stack([by_weight, by_departure])


def _compare(share, departures):
    """Return what weighs above and below each member, and their mean distance.

    Member by member in a loop: nothing of size members squared is ever held.
    """

    def compare(sums, other):
        above, below, apart = sums
        part, value = (x[None] for x in other)
        tied = jnp.where(value == departures, part / 2, 0)
        above += jnp.where(value > departures, part, tied)
        below += jnp.where(value < departures, part, tied)
        gap = departures - value
        return (above, below, apart + part * gap * jnp.sign(gap)), None

    start = (jnp.zeros_like(departures),) * 3
    return lax.scan(compare, start, (share, departures))[0]
