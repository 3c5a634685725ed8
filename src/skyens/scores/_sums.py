"""Sums that lose nothing: two floats of one precision hold about twice its digits."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, DTypeLike, Float


class Sum(eqx.Module):
    """A running sum as an unevaluated pair, `high + low`.

    What rounding takes from `high` is kept in `low`, so that millions of float32 terms
    add up as in float64, in any order and any grouping.

    Source: Ogita, Rump & Oishi (2005), SIAM J. Sci. Comput. 26, 1955-1988.
    """

    high: Float[Array, "*shape"]
    low: Float[Array, "*shape"]

    @staticmethod
    def zeros(shape: tuple[int, ...], dtype: DTypeLike) -> "Sum":
        """Return a sum over nothing."""
        return Sum(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    @staticmethod
    def over(values: Float[Array, "..."], keep: int) -> "Sum":
        """Return the sum of `values` over all axes but the `keep` leading ones."""
        return Sum(*_reduce(values, keep))

    def merge(self, other: "Sum") -> "Sum":
        """Return the sum of both, which have equal shapes and dtypes."""
        return Sum(*_add((self.high, self.low), (other.high, other.low)))

    def astype(self, dtype: DTypeLike) -> "Sum":
        """Return the same sum as a pair of another precision."""
        high = self.high.astype(dtype)
        rest = (self.high - high.astype(self.high.dtype)) + self.low
        rest = jnp.where(jnp.isinf(high), 0, rest.astype(dtype))
        return Sum(*_two_sum(high, rest))

    @property
    def value(self) -> Float[Array, "*shape"]:
        """The sum, rounded once."""
        return self.high + self.low


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return `a + b` rounded, and exactly what the rounding lost (Knuth)."""
    total = a + b
    share = total - a
    error = (a - (total - share)) + (b - share)
    # An infinite sum has lost nothing, and infinity less infinity would be NaN.
    return total, jnp.where(jnp.isinf(total), 0, error)


def _add(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return the sum of two pairs."""
    high, error = _two_sum(a[0], b[0])
    return _two_sum(high, error + (a[1] + b[1]))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _reduce(values: Array, keep: int) -> tuple[Array, Array]:
    zero = np.zeros((), values.dtype)
    # Constant weights would be added up while compiling, for minutes; and joined to
    # this sum, the sums over members before it would read memory crosswise.
    values = lax.optimization_barrier(values)
    pairs = values, jnp.zeros_like(values)
    high, low = lax.reduce(pairs, (zero, zero), _add, tuple(range(keep, values.ndim)))
    return high, low


@_reduce.defjvp
def _reduce_tangent(keep, primals, tangents):
    (values,), (slope,) = primals, tangents
    total = _reduce(values, keep)
    slope = jnp.sum(slope, axis=tuple(range(keep, values.ndim)))
    return total, (slope, jnp.zeros_like(slope))


Sums = dict[str, Sum]


def empty_sums(shapes: dict[str, tuple[int, ...]], dtype: DTypeLike | None) -> Sums:
    """Return zero sums of the shapes given by name.

    Raises:
        ValueError: `dtype` is neither float32 nor float64.
    """
    kind = jnp.zeros((), float if dtype is None else dtype).dtype
    if kind not in (jnp.float32, jnp.float64):
        raise ValueError(f"`dtype` must be float32 or float64, got {dtype}.")
    return {name: Sum.zeros(shape, kind) for name, shape in shapes.items()}


def add_terms(sums: Sums, **terms: Float[Array, "..."] | Sum) -> Sums:
    """Return `sums` plus terms, summed over the axes that each sum does not keep."""
    added = {}
    for name, term in terms.items():
        total = sums[name].high
        term = term if isinstance(term, Sum) else Sum.over(term, total.ndim)
        added[name] = term.astype(total.dtype)
    return merge_sums(sums, added)


def merge_sums(first: Sums, second: Sums) -> Sums:
    """Return the sums of both states, name by name.

    Raises:
        ValueError: the states differ in names, shapes or dtypes.
    """
    if (a := _summary(first)) != (b := _summary(second)):
        raise ValueError(f"States of different kinds do not merge: {a} and {b}.")
    return {name: total.merge(second[name]) for name, total in first.items()}


def _summary(sums: Sums) -> dict[str, str]:
    return {
        name: f"{total.high.dtype}{list(total.high.shape)}"
        for name, total in sums.items()
    }


def ratio(
    numerator: Float[Array, "..."], denominator: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Return the quotient, and 0 with gradient 0 where the denominator is 0."""
    zero = denominator == 0
    return jnp.where(zero, 0, numerator / jnp.where(zero, 1, denominator))


def root(square: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the square root, with gradient 0 at 0."""
    zero = square == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))
