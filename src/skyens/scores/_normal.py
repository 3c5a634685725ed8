"""Scores of a normal forecast distribution, in closed form."""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import erf
from jaxtyping import Array, Float


def crps_normal(
    mean: Float[Array, "..."], std: Float[Array, "..."], truth: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Return the CRPS of normal distributions, point by point; lower is better.

    `std (w (2 Phi(w) - 1) + 2 phi(w) - 1 / sqrt(pi))` with `w = (truth - mean) / std`.
    Where `std` is 0 it is the absolute error, with the one-sided derivative in `std`;
    where `std` is negative it is NaN. Half precision is computed in float32.

    Args:
        mean: of the distribution, in any units.
        std: its standard deviation, in the same units.
        truth: what happened, in the same units. The three broadcast.

    Raises:
        ValueError: the shapes do not broadcast.

    Source: Gneiting et al. (2005), Mon. Wea. Rev. 133, 1098-1118, equation 5.
    """
    shapes = mean.shape, std.shape, truth.shape
    try:
        shape = jnp.broadcast_shapes(*shapes)
    except ValueError:
        raise ValueError(
            "`mean`, `std` and `truth` do not broadcast: their shapes are "
            f"{shapes[0]}, {shapes[1]} and {shapes[2]}."
        ) from None
    dtype = jnp.result_type(mean, std, truth)
    wide = jnp.float32 if dtype.itemsize < 4 else dtype
    mean, std, truth = (
        jnp.broadcast_to(x.astype(wide), shape) for x in (mean, std, truth)
    )
    return _kernel(truth - mean, std).astype(dtype)


@jax.custom_jvp
def _kernel(
    error: Float[Array, "*points"], std: Float[Array, "*points"]
) -> Float[Array, "*points"]:
    by_error, by_std = _slopes(error, std)
    return error * by_error + std * by_std


@_kernel.defjvp
def _tangent(primals, tangents):
    # The score is homogeneous of degree one: its own slopes, by Euler, make it up.
    # What autodiff would add to them cancels, but overflows where `std` is tiny.
    by_error, by_std = _slopes(*primals)
    error_dot, std_dot = tangents
    return _kernel(*primals), by_error * error_dot + by_std * std_dot


def _slopes(error, std):
    positive = std > 0
    # From 40 standard deviations on, phi is 0 and Phi 0 or 1 in any precision.
    standardised = jnp.clip(error / jnp.where(positive, std, 1), -40, 40)
    sign = jnp.sign(error)
    standardised = jnp.where(positive, standardised, 40 * sign)
    by_error = erf(standardised / math.sqrt(2))
    density = jnp.exp(-0.5 * standardised**2) / math.sqrt(2 * math.pi)
    by_std = 2 * density - 1 / math.sqrt(math.pi)
    return by_error, jnp.where(std < 0, jnp.nan, by_std)
