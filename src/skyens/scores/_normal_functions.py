"""The normal distribution's functions, exact relative to their size in either tail."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf, erfcx
from jaxtyping import Array, Float

LOG_ROOT_TWO_PI = 0.5 * math.log(2 * math.pi)

# From 40 standard deviations on, phi is 0 and Phi 0 or 1 in any precision.
REACH = 40.0


def density(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the standard normal density phi."""
    return jnp.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)


def balance(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return `2 Phi - 1`, the probability below less that above."""
    return erf(x / math.sqrt(2))


@jax.custom_jvp
def mills(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return Mills' ratio `(1 - Phi) / phi`, for `x >= 0`."""
    near = x < _NEAR
    scaled = math.sqrt(math.pi / 2) * erfcx(jnp.where(near, x, 0) / math.sqrt(2))
    far = jnp.where(near, _NEAR, x)
    inverse = 1 / far
    return jnp.where(near, scaled, inverse * (1 - _far_deficit(inverse)))


@mills.defjvp
def _mills_tangent(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    return mills(x), -mills_deficit(x) * x_dot


def mills_deficit(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return `1 - x mills(x)`, about `1 / x^2` far out: minus the slope of `mills`."""
    near = x < _NEAR
    inside = jnp.where(near, x, 0)
    inverse = 1 / jnp.where(near, _NEAR, x)
    return jnp.where(near, 1 - inside * mills(inside), _far_deficit(inverse))


def _far_deficit(inverse):
    """Return the mean of `h^2 / (x^2 + h^2)` over standard normal h, by `1 / x`.

    Gauss and Hermite's rule makes it the continued fraction of Laplace.
    """
    total = jnp.zeros_like(inverse)
    for square, weight in _HERMITE:
        total += weight * square / (1 + square * inverse**2)
    return inverse**2 * total


def log_upper(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return `log(1 - Phi)`, however small, with exact slopes."""
    above = x > 0
    outside, inside = jnp.where(above, x, 0), jnp.where(above, 0, x)
    tail = jnp.log(mills(outside)) - 0.5 * outside**2 - LOG_ROOT_TWO_PI
    return jnp.where(above, tail, jnp.log1p(-lower(inside)))


def lower(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return `Phi`, exact relative to its size for `x <= 0`."""
    below = x < 0
    tail = density(x) * mills(jnp.where(below, -x, 0))
    return jnp.where(below, tail, 0.5 + 0.5 * balance(jnp.where(below, 0, x)))


def _hermite(count: int) -> list[tuple[float, float]]:
    """Return squared nodes and weights, of both signs together."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    half = nodes > 0
    weights = 2 * weights / math.sqrt(2 * math.pi)
    return list(zip((nodes[half] ** 2).tolist(), weights[half].tolist(), strict=True))


_NEAR = 4.0
_HERMITE = _hermite(30)
