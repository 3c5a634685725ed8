"""The limits of a bounded distribution: numbers or arrays, in order."""

from typing import TypedDict

import jax.numpy as jnp
from jaxtyping import Array, Float


class Limits(TypedDict):
    """Both limits as arrays; numbers take the dtype of the other arguments."""

    lower: Float[Array, "..."]
    upper: Float[Array, "..."]


def broadcast_limits(
    lower: float | Float[Array, "..."],
    upper: float | Float[Array, "..."],
    *others: Float[Array, "..."],
) -> Limits:
    """Return the limits as arrays.

    Raises:
        ValueError: both are numbers, and `lower` exceeds `upper`.
    """
    if not isinstance(lower, Array) and not isinstance(upper, Array) and lower > upper:
        raise ValueError(f"`lower` is {lower}, more than `upper`, {upper}.")
    dtype = jnp.result_type(*others)
    as_array = lambda x: x if isinstance(x, Array) else jnp.asarray(x, dtype)
    return {"lower": as_array(lower), "upper": as_array(upper)}


def inside(
    x: Float[Array, "..."], lower: Float[Array, "..."], upper: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Return `x` between the limits; at one its slope is its own, not shared."""
    return jnp.where(x < lower, lower, jnp.where(x > upper, upper, x))
