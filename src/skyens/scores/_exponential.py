"""Scores of an exponential forecast distribution, in closed form."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from skyens.scores._location_scale import crps_location_scale
from skyens.scores._parameters import bring_together, positive


def crps_exponential(
    scale: Float[Array, "..."], truth: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Return the CRPS of exponential distributions, point by point; lower is better.

    `|truth| - 2 scale F(truth) + scale / 2` with `F(x) = 1 - exp(-x / scale)`, and 0
    below 0. Where `scale` is 0 it is the absolute value of the truth, where it is
    negative NaN. Half precision is computed in float32.

    Args:
        scale: the mean, one over the rate, in any units.
        truth: what happened, in the same units. The two broadcast.

    Raises:
        ValueError: the shapes do not broadcast.

    Source: Jordan, Krueger & Lerch (2019), J. Stat. Softw. 90(12), appendix A.
    """
    dtype, (scale, truth) = bring_together(scale=scale, truth=truth)
    # From 800 scales on, exp(-w) is 0 in any precision.
    return crps_location_scale(_slopes, 800.0, truth, scale).astype(dtype)


def log_score_exponential(
    scale: Float[Array, "..."], truth: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Return minus the log density of exponential distributions; lower is better.

    `log scale + truth / scale`, infinite where the truth is negative. NaN where `scale`
    is not positive. Half precision is computed in float32.

    Args:
        scale: the mean, one over the rate, in any units.
        truth: what happened, in the same units. The two broadcast.

    Returns:
        The score in nats, of a density per unit of the truth.

    Raises:
        ValueError: the shapes do not broadcast.

    Source: Jordan, Krueger & Lerch (2019), J. Stat. Softw. 90(12), appendix A.
    """
    dtype, (scale, truth) = bring_together(scale=scale, truth=truth)
    scale = positive(scale)
    score = jnp.log(scale) + truth / scale
    return jnp.where(truth < 0, jnp.inf, score).astype(dtype)


def _slopes(standardised):
    inside = standardised >= 0
    size = jnp.where(inside, standardised, 0)
    by_truth = jnp.where(inside, 1 - 2 * jnp.exp(-size), -1)
    return by_truth, 0.5 + 2 * jnp.expm1(-size) + 2 * size * jnp.exp(-size)
