"""Half precision is for storage: means, phases and weights are taken in single."""

import jax.numpy as jnp
from jax.typing import DTypeLike


def at_least_single(dtype: DTypeLike) -> DTypeLike:
    """Return `dtype`, or float32 if it has fewer bits."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype
