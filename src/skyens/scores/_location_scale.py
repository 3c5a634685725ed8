"""The CRPS of families that are shifted and scaled: `scale * c(error / scale)`.

Such a score is homogeneous of degree one in error and scale: its slopes in them, `2 F -
1` and `c - w (2 F - 1)` at the standardised error `w`, make it up by Euler's theorem.
What autodiff would add to the slopes cancels, but overflows where the scale is tiny.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# The slopes by error and by scale at a standardised error.
Slopes = Callable[[Float[Array, "..."]], tuple[Array, Array]]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def crps_location_scale(
    slopes: Slopes,
    reach: float,
    error: Float[Array, "*points"],
    scale: Float[Array, "*points"],
) -> Float[Array, "*points"]:
    """Return the CRPS, the absolute error where `scale` is 0, NaN where it is negative.

    Standardised errors beyond `reach` count as `reach`, where the slopes have their
    limits.
    """
    by_error, by_scale = _slopes(slopes, reach, error, scale)
    return error * by_error + scale * by_scale


@crps_location_scale.defjvp
def _tangent(slopes, reach, primals, tangents):
    (error, scale), (error_dot, scale_dot) = primals, tangents
    by_error, by_scale = _slopes(slopes, reach, error, scale)
    value = error * by_error + scale * by_scale
    return value, by_error * error_dot + by_scale * scale_dot


def standardise(
    error: Float[Array, "*points"], scale: Float[Array, "*points"], reach: float
) -> Float[Array, "*points"]:
    """Return `error / scale` within `reach`, and of its sign where `scale` is 0."""
    # What is beyond is never divided: the quotient's slopes might overflow.
    beyond = jnp.abs(error) >= reach * scale
    inner = jnp.where(beyond, 0, error) / jnp.where(beyond, 1, scale)
    return jnp.where(beyond, reach * jnp.sign(error), inner)


def widest_reach(like: Float[Array, "..."]) -> float:
    """Return the largest standardised value whose powers up to four are finite.

    From there on heavy tails stand at their limits too.
    """
    return float(jnp.finfo(like.dtype).max) ** 0.25


def _slopes(slopes, reach, error, scale):
    by_error, by_scale = slopes(standardise(error, scale, reach))
    return by_error, jnp.where(scale < 0, jnp.nan, by_scale)
