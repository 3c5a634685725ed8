"""The limits of a bounded distribution: numbers or arrays, in order."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from skyens.scores._members import score_dtype


def array_limits(
    lower: float | Float[Array, "..."],
    upper: float | Float[Array, "..."],
    *others: Float[Array, "..."],
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Return the limits as arrays; numbers take the dtype of the other arguments.

    Raises:
        ValueError: both are numbers, and `lower` exceeds `upper`.
    """
    if not isinstance(lower, Array) and not isinstance(upper, Array) and lower > upper:
        raise ValueError(f"`lower` is {lower}, more than `upper`, {upper}.")
    dtype = score_dtype(*others)
    as_array = lambda x: x if isinstance(x, Array) else jnp.asarray(x, dtype)
    return as_array(lower), as_array(upper)


def inside(
    x: Float[Array, "..."], lower: Float[Array, "..."], upper: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Return `x` between the limits; at one its slope is its own, not shared."""
    return jnp.where(x < lower, lower, jnp.where(x > upper, upper, x))
