"""Integers become floats, and half precision is for storage: sums are in single."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float


def as_float(x: ArrayLike) -> Float[Array, "*shape"]:
    """Return `x` as JAX's array: of integers, in the default float."""
    x = jnp.asarray(x)
    inexact = jnp.issubdtype(x.dtype, jnp.inexact)
    return x if inexact else x.astype(jnp.result_type(float))


def at_least_single(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return `x`, in float32 if it has fewer bits."""
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x
