"""Numbers and tables that multiply a state entry by entry."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


def aligned(
    name: str, factors: Float[Array, "*factors"], shape: tuple[int, ...], dtype: Any
) -> Float[Array, "*factors"]:
    """Return `factors` in `dtype`, if they broadcast to a state of this `shape`.

    Raises:
        ValueError: they do not, or have axes, but not as many as the state.
    """
    fits = factors.ndim == 0 or (
        factors.ndim == len(shape)
        and all(
            size in (1, mine) for size, mine in zip(factors.shape, shape, strict=True)
        )
    )
    if not fits:
        raise ValueError(
            f"`{name}` of shape {factors.shape} must be a number or broadcast to "
            f"states of shape {shape} with as many axes."
        )
    return factors.astype(dtype)


def wide(dtype: Any) -> Any:
    """Return `dtype`, or float32 where it is narrower."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)
