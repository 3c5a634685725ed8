"""Events: values above or below thresholds, fixed or of each point."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Real

from skyens.scores._sample import Sample, sum_rows

Numbers = Sequence[float | int] | Real[np.ndarray, " _"]
Thresholds = tuple[float, ...] | int


def check_thresholds(thresholds: Numbers | int) -> Thresholds:
    """Return thresholds as a tuple of floats, or how many each update will bring.

    Raises:
        ValueError: there are none, or they are not finite or do not increase.
    """
    if isinstance(thresholds, int):
        if thresholds < 1:
            raise ValueError(
                "`thresholds` as a number says how many each update brings, at least "
                f"1; got {thresholds}. One threshold of that value is a tuple of one."
            )
        return thresholds
    values = tuple(float(threshold) for threshold in thresholds)
    if not values or not np.isfinite(values).all() or (np.diff(values) <= 0).any():
        raise ValueError(
            f"`thresholds` must be finite and increase, at least one; got {values}."
        )
    return values


def number_of(thresholds: Thresholds) -> int:
    """Return how many thresholds there are."""
    return thresholds if isinstance(thresholds, int) else len(thresholds)


def thresholds_of(
    fixed: Thresholds, given: Float[Array, "threshold ..."] | None, seen: Sample
) -> Float[Array, "threshold ..."]:
    """Return the thresholds of an update, with as many more axes as the truth.

    Raises:
        ValueError: thresholds are given and fixed, or neither, or too many or few, or
            do not broadcast to the points.
    """
    ndim, dtype = seen.truth.ndim, seen.truth.dtype
    if not isinstance(fixed, int):
        if given is not None:
            raise ValueError(
                f"`thresholds` are those of the statistic, {fixed}; to give them with "
                "each update, make it with their number."
            )
        return jnp.asarray(fixed, dtype).reshape(-1, *(1,) * ndim)
    if given is None:
        raise ValueError(
            f"`thresholds` must be given with each update: {fixed} of them, as the "
            "leading axis of an array."
        )
    if not 1 <= given.ndim <= ndim + 1 or given.shape[0] != fixed:
        raise ValueError(
            f"`thresholds` must lead with {fixed} thresholds and then have at most the "
            f"{ndim} axes of `truth`; got shape {given.shape}."
        )
    points = seen.weights.shape
    missing = ndim - (given.ndim - 1)
    padded = (1,) * missing + given.shape[1:]
    if any(a not in (1, b) for a, b in zip(padded, points, strict=True)):
        raise ValueError(
            f"`thresholds` of shape {given.shape}, one of {fixed} at a time, do not "
            f"broadcast to what is scored, {points}."
        )
    return given.astype(dtype).reshape(fixed, *padded)


def forecast_and_event(
    seen: Sample, threshold: Float[Array, "..."], above: bool
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Return the share of valid members with the event, and 1 where it came, else 0.

    Both are NaN where a value or the threshold is NaN, and 0 where no member is valid.
    """
    happens = lambda x: (x > threshold) if above else (x < threshold)
    share = share_of_members(seen, happens)
    event = happens(seen.truth).astype(seen.truth.dtype)
    # NaN compares as false, and must not pass as a member without the event.
    lost = (seen.total(jnp.isnan, seen.truth) > 0) | jnp.isnan(threshold)
    lost &= seen.has_members
    spoil = lambda x: jnp.where(lost, jnp.nan, x)
    return spoil(share), jnp.where(seen.has_members, spoil(event), 0)


def share_of_members(
    seen: Sample, condition: Callable[[Float[Array, "..."]], Bool[Array, "..."]]
) -> Float[Array, "..."]:
    """Return the share of the valid members that meet a condition, point by point."""
    members = lax.stop_gradient(seen.ensemble)
    if seen.valid is None:
        count = sum_rows(condition, (members,), seen.truth.dtype)
    else:
        meets = lambda row, valid: condition(row) & valid
        count = sum_rows(meets, (members, seen.valid), seen.truth.dtype)
    return count / seen.count
