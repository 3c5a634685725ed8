"""Scores of a logistic forecast distribution, in closed form."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from skyens.scores._location_scale import crps_location_scale
from skyens.scores._parameters import bring_together, positive


def crps_logistic(
    location: Float[Array, "..."],
    scale: Float[Array, "..."],
    truth: Float[Array, "..."],
) -> Float[Array, "..."]:
    """Return the CRPS of logistic distributions, point by point; lower is better.

    `scale (w - 2 log F(w) - 1)` with `w = (truth - location) / scale` and
    `F(w) = 1 / (1 + exp(-w))`. Where `scale` is 0 it is the absolute error, where it is
    negative NaN. Half precision is computed in float32.

    Args:
        location: the mean, in any units.
        scale: the standard deviation times `sqrt(3) / pi`, in the same units.
        truth: what happened, in the same units. The three broadcast.

    Raises:
        ValueError: the shapes do not broadcast.

    Source: Jordan, Krueger & Lerch (2019), J. Stat. Softw. 90(12), appendix A.
    """
    dtype, points = bring_together(location=location, scale=scale, truth=truth)
    location, scale, truth = points
    # From 800 scales on, exp(-w) is 0 in any precision.
    return crps_location_scale(_slopes, 800.0, truth - location, scale).astype(dtype)


def log_score_logistic(
    location: Float[Array, "..."],
    scale: Float[Array, "..."],
    truth: Float[Array, "..."],
) -> Float[Array, "..."]:
    """Return minus the log density of logistic distributions; lower is better.

    `log scale + w + 2 log(1 + exp(-w))` with `w = (truth - location) / scale`. NaN
    where `scale` is not positive. Half precision is computed in float32.

    Args:
        location: the mean, in any units.
        scale: the standard deviation times `sqrt(3) / pi`, in the same units.
        truth: what happened, in the same units. The three broadcast.

    Returns:
        The score in nats, of a density per unit of the truth.

    Raises:
        ValueError: the shapes do not broadcast.

    Source: Jordan, Krueger & Lerch (2019), J. Stat. Softw. 90(12), appendix A.
    """
    dtype, points = bring_together(location=location, scale=scale, truth=truth)
    location, scale, truth = points
    scale = positive(scale)
    standardised = (truth - location) / scale
    score = jnp.log(scale) + standardised + 2 * jax.nn.softplus(-standardised)
    return score.astype(dtype)


def _slopes(standardised):
    # Even, and with the sign taken off nothing cancels in either tail.
    size = standardised * jnp.sign(standardised)
    decay = jnp.exp(-size)
    by_scale = 2 * size * decay / (1 + decay) + 2 * jnp.log1p(decay) - 1
    return jnp.tanh(standardised / 2), by_scale
