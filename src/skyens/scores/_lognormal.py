"""Scores of a log-normal forecast distribution, in closed form."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from skyens.scores._incomplete_functions import legendre
from skyens.scores._location_scale import standardise
from skyens.scores._normal_functions import (
    LOG_ROOT_TWO_PI,
    REACH,
    balance,
    density,
    lower,
    mills,
)
from skyens.scores._parameters import bring_together, positive


def crps_lognormal(
    mean_log: Float[Array, "..."],
    std_log: Float[Array, "..."],
    truth: Float[Array, "..."],
) -> Float[Array, "..."]:
    """Return the CRPS of log-normal distributions, point by point; lower is better.

    `truth (2 Phi(w) - 1) - 2 m (Phi(w - s) + Phi(s / sqrt(2)) - 1)` with `s = std_log`,
    `w = (log(truth) - mean_log) / s` and `m = exp(mean_log + s^2 / 2)` the mean. Where
    `s` is 0 it is the absolute error of `exp(mean_log)`, where it is negative NaN. Half
    precision is computed in float32.

    Args:
        mean_log: the mean of the logarithm.
        std_log: the standard deviation of the logarithm, dimensionless.
        truth: what happened, in the units whose logarithm `mean_log` is; may be 0 or
            less. The three broadcast.

    Raises:
        ValueError: the shapes do not broadcast.

    Source: Jordan, Krueger & Lerch (2019), J. Stat. Softw. 90(12), appendix A.
    """
    dtype, points = bring_together(mean_log=mean_log, std_log=std_log, truth=truth)
    return _crps(*points).astype(dtype)


def log_score_lognormal(
    mean_log: Float[Array, "..."],
    std_log: Float[Array, "..."],
    truth: Float[Array, "..."],
) -> Float[Array, "..."]:
    """Return minus the log density of log-normal distributions; lower is better.

    `w^2 / 2 + log(s truth) + log(2 pi) / 2` with `s = std_log` and
    `w = (log(truth) - mean_log) / s`; infinite where the truth is not positive. NaN
    where `s` is not positive. Half precision is computed in float32.

    Args:
        mean_log: the mean of the logarithm.
        std_log: the standard deviation of the logarithm, dimensionless.
        truth: what happened, in the units whose logarithm `mean_log` is. The three
            broadcast.

    Returns:
        The score in nats, of a density per unit of the truth.

    Raises:
        ValueError: the shapes do not broadcast.

    Source: Jordan, Krueger & Lerch (2019), J. Stat. Softw. 90(12), appendix A.
    """
    dtype, points = bring_together(mean_log=mean_log, std_log=std_log, truth=truth)
    mean_log, std_log, truth = points
    std_log = positive(std_log)
    log_truth = jnp.log(jnp.where(truth > 0, truth, 1))
    standardised = (log_truth - mean_log) / std_log
    score = 0.5 * standardised**2 + jnp.log(std_log) + log_truth + LOG_ROOT_TWO_PI
    return jnp.where(truth > 0, score, jnp.inf + std_log + mean_log).astype(dtype)


@jax.custom_jvp
def _crps(mean_log, std_log, truth):
    return _value_and_slopes(mean_log, std_log, truth)[0]


@_crps.defjvp
def _tangent(primals, tangents):
    value, by_mean, by_std, by_truth = _value_and_slopes(*primals)
    mean_dot, std_dot, truth_dot = tangents
    return value, by_mean * mean_dot + by_std * std_dot + by_truth * truth_dot


def _value_and_slopes(mean_log, std_log, truth):
    inside = truth > 0
    departure = jnp.log(jnp.where(inside, truth, 1)) - mean_log
    standardised = standardise(departure, std_log, REACH)
    standardised = jnp.where(inside, standardised, -REACH)
    by_truth = balance(standardised)
    peak = jnp.where(inside, truth, 0) * density(standardised)
    spread = jnp.where(std_log < 0, jnp.nan, std_log)
    narrow = spread < 0.5
    small, large = jnp.where(narrow, spread, 0), jnp.where(narrow, 1, spread)
    mean = jnp.exp(mean_log + 0.5 * small**2)
    root = math.sqrt(2)
    # Small spreads: by how much Phi grows from w - s to w, as an integral of phi.
    growth = 2 * small * _mean_density(standardised - small, standardised)
    gain = growth - balance(small / root)
    narrow_value = (truth - mean) * by_truth + mean * gain
    narrow_slope = mean * (gain - by_truth)
    # Large spreads: m phi(w - s) = truth phi(w) tames the mean, which may overflow.
    ahead = large - standardised
    far = mean_log + 0.5 * large**2
    share = jnp.where(
        ahead > 0,
        peak * mills(jnp.maximum(ahead, 0)),
        jnp.exp(jnp.where(ahead > 0, 0, far)) * lower(jnp.maximum(-ahead, 0)),
    )
    half_mean = jnp.exp(mean_log + 0.25 * spread**2) / math.sqrt(2 * math.pi)
    wide_slope = 2 * (half_mean * mills(large / root) - share)
    by_mean = jnp.where(narrow, narrow_slope, wide_slope)
    value = jnp.where(narrow, narrow_value, truth * by_truth + wide_slope)
    by_std = spread * by_mean + 2 * peak - root * half_mean
    return value, by_mean, by_std, by_truth


def _mean_density(start, stop):
    """Return the mean of the normal density between two places less than 1/2 apart."""
    total = jnp.zeros_like(start)
    for node, weight in zip(*legendre(7), strict=True):
        total += float(weight) * density(start + float(node) * (stop - start))
    return total
