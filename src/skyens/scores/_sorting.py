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
    """Return `array` in ascending order along its leading axis, of any length."""
    lost = jnp.isnan(jnp.max(array, axis=0))
    ordered = sort_padded(array)[: array.shape[0]]
    return jnp.where(lost[None], jnp.nan, ordered)


def sort_padded(array: Float[Array, "member points"]) -> Float[Array, "padded points"]:
    """Return `array` in ascending order, and infinity in the rows up to a power of two.

    A NaN is kept, and spoils the order of its column: it is in some row, perhaps in one
    of those past the members.

    Sorted fours are merged to eights, sixteens, and so on. Each operation does two
    stages of the network: half the traffic between cache and registers, and a compile
    time that grows with `log(M)^2`, not with the number of exchanges.
    """
    members = array.shape[0]
    array = _sort_fours(_pad(array, 4))
    length = 8
    while length < 2 * members:
        array = _merge_pairs(_pad(array, length), length)
        length *= 2
    return array


def _pad(
    array: Float[Array, "member points"], multiple: int
) -> Float[Array, "padded points"]:
    missing = -array.shape[0] % multiple
    return jnp.pad(array, ((0, missing), (0, 0)), constant_values=jnp.inf)


def _sort_fours(array: Float[Array, "member points"]) -> Float[Array, "member points"]:
    members, points = array.shape
    fours = array.reshape(members // 4, 4, points)
    a, b, c, d = (fours[:, i] for i in range(4))
    (a, b), (c, d) = _exchange(a, b), _exchange(c, d)
    (a, c), (b, d) = _exchange(a, c), _exchange(b, d)
    b, c = _exchange(b, c)
    return jnp.stack([a, b, c, d], axis=1).reshape(array.shape)


def _merge_pairs(
    array: Float[Array, "member points"], length: int
) -> Float[Array, "member points"]:
    """Return runs of `length` sorted rows, from sorted runs of half that length."""
    # No size is left to be inferred: there may be no points.
    members, points = array.shape
    quarters = array.reshape(members // length, 4, length // 4, points)
    # The upper run mirrored makes one bitonic sequence of the two ascending ones. Its
    # upper half stays mirrored: that changes no later stage.
    a, b = quarters[:, 0], quarters[:, 1]
    d, c = quarters[:, 2, ::-1], quarters[:, 3, ::-1]
    array = _two_stages(a, b, c, d).reshape(array.shape)
    stride = length // 8
    while stride >= 2:
        size = members // (2 * stride)
        groups = array.reshape(size, 4, stride // 2, points)
        array = _two_stages(*(groups[:, i] for i in range(4))).reshape(array.shape)
        stride //= 4
    if stride:
        pairs = array.reshape(members // 2, 2, points)
        pair = _exchange(pairs[:, 0], pairs[:, 1])
        array = jnp.stack(pair, axis=1).reshape(array.shape)
    return array


def _two_stages(a: Array, b: Array, c: Array, d: Array) -> Array:
    """Return the quarters after an exchange at two quarters' distance, then at one."""
    (a, c), (b, d) = _exchange(a, c), _exchange(b, d)
    return jnp.stack([*_exchange(a, b), *_exchange(c, d)], axis=1)


def _exchange(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the lesser and the greater, element by element.

    Selected by one comparison each, which is a single instruction; `minimum` and
    `maximum` would be several. A NaN changes places, and nothing is lost.
    """
    return jnp.where(a < b, a, b), jnp.where(b > a, b, a)


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
