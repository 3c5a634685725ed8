"""The parameters of forecast distributions, checked and brought to one form."""

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from skyens.scores._members import check_together, wide_dtype


def bring_together(
    **arguments: Float[Array, "..."],
) -> tuple[DTypeLike, list[Float[Array, "*points"]]]:
    """Return the dtype of a score, and its arguments of one shape, widened.

    Half precision becomes float32, in which it is computed.

    Raises:
        ValueError: the shapes do not broadcast.
    """
    shape = check_together(**arguments)
    dtype = jnp.result_type(*arguments.values())
    wide = wide_dtype(dtype)
    return dtype, [jnp.broadcast_to(x.astype(wide), shape) for x in arguments.values()]


def positive(scale: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return `scale`, NaN where it is not positive: there is no density."""
    return jnp.where(scale > 0, scale, jnp.nan)
