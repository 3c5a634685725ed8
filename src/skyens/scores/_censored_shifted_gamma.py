"""Scores of a censored, shifted gamma forecast distribution, made for rain."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from skyens.scores._incomplete_functions import (
    gamma_ratio,
    gamma_slope,
    gamma_tails,
    log_gamma_lower,
    log_gamma_slope,
)
from skyens.scores._location_scale import standardise, widest_reach
from skyens.scores._parameters import bring_together, positive


def crps_censored_shifted_gamma(
    shape: Float[Array, "..."],
    scale: Float[Array, "..."],
    shift: Float[Array, "..."],
    truth: Float[Array, "..."],
) -> Float[Array, "..."]:
    """Return the CRPS of censored, shifted gamma distributions, point by point.

    The distribution of `max(G - shift, 0)` with G a gamma variable: a point mass at 0,
    then a skewed tail. In units of `scale`, with `G` of scale 1, `F` and `f` its
    distribution and density, `Q = 1 - F`, at `w = (truth + shift) / scale` and at
    `s = shift / scale`, it is `truth (1 - 2 Q_w) + (s - shape) (2 Q_s - 2 Q_w - Q_s^2)
    + 2 w f_w - 2 s f_s (1 - Q_s) - Q_(2 shape)(2 s) / B(1/2, shape)`: all but the first
    term vanish where rain is all but ruled out. A truth below 0 adds its distance from
    0. Where `scale` is 0 it is the distance from `max(-shift, 0)`; where `scale` is
    negative, or `shape` is not positive, NaN. Half precision is computed in float32.

    Args:
        shape: of the gamma variable, dimensionless.
        scale: of the gamma variable, in any units.
        shift: by which it is moved to the left, in the same units. If it is negative
            nothing is censored.
        truth: what happened, in the same units. The four broadcast.

    Raises:
        ValueError: the shapes do not broadcast.

    Source: Scheuerer & Hamill (2015), Mon. Wea. Rev. 143, 4578-4596; Baran & Nemoda
        (2016), Environmetrics 27, 280-292; written here by upper tails.
    """
    dtype, points = bring_together(shape=shape, scale=scale, shift=shift, truth=truth)
    shape, scale, shift, truth = points
    shape = positive(shape)
    scale = jnp.where(scale >= 0, scale, jnp.nan)
    inner = jnp.maximum(truth, 0)
    below = jnp.where(truth < 0, -truth, 0)
    return (below + _crps(shape, scale, shift, inner)).astype(dtype)


def log_score_censored_shifted_gamma(
    shape: Float[Array, "..."],
    scale: Float[Array, "..."],
    shift: Float[Array, "..."],
    truth: Float[Array, "..."],
) -> Float[Array, "..."]:
    """Return minus the log likelihood of censored, shifted gamma distributions.

    Minus the log probability of the point mass where the truth is 0, exact however
    small, and minus the log density above. Infinite where the truth is negative, or
    nothing can be. NaN where `shape` or `scale` is not positive. Half precision is
    computed in float32.

    Args:
        shape: of the gamma variable, dimensionless.
        scale: of the gamma variable, in any units.
        shift: by which it is moved to the left, in the same units. If it is negative
            nothing is censored.
        truth: what happened, in the same units. The four broadcast.

    Returns:
        The score in nats, of a density per unit of the truth or of a probability.

    Raises:
        ValueError: the shapes do not broadcast.

    Source: Scheuerer & Hamill (2015), Mon. Wea. Rev. 143, 4578-4596.
    """
    dtype, points = bring_together(shape=shape, scale=scale, shift=shift, truth=truth)
    shape, scale, shift, truth = points
    shape, scale = positive(shape), positive(scale)
    wet, dry = (truth > 0) & (truth + shift > 0), (truth == 0) & (shift > 0)
    total = jnp.where(wet, truth + shift, 1)
    density = jnp.log(total) - log_gamma_slope(shape, total / scale)
    mass = -log_gamma_lower(shape, jnp.where(dry, shift, scale) / scale)
    nothing = jnp.inf + shape + scale
    score = jnp.where(wet, density, jnp.where(dry, mass, nothing))
    return (score + 0 * (shape + scale)).astype(dtype)


@jax.custom_jvp
def _crps(shape, scale, shift, truth):
    by_shift, by_truth, by_scale = _slopes(shape, *_places(scale, shift, truth))
    return truth * by_truth + shift * by_shift + scale * by_scale


@_crps.defjvp
def _tangent(primals, tangents):
    shape, scale, shift, truth = primals
    shape_dot, scale_dot, shift_dot, truth_dot = tangents
    places = _places(scale, shift, truth)
    (by_shift, by_truth, by_scale), bends = jax.jvp(
        lambda shape: _slopes(shape, *places), (shape,), (jnp.ones_like(shape),)
    )
    # Homogeneous of degree one in all but the shape.
    start, end = places
    bend_shift, bend_truth, bend_scale = bends
    by_shape = scale * (start * bend_shift + (end - start) * bend_truth + bend_scale)
    tangent = by_truth * truth_dot + by_shift * shift_dot
    tangent += by_scale * scale_dot + by_shape * shape_dot
    return truth * by_truth + shift * by_shift + scale * by_scale, tangent


def _places(scale, shift, truth):
    reach = widest_reach(truth)
    return standardise(shift, scale, reach), standardise(truth + shift, scale, reach)


def _slopes(shape, start, end):
    """Return the slopes by shift, truth and scale, of places in units of the scale."""
    # All places at once, to compile once.
    shapes = jnp.stack([shape, shape, 2 * shape])
    _, (dry, after, pairs) = gamma_tails(shapes, jnp.stack([start, end, 2 * start]))
    at_start, at_end = gamma_slope(shapes[:2], jnp.stack([start, end]))
    by_shift = 2 * (dry - after) - dry**2
    by_scale = 2 * (at_end - at_start * (1 - dry))
    by_scale -= shape * by_shift + gamma_ratio(shape) * pairs / math.sqrt(math.pi)
    return by_shift, 1 - 2 * after, by_scale
