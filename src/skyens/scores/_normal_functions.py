"""The normal distribution's functions, exact relative to their size in either tail."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf, erfc, erfcx
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

    Gauss and Hermite's rule makes it the continued fraction of Laplace, here as one
    quotient of polynomials in `1 / x^2`, all of whose coefficients are positive.
    """
    square = inverse**2
    terms = 30 if inverse.dtype == jnp.float64 else 10
    over, under = (jnp.asarray(x, inverse.dtype) for x in _quotient(terms))
    return square * jnp.polyval(over, square) / jnp.polyval(under, square)


def log_upper(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return `log(1 - Phi)`, however small, with exact slopes."""
    above = x > 0
    outside, inside = jnp.where(above, x, 0), jnp.where(above, 0, x)
    tail = jnp.log(mills(outside)) - 0.5 * outside**2 - LOG_ROOT_TWO_PI
    return jnp.where(above, tail, jnp.log1p(-lower(inside)))


def lower(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return `Phi`, exact relative to its size below the mean."""
    return 0.5 * erfc(-x / math.sqrt(2))


@functools.cache
def _quotient(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the coefficients of `sum w h^2 / (1 + h^2 t)`, highest power first."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    half = nodes > 0
    squares, weights = nodes[half] ** 2, 2 * weights[half] / math.sqrt(2 * math.pi)
    product = lambda roots: functools.reduce(
        np.polymul, ([root, 1.0] for root in roots), np.ones(1)
    )
    parts = [
        weight * square * product(np.delete(squares, i))
        for i, (square, weight) in enumerate(zip(squares, weights, strict=True))
    ]
    return np.sum(parts, axis=0), product(squares)


_NEAR = 4.0
