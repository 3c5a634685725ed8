"""Scores of a normal forecast distribution without what lies beyond its limits.

The distribution is turned so that most of its mass lies at the limit it starts from, at
`start` standard deviations from the mean, and described by distances from there. Three
forms cover all cases without cancellation: the textbook's, where the mean lies between
the limits; one divided by the density at the start, by Mills' ratio, where it does not;
an integral over the density, where the limits are so close that it is almost uniform.
"""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from skyens.scores._incomplete_functions import legendre
from skyens.scores._limits import array_limits, inside
from skyens.scores._location_scale import widest_reach
from skyens.scores._normal_functions import (
    LOG_ROOT_TWO_PI,
    REACH,
    balance,
    density,
    mills,
    mills_deficit,
)
from skyens.scores._parameters import bring_together, positive


def crps_truncated_normal(
    mean: Float[Array, "..."],
    std: Float[Array, "..."],
    truth: Float[Array, "..."],
    *,
    lower: float | Float[Array, "..."] = -math.inf,
    upper: float | Float[Array, "..."] = math.inf,
) -> Float[Array, "..."]:
    """Return the CRPS of truncated normal distributions, point by point.

    That of a normal variable given that it lies between the limits, `std / Z^2` times
    `w Z (2 Phi(w) - Phi(u) - Phi(l)) + 2 phi(w) Z - (Phi(u') - Phi(l')) / sqrt(pi)`
    where `w`, `l`, `u` are truth and limits standardised, `Z = Phi(u) - Phi(l)`, and
    the primes multiply by the root of 2. Exact far in a tail, where Z is nothing, and
    between narrow limits. A truth beyond a limit adds its distance from it. Where `std`
    is 0 it is the distance from the mean or the limit nearest to it; where `std` is
    negative, or `lower` is not less than `upper`, NaN. Half precision is computed in
    float32.

    Args:
        mean: of the normal variable before truncation, in any units.
        std: its standard deviation, in the same units.
        truth: what happened, in the same units.
        lower: the least value, in the same units, or none.
        upper: the greatest value, in the same units, or none. All five broadcast.

    Raises:
        ValueError: the shapes do not broadcast, or `lower` exceeds `upper` as a number.

    Source: Jordan, Krueger & Lerch (2019), J. Stat. Softw. 90(12), appendix A;
        Gneiting et al. (2006), Mon. Wea. Rev. 134, 979-995, for `lower=0`.
    """
    lower, upper = array_limits(lower, upper, mean, std, truth)
    dtype, points = bring_together(
        mean=mean, std=std, truth=truth, lower=lower, upper=upper
    )
    mean, std, truth, lower, upper = points
    std = jnp.where((std >= 0) & (lower < upper), std, jnp.nan)
    # So small that slopes of quotients overflow, the spread is as good as none.
    sure = std <= float(jnp.finfo(std.dtype).tiny) ** 0.4
    inner = inside(truth, lower, upper)
    error = inner - inside(mean, lower, upper)
    spread = jnp.where(sure, 1, std)
    score = spread * _standard_scores(_place(mean, spread, inner, lower, upper))[0]
    score = jnp.where(sure, error * jnp.sign(error), score)
    beyond = truth - inner
    return (score + beyond * jnp.sign(beyond)).astype(dtype)


def log_score_truncated_normal(
    mean: Float[Array, "..."],
    std: Float[Array, "..."],
    truth: Float[Array, "..."],
    *,
    lower: float | Float[Array, "..."] = -math.inf,
    upper: float | Float[Array, "..."] = math.inf,
) -> Float[Array, "..."]:
    """Return minus the log density of truncated normal distributions.

    `w^2 / 2 + log(std Z) + log(2 pi) / 2`, with `w` the truth standardised and Z the
    probability of the normal variable between the limits, however small. Infinite
    beyond the limits. NaN where `std` is not positive, or `lower` not less than
    `upper`. Half precision is computed in float32.

    Args:
        mean: of the normal variable before truncation, in any units.
        std: its standard deviation, in the same units.
        truth: what happened, in the same units.
        lower: the least value, in the same units, or none.
        upper: the greatest value, in the same units, or none. All five broadcast.

    Returns:
        The score in nats, of a density per unit of the truth.

    Raises:
        ValueError: the shapes do not broadcast, or `lower` exceeds `upper` as a number.

    Source: Jordan, Krueger & Lerch (2019), J. Stat. Softw. 90(12), appendix A.
    """
    lower, upper = array_limits(lower, upper, mean, std, truth)
    dtype, points = bring_together(
        mean=mean, std=std, truth=truth, lower=lower, upper=upper
    )
    mean, std, truth, lower, upper = points
    std = positive(jnp.where(lower < upper, std, jnp.nan))
    inner = inside(truth, lower, upper)
    score = _standard_scores(_place(mean, std, inner, lower, upper))[1] + jnp.log(std)
    beyond = (truth < lower) | (truth > upper)
    return jnp.where(beyond, jnp.inf + std + mean, score).astype(dtype)


class _Place(NamedTuple):
    """A standardised distribution, turned to start where most of its mass lies."""

    start: Float[Array, "*points"]  # from the mean
    width: Float[Array, "*points"]  # from start to end, infinite without an end
    distance: Float[Array, "*points"]  # from start to truth
    truth: Float[Array, "*points"]  # from the mean
    end: Float[Array, "*points"]  # from the mean
    central: Bool[Array, "*points"]  # the mean lies between start and end
    narrow: Bool[Array, "*points"]  # start and end are near, the density almost flat


def _place(mean, std, truth, lower, upper):
    # Infinite limits must not be differentiated: the mean stands in, or the truth.
    no_lower, no_upper = jnp.isneginf(lower), jnp.isposinf(upper)
    low = (jnp.where(no_lower, truth, lower) - mean) / std
    high = (jnp.where(no_upper, truth, upper) - mean) / std
    below = (truth - jnp.where(no_lower, truth, lower)) / std
    above = (jnp.where(no_upper, truth, upper) - truth) / std
    width = below + above
    turned = no_lower & ~no_upper | (no_lower == no_upper) & (low + high < 0)
    error = (truth - mean) / std
    start, end = jnp.where(turned, -high, low), jnp.where(turned, -low, high)
    no_start, no_end = (
        jnp.where(turned, no_upper, no_lower),
        jnp.where(turned, no_lower, no_upper),
    )
    start, end = jnp.where(no_start, -jnp.inf, start), jnp.where(no_end, jnp.inf, end)
    width = jnp.where(no_end | no_start, jnp.inf, width)
    middle = jnp.where(jnp.isinf(width), jnp.inf, start + width / 2)
    # To the end the log density falls by the middle times the width.
    narrow = (width <= 1.5) & (jnp.where(width <= 1.5, middle * width, 9) <= 8)
    distance = jnp.where(turned, above, below)
    truth = jnp.where(turned, -error, error)
    return _Place(start, width, distance, truth, end, start <= 0, narrow)


def _standard_scores(place):
    """Return the CRPS and the log score of the standardised distribution."""
    scores = zip(_central(place), _tail(place), _narrow(place), strict=True)
    return [
        jnp.where(place.narrow, narrow, jnp.where(place.central, central, tail))
        for central, tail, narrow in scores
    ]


def _central(place):
    use = place.central & ~place.narrow
    start, end, truth = (
        jnp.where(use, x, y)
        for x, y in [(place.start, -1), (place.end, 1), (place.truth, 0)]
    )
    bounded = lambda x: jnp.where(jnp.abs(x) < REACH, x, REACH * jnp.sign(x))
    start, end, near = bounded(start), bounded(end), bounded(truth)
    mass = (balance(end) - balance(start)) / 2
    root = math.sqrt(2)
    pairs = (balance(root * end) - balance(root * start)) / (2 * math.sqrt(math.pi))
    tilt = balance(near) - (balance(start) + balance(end)) / 2
    crps = (truth * tilt + 2 * density(near) - pairs / mass) / mass
    return crps, 0.5 * truth**2 + jnp.log(mass) + LOG_ROOT_TWO_PI


def _tail(place):
    """Divide all by the density at the start, which lies beyond the mean."""
    use = ~place.central & ~place.narrow
    reach = widest_reach(place.start)
    start = jnp.where(use, jnp.minimum(place.start, reach), 1)
    distance = jnp.where(use, place.distance, 0)
    bounded = use & (place.width < REACH)
    width = jnp.where(bounded, place.width, REACH)
    # The density at a distance, over that at the start.
    fall = lambda along: jnp.exp(-along * (start + along / 2))
    near = jnp.minimum(distance, REACH)
    end, root = start + width, math.sqrt(2)
    # All places at once, to compile once.
    places = jnp.stack([start, start + near, end, root * start, root * end])
    ratios, deficits = mills(places), mills_deficit(places)
    # The probability of what lies beyond the end, and integrals of that beyond a place.
    lost = jnp.where(bounded, ratios[2] * fall(width), 0)
    mass = ratios[0] - lost
    to_truth = deficits[0] - deficits[1] * fall(near) - lost * near
    to_end = deficits[0] - deficits[2] * fall(width)
    squares = _squares(start, ratios[0], deficits[0], ratios[3], deficits[3])
    beyond = _squares(end, ratios[2], deficits[2], ratios[4], deficits[4])
    squares += lost * (lost * width - 2 * to_end) - beyond * fall(width) ** 2
    # Not by the square, whose own square, in the slope, may be no normal number.
    crps = distance - 2 * to_truth / mass + squares / mass / mass
    return crps, distance * (start + distance / 2) + jnp.log(mass)


def _squares(x, ratio, deficit, root_ratio, root_deficit):
    """Return the integral of `(1 - Phi)^2` above x, over the density squared at x.

    From Mills' ratio and its deficit at x and at `sqrt(2) x`.
    """
    outside = (root_deficit - deficit**2) / jnp.maximum(x, 1)
    inside = ratio * (2 - x * ratio) - math.sqrt(2) * root_ratio
    return jnp.where(x > 1, outside, inside)


def _narrow(place):
    start = jnp.where(place.narrow, place.start, 0)
    width = jnp.where(place.narrow, place.width, 1)
    distance = jnp.where(place.narrow, place.distance, 0)
    nodes, weights, above = (jnp.asarray(x, start.dtype) for x in _integration(16))
    along = lambda x: x.reshape(-1, *[1] * start.ndim)
    fall = lambda x: jnp.exp(-x * (start[None] + x / 2))
    total = lambda values: jnp.sum(along(weights) * values, axis=0)
    everywhere = fall(along(nodes) * width[None])
    mean_density = total(everywhere)
    survival = jnp.tensordot(above, everywhere, axes=1) / mean_density[None]
    before = along(nodes) * distance[None]
    share = distance / (width * mean_density)
    first = distance - distance * share * total((1 - along(nodes)) * fall(before))
    crps = distance - 2 * first + width * total(survival**2)
    return crps, distance * (start + distance / 2) + jnp.log(width * mean_density)


@functools.cache
def _integration(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return nodes and weights on [0, 1], and the matrix that integrates from a node.

    The integral up to 1 of the polynomial through values at the nodes, at each node.
    """
    nodes, weights = legendre(count)
    basis = np.polynomial.legendre.legvander(2 * nodes - 1, count)
    degree = np.arange(count)
    # P_n integrates to (P_(n+1) - P_(n-1)) / (2 n + 1), in half as wide a variable.
    below = np.concatenate([-np.ones((count, 1)), basis[:, : count - 1]], axis=1)
    integral = 0.5 * (below - basis[:, 1:]) / (2 * degree + 1)
    integral[:, 0] = 0.5 * (1 - (2 * nodes - 1))
    coefficients = (2 * degree + 1)[:, None] * basis[:, :count].T * weights[None]
    return nodes, weights, integral @ coefficients
