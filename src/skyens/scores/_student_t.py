"""Scores of a Student's t forecast distribution, in closed form."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from skyens.scores._incomplete_functions import (
    exponential_slope,
    gamma_ratio,
    legendre,
    student_upper,
)
from skyens.scores._location_scale import standardise, widest_reach
from skyens.scores._parameters import bring_together, positive


def crps_student_t(
    df: Float[Array, "..."],
    location: Float[Array, "..."],
    scale: Float[Array, "..."],
    truth: Float[Array, "..."],
) -> Float[Array, "..."]:
    """Return the CRPS of Student's t distributions, point by point; lower is better.

    `scale (w (2 F(w) - 1) + 2 f(w) (df + w^2) / (df - 1) - c)` with
    `w = (truth - location) / scale` and
    `c = 2 sqrt(df) B(1/2, df - 1/2) / ((df - 1) B(1/2, df / 2)^2)`. The mean is finite
    for `df > 1`, but the integral of the CRPS for `df > 1/2`: across 1 the formula has
    a limit and is continued, at 1/2 and below the score is infinite. Where `scale` is 0
    it is the absolute error; where `scale` is negative, or `df` is not positive, NaN.
    Half precision is computed in float32.

    Args:
        df: the degrees of freedom, dimensionless; infinite for a normal distribution.
        location: the median, in any units.
        scale: of the distribution, in the same units.
        truth: what happened, in the same units. The four broadcast.

    Raises:
        ValueError: the shapes do not broadcast.

    Source: Jordan, Krueger & Lerch (2019), J. Stat. Softw. 90(12), appendix A.
    """
    dtype, points = bring_together(df=df, location=location, scale=scale, truth=truth)
    df, location, scale, truth = points
    df, scale = _bounded(positive(df)), jnp.where(scale >= 0, scale, jnp.nan)
    finite = ~(df <= 0.5)
    score = _crps(jnp.where(finite, df, 1), truth - location, scale)
    # Adding the arguments keeps their NaN, and the slopes finite.
    return jnp.where(finite, score, jnp.inf + scale).astype(dtype)


def log_score_student_t(
    df: Float[Array, "..."],
    location: Float[Array, "..."],
    scale: Float[Array, "..."],
    truth: Float[Array, "..."],
) -> Float[Array, "..."]:
    """Return minus the log density of Student's t; lower is better.

    `log scale + log(df) / 2 + log B(1/2, df / 2) + (df + 1) / 2 log(1 + w^2 / df)` with
    `w = (truth - location) / scale`. NaN where `df` or `scale` is not positive. Half
    precision is computed in float32.

    Args:
        df: the degrees of freedom, dimensionless; infinite for a normal distribution.
        location: the median, in any units.
        scale: of the distribution, in the same units.
        truth: what happened, in the same units. The four broadcast.

    Returns:
        The score in nats, of a density per unit of the truth.

    Raises:
        ValueError: the shapes do not broadcast.

    Source: Jordan, Krueger & Lerch (2019), J. Stat. Softw. 90(12), appendix A.
    """
    dtype, points = bring_together(df=df, location=location, scale=scale, truth=truth)
    df, location, scale, truth = points
    df, scale = _bounded(positive(df)), positive(scale)
    tail = jnp.log1p(((truth - location) / scale) ** 2 / df)
    peak = gamma_ratio(df / 2) / jnp.sqrt(math.pi * df)
    return (jnp.log(scale) - jnp.log(peak) + (df + 1) / 2 * tail).astype(dtype)


@jax.custom_jvp
def _crps(df, error, scale):
    by_error, by_scale = _slopes(df, standardise(error, scale, widest_reach(error)))
    return error * by_error + scale * by_scale


@_crps.defjvp
def _tangent(primals, tangents):
    df, error, scale = primals
    df_dot, error_dot, scale_dot = tangents
    standardised = standardise(error, scale, widest_reach(error))
    (by_error, by_scale), (bend_error, bend_scale) = jax.jvp(
        lambda df: _slopes(df, standardised), (df,), (jnp.ones_like(df),)
    )
    # Homogeneous of degree one in error and scale, for any degrees of freedom.
    value = error * by_error + scale * by_scale
    by_df = scale * (standardised * bend_error + bend_scale)
    tangent = by_error * error_dot + by_scale * scale_dot + by_df * df_dot
    return value, tangent


def _slopes(df, standardised):
    sign = jnp.sign(standardised)
    size = standardised * sign
    by_error = sign * (1 - 2 * student_upper(df, size))
    # (y^((df - 1) / 2) - c') / (df - 1) with y = 1 / (1 + w^2 / df), where c' and the
    # power pass 1 together with df: each less 1, by df - 1.
    excess = df - 1
    decay = -0.5 * jnp.log1p(size**2 / df)
    ratio, loss = _constants(df)
    rest = decay * exponential_slope(excess * decay)
    rest -= loss * exponential_slope(excess * loss)
    return by_error, 2 * jnp.sqrt(df / math.pi) * ratio * rest


def _constants(df):
    """Return `r(df / 2)` and `log(r(df / 2) / r(df - 1/2)) / (df - 1)`.

    Here `r` is the `gamma_ratio`. Near 1 the second is minus half the mean of the slope
    of log r between the two arguments.
    """
    near = jnp.abs(df - 1) < 0.25
    close, far = jnp.where(near, df, 1), jnp.where(near, 2, df)
    ratio, *quotient = gamma_ratio(jnp.stack([df / 2, far / 2, far - 0.5]))
    quotient = jnp.log(quotient[0] / quotient[1]) / (far - 1)
    nodes, weights = (
        jnp.asarray(x, df.dtype).reshape(-1, *[1] * df.ndim) for x in legendre(8)
    )
    between = (close[None] + nodes * (close - 1)[None]) / 2
    log_ratio = lambda x: jnp.log(gamma_ratio(x))
    _, slopes = jax.jvp(log_ratio, (between,), (jnp.ones_like(between),))
    mean = jnp.sum(weights * slopes, axis=0)
    return ratio, jnp.where(near, -0.5 * mean, quotient)


def _bounded(df):
    """Return `df`, without end 1e30: there the distribution has become normal."""
    return jnp.where(df > 1e30, 1e30, df)
