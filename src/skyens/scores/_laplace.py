"""Scores of a Laplace forecast distribution, in closed form."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from skyens.scores._location_scale import crps_location_scale
from skyens.scores._parameters import bring_together, positive


def crps_laplace(
    location: Float[Array, "..."],
    scale: Float[Array, "..."],
    truth: Float[Array, "..."],
) -> Float[Array, "..."]:
    """Return the CRPS of Laplace distributions, point by point; lower is better.

    `scale (|w| + exp(-|w|) - 3 / 4)` with `w = (truth - location) / scale`. Where
    `scale` is 0 it is the absolute error, where it is negative NaN. Half precision is
    computed in float32.

    Args:
        location: the mean and median, in any units.
        scale: the mean absolute deviation, in the same units.
        truth: what happened, in the same units. The three broadcast.

    Raises:
        ValueError: the shapes do not broadcast.

    Source: Jordan, Krueger & Lerch (2019), J. Stat. Softw. 90(12), appendix A.
    """
    dtype, points = bring_together(location=location, scale=scale, truth=truth)
    location, scale, truth = points
    # From 800 scales on, exp(-w) is 0 in any precision.
    return crps_location_scale(_slopes, 800.0, truth - location, scale).astype(dtype)


def log_score_laplace(
    location: Float[Array, "..."],
    scale: Float[Array, "..."],
    truth: Float[Array, "..."],
) -> Float[Array, "..."]:
    """Return minus the log density of Laplace distributions; lower is better.

    `log(2 scale) + |w|` with `w = (truth - location) / scale`; the slope is 0 at the
    peak. NaN where `scale` is not positive. Half precision is computed in float32.

    Args:
        location: the mean and median, in any units.
        scale: the mean absolute deviation, in the same units.
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
    # JAX gives |x| the slope 1 at 0; the sign gives it 0.
    size = standardised * jnp.sign(standardised)
    return (jnp.log(2 * scale) + size).astype(dtype)


def _slopes(standardised):
    size = standardised * jnp.sign(standardised)
    by_error = -jnp.sign(standardised) * jnp.expm1(-size)
    return by_error, (1 + size) * jnp.exp(-size) - 0.75
