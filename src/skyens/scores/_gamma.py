"""Scores of a gamma forecast distribution, in closed form."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from skyens.scores._incomplete_functions import (
    gamma_ratio,
    gamma_slope,
    gamma_tails,
    log_gamma_slope,
)
from skyens.scores._location_scale import standardise, widest_reach
from skyens.scores._parameters import bring_together, positive


def crps_gamma(
    shape: Float[Array, "..."], scale: Float[Array, "..."], truth: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Return the CRPS of gamma distributions, point by point; lower is better.

    `scale ((w - shape) (2 F(w) - 1) + 2 w f(w) - 1 / B(1/2, shape))` with
    `w = truth / scale`, and `F` and `f` of scale 1. Where `scale` is 0 it is the
    absolute value of the truth; where `scale` is negative, or `shape` is not positive,
    NaN. Half precision is computed in float32.

    Args:
        shape: of the distribution, dimensionless.
        scale: one over the rate, in any units: the mean is `shape * scale`.
        truth: what happened, in the same units. The three broadcast.

    Raises:
        ValueError: the shapes do not broadcast.

    Source: Jordan, Krueger & Lerch (2019), J. Stat. Softw. 90(12), appendix A, with
        `F` at `shape + 1` written by `F` and `f` at `shape`.
    """
    dtype, points = bring_together(shape=shape, scale=scale, truth=truth)
    shape, scale, truth = points
    shape = positive(shape)
    scale = jnp.where(scale >= 0, scale, jnp.nan)
    return _crps(shape, scale, truth).astype(dtype)


def log_score_gamma(
    shape: Float[Array, "..."], scale: Float[Array, "..."], truth: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Return minus the log density of gamma distributions; lower is better.

    Infinite where the truth is not positive. NaN where `shape` or `scale` is not
    positive. Half precision is computed in float32.

    Args:
        shape: of the distribution, dimensionless.
        scale: one over the rate, in any units: the mean is `shape * scale`.
        truth: what happened, in the same units. The three broadcast.

    Returns:
        The score in nats, of a density per unit of the truth.

    Raises:
        ValueError: the shapes do not broadcast.

    Source: Jordan, Krueger & Lerch (2019), J. Stat. Softw. 90(12), appendix A.
    """
    dtype, points = bring_together(shape=shape, scale=scale, truth=truth)
    shape, scale, truth = points
    shape, scale = positive(shape), positive(scale)
    inside = jnp.where(truth > 0, truth, 1)
    score = jnp.log(inside) - log_gamma_slope(shape, inside / scale)
    # Adding the parameters keeps their NaN.
    return jnp.where(truth > 0, score, jnp.inf + shape + scale).astype(dtype)


@jax.custom_jvp
def _crps(shape, scale, truth):
    standardised = standardise(truth, scale, widest_reach(truth))
    by_truth, by_scale = _slopes(shape, standardised)
    return truth * by_truth + scale * by_scale


@_crps.defjvp
def _tangent(primals, tangents):
    shape, scale, truth = primals
    shape_dot, scale_dot, truth_dot = tangents
    standardised = standardise(truth, scale, widest_reach(truth))
    along = jnp.ones_like(shape)
    (by_truth, by_scale), (bend_truth, bend_scale) = jax.jvp(
        lambda shape: _slopes(shape, standardised), (shape,), (along,)
    )
    # Homogeneous of degree one in scale and truth, for any shape.
    value = truth * by_truth + scale * by_scale
    by_shape = scale * (standardised * bend_truth + bend_scale)
    tangent = by_truth * truth_dot + by_scale * scale_dot + by_shape * shape_dot
    return value, tangent


def _slopes(shape, standardised):
    lower, upper = gamma_tails(shape, standardised)
    balance = lower - upper
    ratio = gamma_ratio(shape) / math.sqrt(math.pi)
    return balance, 2 * gamma_slope(shape, standardised) - shape * balance - ratio
