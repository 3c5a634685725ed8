"""A rank among any number of members, as shares of bins of the unit interval."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def bin_share(
    below: Float[Array, "..."],
    tied: Float[Array, "..."],
    count: Float[Array, "..."],
    index: Float[Array, ""],
    bins: int,
) -> Float[Array, "..."]:
    """Return the share of bin `index` of `bins` in a truth's part of the unit interval.

    `count` members divide the interval into `count + 1` parts; a truth above `below`
    of them and equal to `tied` has `tied + 1` of these, in equal shares. NaN in `below`
    stays. Lengths are counted in units of `1 / (bins (count + 1))`, so that they are
    whole numbers and float32 exact to 16 million.
    """
    parts = count + 1
    start, length = below * bins, (tied + 1) * bins
    overlap = jnp.minimum(start + length, (index + 1) * parts)
    overlap = jnp.maximum(overlap - jnp.maximum(start, index * parts), 0)
    return overlap / length
