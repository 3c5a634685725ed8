"""The variogram score: do the places of an event differ as much as they should?"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from skyens.scores._checks import check_known
from skyens.scores._crps import enough_members
from skyens.scores._events import gather_events
from skyens.scores._members import (
    check_alpha,
    check_members,
    score_dtype,
)


def variogram_score(
    ensemble: Float[Array, "..."],
    truth: Float[Array, "..."],
    *,
    order: float = 0.5,
    weights: Float[Array, "event event"] | None = None,
    alpha: float | Float[Array, ""] = 1.0,
    axis: int = 0,
    event_axes: tuple[int, ...] = (-1,),
    where: Bool[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Return the variogram score of the members along `axis`; lower is better.

    `sum_kl w_kl (|y_k - y_l|^p - mean_i |x_ik - x_il|^p)^2` over all pairs of entries
    of the event, both ways, with `p` the `order`. It sees errors of correlation that
    the energy score hardly sees, and is blind to a shift of all entries.

    For `alpha=0` it is that of the empirical distribution. The square of a mean over
    `M` members is too large by the variance of the mean; `alpha` times its unbiased
    estimate, the sample variance over `M`, is subtracted, so that for `alpha=1` the
    score is fair, unbiased in the number of members (and may be negative).

    Entry by entry in a loop: no more than the ensemble's own size is held beside it.
    The gradient of `|0|^p` counts as 0, also for `p < 1`. A NaN that `where` does not
    mask makes its point NaN.

    Args:
        ensemble: members along `axis`, in any units.
        truth: broadcasts against the ensemble without its member axis.
        order: exponent of the differences, positive; 0.5 and 1 are customary.
        weights: of the pairs, not negative, as the inverse of distances; by default
            all 1. With several event axes entries count with the last one fastest.
        alpha: 0 standard, 1 fair. It may be traced, as in `crps`.
        axis: the member axis of `ensemble`.
        event_axes: the axes that make up one event, as in `energy_score`.
        where: a mask against `ensemble`, of members or entries, as in `energy_score`.

    Returns:
        The score of each point, in units of the ensemble to the power of `2 order`.

    Raises:
        ValueError: `order` is not positive or `alpha` outside [0, 1], there are no
            members, or one and `alpha > 0`, `event_axes` are not there, `weights` are
            no square of the event's size, or the shapes do not broadcast.
        EquinoxRuntimeError: a known weight is negative.

    Source: Scheuerer & Hamill (2015), Mon. Wea. Rev. 143, 1321-1334.
    """
    check_members(ensemble, axis)
    if not order > 0:
        raise ValueError(f"`order` must be positive, got {order}.")
    events, shape = gather_events(ensemble, truth, axis, event_axes, where)
    members, truth_there, valid, known = events
    dtype, size = truth_there.dtype, truth_there.shape[0]
    alpha = check_alpha(alpha, ensemble, axis, dtype)
    weights = jnp.ones((size, size), dtype) if weights is None else weights
    if weights.shape != (size, size):
        raise ValueError(
            f"`weights` must have shape {(size, size)}, one for each pair of entries "
            f"of the event, got {weights.shape}."
        )
    weights = check_known("weights", "not negative", weights, lambda x: ~(x < 0))
    weights = weights.astype(dtype)
    count, enough = enough_members(alpha, members[:, 0], valid)
    present = jnp.ones(truth_there.shape, dtype)
    present = present if known is None else known.astype(dtype)

    # Without residuals: the backward pass computes each entry's differences again.
    @jax.checkpoint
    def add(total, entry):
        here, actual, weight, counted = entry
        rough = _power(members - here[:, None], order)
        rough = rough if valid is None else jnp.where(valid[:, None], rough, 0)
        mean = jnp.sum(rough, axis=0) / count[None]
        spread = (rough - mean[None]) ** 2
        spread = spread if valid is None else jnp.where(valid[:, None], spread, 0)
        variance = jnp.sum(spread, axis=0) / jnp.maximum(count - 1, 1)[None]
        error = _power(truth_there - actual[None], order) - mean
        term = error**2 - alpha * variance / count[None]
        pairs = weight[:, None] * present * counted[None]
        return total + jnp.sum(pairs * term, axis=0), None

    entries = jnp.moveaxis(members, 1, 0), truth_there, weights, present
    score, _ = lax.scan(add, jnp.zeros(truth_there.shape[1:], dtype), entries)
    score = jnp.where(enough, score, 0).reshape(shape)
    return score.astype(score_dtype(ensemble, truth))


def _power(difference: Float[Array, "..."], order: float) -> Float[Array, "..."]:
    """Return `|difference|^order`, with gradient 0 at 0."""
    zero = difference == 0
    size = jnp.abs(jnp.where(zero, 1, difference))
    return jnp.where(zero, 0, jnp.sqrt(size) if order == 0.5 else size**order)
