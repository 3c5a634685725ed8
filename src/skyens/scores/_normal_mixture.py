"""Scores of a mixture of normal forecast distributions, as of dressed members."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from skyens.scores._checks import check_known
from skyens.scores._location_scale import standardise
from skyens.scores._members import (
    check_alpha,
    check_members,
    check_together,
    lead_with_members,
    points_of,
    score_dtype,
    wide_dtype,
)
from skyens.scores._normal_functions import LOG_ROOT_TWO_PI, REACH, balance, density
from skyens.scores._parameters import positive


def crps_normal_mixture(
    mean: Float[Array, "..."],
    std: Float[Array, "..."],
    truth: Float[Array, "..."],
    *,
    weights: Float[Array, "..."] | None = None,
    alpha: float | Float[Array, ""] = 0.0,
    axis: int = 0,
    where: Bool[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Return the CRPS of mixtures of normal distributions along `axis`, point by point.

    `sum_i w_i A(truth - m_i, s_i^2) - sum_ij w_i w_j A(m_i - m_j, s_i^2 + s_j^2) / 2`
    with `A(m, s^2)` the mean absolute value of a normal variable. That is the standard
    score, `alpha=0`; in the fair one, `alpha=1`, no component pairs with itself, and
    the other pairs weigh `1 / (1 - sum_i w_i^2)` times as much. It is the fair score
    expected of members dressed with independent normal errors. Where all `std` are 0 it
    is `crps(mean, truth, alpha=alpha)`; where one is negative, NaN. Half precision is
    computed in float32.

    Pairs are counted in a loop over components: memory is that of a few copies of
    `mean`, with gradients too. Equal components get equal gradients.

    Args:
        mean: of each component along `axis`, in any units.
        std: the standard deviation of each component, in the same units.
        truth: what happened, in the same units; broadcasts against `mean` and `std`
            without their component axis.
        weights: of each component, not negative, normalised here; equal if None.
            `mean`, `std` and `weights` broadcast.
        alpha: 0 standard, 1 fair, between as in `crps`.
        axis: the component axis.
        where: broadcasts against `mean` and `std`; components where it is False count
            nowhere. Points left with too few of them, none or (for `alpha > 0`) one,
            score 0.

    Raises:
        ValueError: `alpha` lies outside [0, 1], there are no components, or one and
            `alpha > 0`, or the shapes do not broadcast.
        EquinoxRuntimeError: a known weight that counts is negative.

    Source: Grimit et al. (2006), Q. J. R. Meteorol. Soc. 132, 2925-2942, equation 5.
    """
    dtype, means, stds, truth, shares, valid = _gather(
        mean, std, truth, weights, axis, where
    )
    alpha = check_alpha(alpha, means, 0, truth.dtype, "mean")
    stds = jnp.where(valid & (stds < 0), jnp.nan, stds)
    count = jnp.sum((shares > 0) & valid, axis=0)
    enough = count >= jnp.where(alpha > 0, 2, 1)
    # Fair pairs weigh more by one over the chance that two draws differ.
    differ = jnp.sum(shares * (1 - shares), axis=0)
    fair = 1 / jnp.where(enough & (alpha > 0), differ, 1)
    own = jnp.broadcast_to(1 - alpha, truth.shape)
    pairs = own + alpha * fair
    score = _crps(means - truth[None], stds, shares, pairs, own)
    return jnp.where(enough, score, 0).astype(dtype)


def log_score_normal_mixture(
    mean: Float[Array, "..."],
    std: Float[Array, "..."],
    truth: Float[Array, "..."],
    *,
    weights: Float[Array, "..."] | None = None,
    axis: int = 0,
    where: Bool[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Return minus the log density of mixtures of normal distributions along `axis`.

    Finite however far the truth lies from all components. NaN where a `std` is not
    positive. Half precision is computed in float32.

    Args:
        mean: of each component along `axis`, in any units.
        std: the standard deviation of each component, in the same units.
        truth: what happened, in the same units; broadcasts against `mean` and `std`
            without their component axis.
        weights: of each component, not negative, normalised here; equal if None.
            `mean`, `std` and `weights` broadcast.
        axis: the component axis.
        where: broadcasts against `mean` and `std`; components where it is False count
            nowhere. Points left with none score 0.

    Returns:
        The score in nats, of a density per unit of the truth.

    Raises:
        ValueError: there are no components, or the shapes do not broadcast.
        EquinoxRuntimeError: a known weight that counts is negative.

    Source: Gneiting & Raftery (2007), J. Amer. Stat. Assoc. 102, 359-378.
    """
    dtype, means, stds, truth, shares, valid = _gather(
        mean, std, truth, weights, axis, where
    )
    stds = positive(jnp.where(valid, stds, 1))
    standardised = (truth[None] - means) / stds
    counted = valid & (shares > 0)
    logs = jnp.log(jnp.where(counted, shares, 1)) - 0.5 * standardised**2
    logs -= jnp.log(stds) + LOG_ROOT_TWO_PI
    any_counted = jnp.any(counted, axis=0)
    # A point with none keeps one finite term, for the slopes of the logarithm.
    kept = counted | ~any_counted[None]
    peak = lax.stop_gradient(jnp.max(jnp.where(kept, logs, -jnp.inf), axis=0))
    peak = jnp.where(jnp.isfinite(peak), peak, 0)
    above = jnp.where(kept, logs - peak[None], -jnp.inf)
    total = jnp.sum(jnp.exp(above), axis=0)
    return jnp.where(any_counted, -peak - jnp.log(total), 0).astype(dtype)


def _gather(mean, std, truth, weights, axis, where):
    """Lead with the components, broadcast, widen, mask, and normalise the weights."""
    given = {"mean": mean, "std": std}
    given |= {} if weights is None else {"weights": weights}
    given |= {} if where is None else {"where": where}
    shape = check_together(**given)
    dtype = score_dtype(mean, std, truth)
    wide = wide_dtype(dtype)
    full = {name: jnp.broadcast_to(array, shape) for name, array in given.items()}
    check_members(full["mean"], axis, "mean")
    points = points_of(full["mean"], truth, axis, ("mean", "truth"))
    lead = {name: lead_with_members(x, axis, points) for name, x in full.items()}
    means, stds = lead["mean"].astype(wide), lead["std"].astype(wide)
    valid = lead.get("where", jnp.ones(means.shape, bool))
    shares = lead.get("weights", jnp.ones(means.shape, wide)).astype(wide)
    truth = jnp.broadcast_to(truth.astype(wide), points)
    # What is masked may be NaN; a constant in its place cuts off its gradient.
    truth = jnp.where(jnp.any(valid, axis=0), truth, 0)
    means, stds = jnp.where(valid, means, truth[None]), jnp.where(valid, stds, 0)
    shares = jnp.where(valid, shares, 0)
    shares = check_known("weights", "not negative", shares, lambda x: ~(x < 0))
    total = jnp.sum(shares, axis=0)
    shares /= jnp.where(total > 0, total, 1)[None]
    return dtype, means, stds, truth, shares, valid


@jax.custom_jvp
def _crps(errors, stds, shares, pairs, own):
    """Return the score; `pairs` scales pairs of two components, `own` of one twice."""
    return _value_and_slopes(errors, stds, shares, pairs, own)[0]


@_crps.defjvp
def _tangent(primals, tangents):
    value, by_error, by_std, by_share, by_pairs, by_own = _value_and_slopes(*primals)
    errors_dot, stds_dot, shares_dot, pairs_dot, own_dot = tangents
    tangent = by_error * errors_dot + by_std * stds_dot + by_share * shares_dot
    tangent = jnp.sum(tangent, axis=0)
    return value, tangent + by_pairs * pairs_dot + by_own * own_dot


def _value_and_slopes(errors, stds, shares, pairs, own):
    def add(sums, component):
        """Add what one component, paired with each, pulls and widens and measures."""
        error, std, share = (x[None] for x in component)
        spread, growth = _together(stds, std)
        slope, widening = _absolute_slopes(errors - error, spread)
        size = (errors - error) * slope + spread * widening
        terms = slope, widening * growth, size
        return [total + share * x for total, x in zip(sums, terms, strict=True)], None

    zeros = jnp.zeros_like(errors)
    (pull, widening, sizes), _ = lax.scan(add, [zeros] * 3, (errors, stds, shares))
    # Each has been paired with itself too, with spread `sqrt(2) std`.
    self_size = 2 / math.sqrt(math.pi) * stds
    mutual = jnp.sum(shares * sizes, axis=0)
    alone = jnp.sum(shares**2 * self_size, axis=0)
    near, near_widening = _absolute_slopes(errors, stds)
    to_truth = errors * near + stds * near_widening
    value = jnp.sum(shares * to_truth, axis=0)
    value -= 0.5 * (pairs * (mutual - alone) + own * alone)
    others, itself = pairs[None], (own - pairs)[None] * shares
    by_error = shares * (near - others * pull)
    by_std = near_widening - others * widening - itself / math.sqrt(math.pi)
    by_share = to_truth - others * sizes - itself * self_size
    by_pairs, by_own = -0.5 * (mutual - alone), -0.5 * alone
    return value, by_error, shares * by_std, by_share, by_pairs, by_own


def _absolute_slopes(mean, std):
    """Return the slopes of `A(mean, std^2)`, which they make up, by mean and std."""
    standardised = standardise(mean, std, REACH)
    return balance(standardised), 2 * density(standardised)


def _together(std, other):
    """Return `sqrt(std^2 + other^2)` and its slope in `std`.

    Where both are 0 the slope is that of both growing alike.
    """
    none = (std == 0) & (other == 0)
    total = jnp.hypot(jnp.where(none, 1, std), jnp.where(none, 0, other))
    return jnp.where(none, 0, total), jnp.where(none, math.sqrt(0.5), std / total)
