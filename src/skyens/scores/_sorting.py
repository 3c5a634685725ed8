"""Sorting along a short leading axis, with compare-exchange networks.

`jnp.sort` moves one column at a time. Here whole rows are compared, so the work is
minimum and maximum of long vectors, some ten times faster on CPU. A NaN spreads to
every row of its column.

Source: Batcher (1968), AFIPS Spring Joint Computer Conference 32, 307-314.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def sort_rows(rows: Sequence[Float[Array, "..."]]) -> list[Float[Array, "..."]]:
    """Return equally shaped arrays in ascending order, element by element.

    The odd-even merge network is unrolled, `M log(M)^2 / 4` exchanges, and XLA fuses
    it with what follows: the fastest way to some thirty rows, beyond which it takes
    too long to compile.
    """
    rows = list(rows)
    for lower, upper in _odd_even_merge(len(rows)):
        pair = rows[lower], rows[upper]
        rows[lower], rows[upper] = jnp.minimum(*pair), jnp.maximum(*pair)
    return rows


def _odd_even_merge(size: int) -> list[tuple[int, int]]:
    """Return the exchanges that sort `size` rows, for any size.

    They are those of the next power of two without the ones that touch a row past the
    end: such rows would hold infinity and never move.
    """
    exchanges = []
    length = 1
    while length < size:
        stride = length
        while stride:
            for start in range(stride % length, size - stride, 2 * stride):
                for lower in range(start, min(start + stride, size - stride)):
                    upper = lower + stride
                    if lower // (2 * length) == upper // (2 * length):
                        exchanges.append((lower, upper))
            stride //= 2
        length *= 2
    return exchanges


def sort_bitonic(array: Float[Array, "member points"]) -> Float[Array, "member points"]:
    """Return `array` in ascending order along its leading axis, of any length.

    Every stage is one minimum and one maximum of reshaped halves, so that the compile
    time grows with `log(M)^2`, not with the number of exchanges.
    """
    members, points = array.shape
    size = 1 << (members - 1).bit_length()
    padding = jnp.full((size - members, points), jnp.inf, array.dtype)
    array = jnp.concatenate([array, padding])
    length = 2
    while length <= size:
        # The first exchange of a merge mirrors the upper half, which makes the two
        # ascending runs one bitonic sequence; the later ones keep their order.
        array = _exchange(array, length // 2, mirrored=True)
        stride = length // 4
        while stride:
            array = _exchange(array, stride, mirrored=False)
            stride //= 2
        length *= 2
    return array[:members]


def _exchange(
    array: Float[Array, "size points"], stride: int, *, mirrored: bool
) -> Float[Array, "size points"]:
    size, points = array.shape
    halves = array.reshape(size // (2 * stride), 2, stride, points)
    order = slice(None, None, -1) if mirrored else slice(None)
    low, high = halves[:, 0], halves[:, 1, order]
    low, high = jnp.minimum(low, high), jnp.maximum(low, high)[:, order]
    return jnp.stack([low, high], axis=1).reshape(size, points)


def in_blocks(
    function: Callable[..., Float[Array, "..."]],
    *arrays: Array | None,
    block: int,
) -> Float[Array, "..."]:
    """Return `function(*arrays)`, computed for `block` points at a time.

    `function` works along the other axes only: points are the last axis of its result
    and of each array. On CPU a block stays in the cache, and the loop keeps the
    compiler from fusing a long network into the reductions that consume it, which
    would take it minutes. Elsewhere, where all points run at once, there are no blocks.
    """
    points = next(array.shape[-1] for array in arrays if array is not None)
    if points < 2 or jax.default_backend() != "cpu":
        return function(*arrays)
    block = min(block, -(-points // 2))  # at least two, as XLA unrolls a loop of one

    def cut(start):
        return [
            None if x is None else lax.dynamic_slice_in_dim(x, start, block, axis=-1)
            for x in arrays
        ]

    def write(index, result):
        # The last block starts early enough to be full: some points are done twice.
        start = jnp.minimum(index * block, points - block)
        return lax.dynamic_update_slice_in_dim(
            result, function(*cut(start)), start, axis=-1
        )

    piece = jax.eval_shape(function, *cut(0))
    empty = jnp.zeros((*piece.shape[:-1], points), piece.dtype)
    return lax.fori_loop(0, -(-points // block), write, empty)
