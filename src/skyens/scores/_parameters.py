"""The parameters of forecast distributions, checked and brought to one form."""

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from skyens.scores._members import (
    check_together,
    score_dtype,
    wide_dtype,
)


def bring_together(
    **arguments: Float[Array, "..."],
) -> tuple[DTypeLike, list[Float[Array, "*points"]]]:
    """Return the dtype of a score, and its arguments of one shape, widened.

    Half precision becomes float32, in which it is computed; numbers become arrays.

    Raises:
        ValueError: the shapes do not broadcast.
    """
    shape = check_together(**arguments)
    dtype = score_dtype(*arguments.values())
    wide = wide_dtype(dtype)
    points = (jnp.asarray(x).astype(wide) for x in arguments.values())
    return dtype, [jnp.broadcast_to(x, shape) for x in points]


def positive(scale: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return `scale`, NaN where it is not positive: there is no density."""
    return jnp.where(scale > 0, scale, jnp.nan)
