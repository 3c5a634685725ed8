"""Scores of a normal forecast distribution with point masses at its limits."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from skyens.scores._limits import array_limits, inside
from skyens.scores._location_scale import standardise
from skyens.scores._normal_functions import (
    LOG_ROOT_TWO_PI,
    REACH,
    balance,
    density as phi,
    log_upper,
    lower as below,
)
from skyens.scores._parameters import bring_together, positive


def crps_censored_normal(
    mean: Float[Array, "..."],
    std: Float[Array, "..."],
    truth: Float[Array, "..."],
    *,
    lower: float | Float[Array, "..."] = -math.inf,
    upper: float | Float[Array, "..."] = math.inf,
) -> Float[Array, "..."]:
    """Return the CRPS of censored normal distributions, point by point.

    What a normal variable would put beyond a limit stands at the limit: rain, with
    `lower=0`. With `A(z)` the integral of `Phi^2` up to z, and `z` each limit and the
    truth standardised, it is
    `std (A(z_truth) - A(z_lower) + A(-z_truth) - A(-z_upper))`. No term is large where
    the mean lies far beyond a limit, and score and slopes stay exact there. A truth
    beyond a limit adds its distance from it. Where `std` is 0 it is the absolute error;
    where `std` is negative, or `lower` exceeds `upper`, NaN. Half precision is computed
    in float32.

    Args:
        mean: of the normal variable before censoring, in any units.
        std: its standard deviation, in the same units.
        truth: what happened, in the same units.
        lower: the least value, in the same units, or none.
        upper: the greatest value, in the same units, or none. All five broadcast.

    Raises:
        ValueError: the shapes do not broadcast, or `lower` exceeds `upper` as a number.

    Source: Thorarinsdottir & Gneiting (2010), J. R. Stat. Soc. A 173, 371-388; Jordan,
        Krueger & Lerch (2019), J. Stat. Softw. 90(12), appendix A.
    """
    lower, upper = array_limits(lower, upper, mean, std, truth)
    dtype, points = bring_together(
        mean=mean, std=std, truth=truth, lower=lower, upper=upper
    )
    return _crps(*points).astype(dtype)


def log_score_censored_normal(
    mean: Float[Array, "..."],
    std: Float[Array, "..."],
    truth: Float[Array, "..."],
    *,
    lower: float | Float[Array, "..."] = -math.inf,
    upper: float | Float[Array, "..."] = math.inf,
) -> Float[Array, "..."]:
    """Return minus the log likelihood of censored normal distributions.

    Minus the log density between the limits, and minus the log probability of the point
    mass at a limit, exact however small. Infinite beyond the limits. NaN where `std` is
    not positive or `lower` exceeds `upper`. Half precision is computed in float32.

    Args:
        mean: of the normal variable before censoring, in any units.
        std: its standard deviation, in the same units.
        truth: what happened, in the same units.
        lower: the least value, in the same units, or none.
        upper: the greatest value, in the same units, or none. All five broadcast.

    Returns:
        The score in nats, of a density per unit of the truth or of a probability.

    Raises:
        ValueError: the shapes do not broadcast, or `lower` exceeds `upper` as a number.

    Source: Thorarinsdottir & Gneiting (2010), J. R. Stat. Soc. A 173, 371-388.
    """
    lower, upper = array_limits(lower, upper, mean, std, truth)
    dtype, points = bring_together(
        mean=mean, std=std, truth=truth, lower=lower, upper=upper
    )
    mean, std, truth, lower, upper = points
    std = positive(std)
    at_lower, at_upper = truth <= lower, truth >= upper
    standardised = (jnp.where(at_lower | at_upper, mean, truth) - mean) / std
    density = 0.5 * standardised**2 + jnp.log(std) + LOG_ROOT_TWO_PI
    # Where it is not asked for, a limit may be infinite: the mean stands in.
    mass = lambda at, sign, limit: (
        -log_upper(sign * (jnp.where(at, limit, mean) - mean) / std)
    )
    score = jnp.where(at_lower, mass(at_lower, -1, lower), density)
    score = jnp.where(at_upper, mass(at_upper, 1, upper), score)
    beyond = (truth < lower) | (truth > upper)
    score = jnp.where(beyond, jnp.inf + std + mean, score)
    score = jnp.where((lower == upper) & ~beyond, 0 * (std + mean), score)
    return jnp.where(lower <= upper, score, jnp.nan).astype(dtype)


@jax.custom_jvp
def _crps(mean, std, truth, lower, upper):
    inner = inside(truth, lower, upper)
    z, z_lower, z_upper = _standardised(mean, std, inner, lower, upper)
    # A is max(z, 0) and a bounded rest; the first in the units of the field is exact at
    # any offset, and a limit far off adds nothing.
    distance = jnp.maximum(inner, mean) - jnp.maximum(lower, mean)
    distance += jnp.minimum(upper, mean) - jnp.minimum(inner, mean)
    spread = _rest(z) - _rest(z_lower) + (_rest(-z) - _rest(-z_upper))
    return jnp.abs(truth - inner) + distance + std * spread


@_crps.defjvp
def _tangent(primals, tangents):
    mean, std, truth, lower, upper = primals
    inner = inside(truth, lower, upper)
    z, z_lower, z_upper = _standardised(mean, std, inner, lower, upper)
    by_lower, by_upper = -(below(z_lower) ** 2), below(-z_upper) ** 2
    outside = jnp.sign(truth - inner)
    by_truth = jnp.where(outside == 0, balance(z), outside)
    # Beyond a limit the truth pulls on it instead: moving all together moves nothing.
    pull = balance(z) - by_truth
    by_lower += jnp.where(outside < 0, pull, 0)
    by_upper += jnp.where(outside > 0, pull, 0)
    by_mean = -(by_truth + by_lower + by_upper)
    by_std = _by_std(z) - _by_std(z_lower) + (_by_std(-z) - _by_std(-z_upper))
    slopes = by_mean, by_std, by_truth, by_lower, by_upper
    tangent = sum(slope * dot for slope, dot in zip(slopes, tangents, strict=True))
    return _crps(*primals), tangent


def _standardised(mean, std, inner, lower, upper):
    std = jnp.where((std < 0) | ~(lower <= upper), jnp.nan, std)
    scaled = lambda x: standardise(x - mean, std, REACH) + 0 * std
    return scaled(inner), scaled(lower), scaled(upper)


def _rest(z):
    """Return the integral of `Phi^2` up to z, less `max(z, 0)`."""
    size = jnp.abs(z)
    tail = below(-size)
    peak = phi(size)
    far = (2 * peak - size * tail) * tail - below(-math.sqrt(2) * size) / math.sqrt(
        math.pi
    )
    return jnp.where(
        z > 0, 2 * (peak - size * tail) - far - 1 / math.sqrt(math.pi), far
    )


def _by_std(z):
    """Return the integral of `Phi^2` up to z, less `z Phi(z)^2`."""
    return 2 * phi(z) * below(z) - below(math.sqrt(2) * z) / math.sqrt(math.pi)
