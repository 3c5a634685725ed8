"""Half precision is for storage: sums are taken in single."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def at_least_single(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return `x`, in float32 if it has fewer bits."""
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x
