"""Distribution functions of gamma and Student's t, differentiable in their shapes.

Each is a finite sum that moves the shape up by ten, and there a Gauss-Legendre integral
outwards from the argument, where the integrand falls from 1 without a wiggle. Terms are
positive: nothing cancels, not in float32 or at shapes of a million, and derivatives in
the shape, which JAX's own functions lack or have no second of, follow term by term.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from jaxtyping import Array, Float

_STEPS = 10  # by which the shape moves up, before asymptotic series and integrals


def gamma_ratio(shape: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return `Gamma(shape + 1/2) / Gamma(shape)`, or sqrt(pi) over `B(1/2, shape)`.

    The asymptotic series in `shape - 1/4` has even powers only. Source: DLMF 5.11.8.
    """
    ratio = jnp.ones_like(shape)
    for step in range(_STEPS):
        ratio *= (shape + step) / (shape + step + 0.5)
    centre = shape + (_STEPS - 0.25)
    series = jnp.polyval(_constants(_RATIO_SERIES, shape), centre**-2) * centre**-2
    return ratio * jnp.sqrt(centre) * jnp.exp(series)


@jax.custom_jvp
def gamma_tails(
    shape: Float[Array, "*points"], x: Float[Array, "*points"]
) -> tuple[Float[Array, "*points"], Float[Array, "*points"]]:
    """Return `P(X <= x)` and `P(X > x)` of a gamma distribution of scale 1."""
    return _gamma_tails(shape, x)


@gamma_tails.defjvp
def _gamma_tangent(primals, tangents):
    shape, x = primals
    shape_dot, x_dot = tangents
    in_shape = lambda shape: _gamma_tails(shape, x)
    tails, (by_shape, _) = jax.jvp(in_shape, (shape,), (jnp.ones_like(shape),))
    safe = jnp.where(x > 0, x, 1)
    density = jnp.where(x > 0, gamma_slope(shape, x) / safe, 0)
    lower_dot = by_shape * shape_dot + density * x_dot
    return tails, (lower_dot, -lower_dot)


def log_gamma_lower(
    shape: Float[Array, "*points"], x: Float[Array, "*points"]
) -> Float[Array, "*points"]:
    """Return the logarithm of `P(X <= x)`, however small; -inf where `x` is 0 or less.

    Its gradient is 0 there.
    """
    log_lower, upper, is_lower = _gamma_parts(shape, x)
    upper = jnp.where(is_lower, 0, upper)
    logarithm = jnp.where(is_lower, log_lower, jnp.log1p(-upper))
    return jnp.where(x > 0, logarithm, -jnp.inf)


def gamma_slope(
    shape: Float[Array, "..."], x: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Return `x` times the density of a gamma distribution of scale 1; 0 below 0."""
    safe = jnp.where(x > 0, x, 1)
    return jnp.where(x > 0, shape * jnp.exp(_log_power(shape, safe)), 0)


def log_gamma_slope(
    shape: Float[Array, "..."], x: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Return the logarithm of `gamma_slope`, where `x` is positive."""
    return jnp.log(shape) + _log_power(shape, x)


@jax.custom_jvp
def student_upper(
    df: Float[Array, "*points"], x: Float[Array, "*points"]
) -> Float[Array, "*points"]:
    """Return `P(X > x)` of Student's t with `df` degrees of freedom, `x >= 0`.

    With `a = df / 2` and `y = df / (df + x^2)` it is half the incomplete beta function
    `I_y(a, 1/2)`; with `y = 1 / cosh(v)^2` that is the integral of `cosh(v)^-2a`.
    """
    return _student_upper(df, x)


@student_upper.defjvp
def _student_tangent(primals, tangents):
    df, x = primals
    df_dot, x_dot = tangents
    in_df = lambda df: _student_upper(df, x)
    upper, by_df = jax.jvp(in_df, (df,), (jnp.ones_like(df),))
    peak = gamma_ratio(df / 2) / jnp.sqrt(math.pi * df)
    density = peak * jnp.exp(-(df + 1) / 2 * jnp.log1p(x**2 / df))
    return upper, by_df * df_dot - density * x_dot


def _student_upper(df, x):
    half = df / 2
    log_share = -jnp.log1p(x**2 / df)
    share, slope = jnp.exp(log_share), x / jnp.sqrt(df + x**2)
    term, total = slope / half, jnp.zeros_like(x)
    for step in range(_STEPS):
        total += term
        term *= share * (half + step + 0.5) / (half + step + 1)
    moved = half + _STEPS
    end = jax.lax.stop_gradient(_student_end(moved, slope))

    def exponent(node):
        growth = 2 * jnp.sinh(node / 2) ** 2 + slope * jnp.sinh(node)
        return 2 * moved * jnp.log1p(growth)

    rest = 2 * gamma_ratio(moved) * share**_STEPS * _integral(exponent, end)
    power = jnp.exp(half * log_share) / (2 * math.sqrt(math.pi))
    return power * (gamma_ratio(half) * total + rest)


def _student_end(moved, slope):
    """Return where `moved log(cosh s + slope sinh s)` reaches half the full depth."""
    growth = jnp.expm1(_depth(moved) / (2 * moved))
    more = growth * (2 + growth)
    root = jnp.sqrt(slope**2 + more)
    return jnp.log1p((growth + more / (slope + root)) / (1 + slope))


def _gamma_tails(shape, x):
    log_lower, upper, is_lower = _gamma_parts(shape, x)
    lower = jnp.where(is_lower, jnp.exp(log_lower), 1 - upper)
    upper = jnp.where(is_lower, 1 - lower, upper)
    return jnp.where(x > 0, lower, 0), jnp.where(x > 0, upper, 1)


def _gamma_parts(shape, x):
    """Return log P below `shape + 10`, its complement above, and which of them holds.

    Above, `Q = x^a e^-x / Gamma(a)` times the integral of `exp(a s - x (e^s - 1))` over
    `s` from 0. Below, P is the like integral with `-s`, after steps up in the shape.
    """
    x = jnp.where(x > 0, x, 1)
    moved = shape + _STEPS
    is_lower = x <= moved
    parameter, sign = jnp.where(is_lower, moved, shape), jnp.where(is_lower, -1, 1)
    sign = sign.astype(x.dtype)
    distance = jnp.abs(x - parameter)
    end = jax.lax.stop_gradient(_gamma_end(parameter, x, distance, is_lower))

    def exponent(node):
        return distance * node + x * _exponential_rest(sign * node)

    integral = _integral(exponent, end)
    term, total = jnp.ones_like(x), 0
    below = jnp.where(is_lower, x, 1)
    for step in range(1, _STEPS + 1):
        total += term
        term *= below / (shape + step)
    log_power = _log_power(shape, x)
    log_lower = log_power + jnp.log(total + term * moved * integral)
    upper = shape * jnp.exp(log_power) * integral
    return log_lower, upper, is_lower


def _gamma_end(parameter, x, distance, is_lower):
    """Return a bound of where the exponent reaches the full depth.

    Of `e^-s - 1 + s >= s^2 / (2 + s)` below, of `e^s - 1 - s >= s^2 / 2` above.
    """
    depth = _depth(x)
    linear = 2 * distance - depth
    below = (jnp.sqrt(linear**2 + 8 * parameter * depth) - linear) / (2 * parameter)
    above = 2 * depth / (distance + jnp.sqrt(distance**2 + 2 * x * depth))
    return jnp.where(is_lower, below, above)


def _log_power(shape, x):
    """Return `log(x^shape e^-x / Gamma(shape + 1))`, exact at large shapes too."""
    # Logarithms of large numbers cancel: Stirling's series, if need be steps above.
    # Where `x` is small they are small, and where it is large the power is nothing.
    small = shape < _STEPS
    direct = small & ((x < 4) | (x > 1000))
    few, near = jnp.where(small, shape, 1), jnp.where(direct, 1, x)
    steps = jnp.ones_like(x)
    for step in range(1, _STEPS + 1):
        steps *= (few + step) / jnp.where(small, near, 1)
    many = jnp.where(small, shape + _STEPS, shape)
    series = jnp.polyval(_constants(_STIRLING_SERIES, x), many**-2) / many
    departure = (near - many) / many
    stirling = (
        -many * _log_rest(departure, jnp.log(near) - jnp.log(many))
        - 0.5 * jnp.log(2 * math.pi * many)
        - series
    )
    stirling += jnp.where(small, jnp.log(steps), 0)
    return jnp.where(direct, few * jnp.log(x) - x - gammaln(few + 1), stirling)


def _log_rest(x, log_more):
    """Return `x - log(1 + x)`, without cancellation at 0; `log_more` serves far off."""
    near = jnp.abs(x) < 0.5
    small, large = jnp.where(near, x, 0), jnp.where(near, 1, x)
    ratio = small / (2 + small)
    series = jnp.polyval(_constants(_ATANH_SERIES, x), ratio**2) * ratio**3
    return jnp.where(near, small * ratio - 2 * series, large - log_more)


def exponential_slope(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return `(e^x - 1) / x`, 1 at 0."""
    near = jnp.abs(x) < 0.5
    small, large = jnp.where(near, x, 0), jnp.where(near, 1, x)
    series = 1 + small * jnp.polyval(_constants(_EXPONENTIAL_SERIES, x), small)
    return jnp.where(near, series, jnp.expm1(large) / large)


def _exponential_rest(x):
    """Return `e^x - 1 - x`, without cancellation at 0."""
    near = jnp.abs(x) < 0.5
    small, large = jnp.where(near, x, 0), jnp.where(near, 1, x)
    series = jnp.polyval(_constants(_EXPONENTIAL_SERIES, x), small) * small**2
    return jnp.where(near, series, jnp.expm1(large) - large)


def _integral(
    exponent: Callable[[Float[Array, "*points"]], Float[Array, "*points"]],
    end: Float[Array, "*points"],
) -> Float[Array, "*points"]:
    """Return the integral of `exp(-exponent)` from 0 to `end`."""
    nodes, weights = legendre(32 if end.dtype == jnp.float64 else 16)
    rule = jnp.asarray(nodes, end.dtype), jnp.asarray(weights, end.dtype)

    def add(total, node_and_weight):
        node, weight = node_and_weight
        return total + weight * jnp.exp(-exponent(node * end)), None

    return end * jax.lax.scan(add, jnp.zeros_like(end), rule)[0]


def _depth(like):
    """Return the exponent from where on an integrand adds nothing."""
    return 38.0 if like.dtype == jnp.float64 else 18.0


@functools.cache
def legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the nodes and weights of Gauss and Legendre on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (1 + nodes) / 2, weights / 2


def _constants(values: tuple[float, ...], like: Array) -> Array:
    return jnp.asarray(values, like.dtype)


# Highest power first. Bernoulli numbers B_2k over 2k (2k - 1), in powers of shape^-2.
_STIRLING_SERIES = (
    -3617 / 122400, 1 / 156, -691 / 360360, 1 / 1188, -1 / 1680, 1 / 1260, -1 / 360,
    1 / 12,
)  # fmt: skip
# Euler numbers E_2k over -k 4^(2k + 1), in powers of (shape - 1/4)^-2.
_EULER_NUMBERS = (-1, 5, -61, 1385, -50521, 2702765, -199360981, 19391512145)
_RATIO_SERIES = tuple(
    -_EULER_NUMBERS[k - 1] / (k * 4 ** (2 * k + 1)) for k in range(8, 0, -1)
)
_ATANH_SERIES = tuple(1 / k for k in range(35, 2, -2))
_EXPONENTIAL_SERIES = tuple(1 / math.factorial(k) for k in range(16, 1, -1))
