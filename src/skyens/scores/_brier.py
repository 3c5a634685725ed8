"""The Brier score: of a probability, and of an ensemble's count of an event."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from skyens.scores._checks import check_probability
from skyens.scores._members import (
    check_alpha,
    check_members,
    check_together,
    gather,
    score_dtype,
    wide_dtype,
)

Event = Bool[Array, "..."] | Float[Array, "..."]


def brier_score(
    ensemble: Event,
    event: Event,
    *,
    alpha: float | Float[Array, ""] = 1.0,
    axis: int = 0,
    where: Bool[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Return the Brier score of the share of members with the event, point by point.

    `(p - o)^2 - alpha (mean(e^2) - p^2) / (M - 1)`, with `e` the members' events, `p`
    their mean and `o` what happened. The fair score (`alpha=1`) is unbiased in the
    number of members. It is added up from products of two members' errors, none
    negative. For a probability see `brier_score_probability`.

    Args:
        ensemble: whether the event happens in each member, such as `rain > 10.0`. A
            member's probability of it, such as a sigmoid, has gradients and counts too.
        event: whether it happened; broadcasts against the ensemble without members.
        alpha: 0 standard, 1 fair.
        axis: the member axis of `ensemble`.
        where: broadcasts against `ensemble`; members where it is False do not count.
            Points left with too few members, none or (for `alpha > 0`) one, score 0.

    Returns:
        The score, from 0 to 1, in the dtype of the ensemble, or of what is not boolean.

    Raises:
        ValueError: as `crps` does.
        EquinoxRuntimeError: a known value lies outside [0, 1].

    Source: Brier (1950), Mon. Wea. Rev. 78, 1-3; fair: Ferro (2014), Q. J. R.
        Meteorol. Soc. 140, 1917-1923.
    """
    check_members(ensemble, axis)
    dtype = event_dtype(ensemble, event)
    # Only what counts is a probability: masked values may be anything.
    arrays = ensemble.astype(dtype), event.astype(dtype)
    seen = gather(*arrays, axis, where, ("ensemble", "event"))
    alpha = check_alpha(alpha, ensemble, axis, seen.truth.dtype)
    members = check_probability("ensemble", seen.members)
    happened = check_probability("event", seen.truth)
    errors = seen.masked(members - happened[None])
    return brier_of_errors(errors, seen.count, alpha).astype(dtype)


def brier_score_probability(
    probability: Float[Array, "..."], event: Event
) -> Float[Array, "..."]:
    """Return the Brier score of a probability, `(p - o)^2`, point by point.

    Args:
        probability: in [0, 1].
        event: whether it happened; broadcasts against `probability`.

    Returns:
        The score, from 0 to 1, in the dtype of `probability`.

    Raises:
        ValueError: the shapes do not broadcast.
        EquinoxRuntimeError: a known probability lies outside [0, 1].

    Source: Brier (1950), Mon. Wea. Rev. 78, 1-3.
    """
    shape = check_together(probability=probability, event=event)
    dtype = event_dtype(probability, event)
    wide = wide_dtype(dtype)
    probability = check_probability("probability", probability).astype(wide)
    event = check_probability("event", event).astype(wide)
    error = jnp.broadcast_to(probability, shape) - jnp.broadcast_to(event, shape)
    return (error**2).astype(dtype)


def event_dtype(ensemble: Array, event: Array):
    """Return the dtype of a score of events, of which booleans say nothing."""
    given = [x for x in (ensemble, event) if x.dtype != bool]
    return score_dtype(*given or [ensemble])


def brier_of_errors(
    errors: Float[Array, "member *points"],
    count: Float[Array, "*#points"],
    alpha: Float[Array, ""],
) -> Float[Array, "*points"]:
    """Return the score by the members' errors `e - o`, 0 for what does not count.

    `alpha` of the way from all pairs' products to those of two different members.
    """
    total = jnp.sum(errors, axis=0)
    # Errors have one sign, and a sum of them is no smaller than any: no cancellation.
    others = jnp.sum(errors * (total[None] - errors), axis=0)
    number = jnp.maximum(count, 1)
    fair = others / (number * jnp.maximum(count - 1, 1))
    score = (1 - alpha) * (total / number) ** 2 + alpha * fair
    enough = count >= jnp.where(alpha > 0, 2, 1).astype(count.dtype)
    return jnp.where(enough, score, 0)
