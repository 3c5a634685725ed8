"""The linear maps under the spherical harmonics, each with its adjoint.

Analysis takes fields `(batch, latitude, longitude)` to coefficients `(batch, l, m)`;
synthesis goes back. Each is a JAX primitive, since both are linear and the reverse
derivative of one is the other, with the same tables: a gradient costs what the
transforms cost. Tables have no derivative: they are never trained.

In between lie rows `[m, s, (re, im) batch, j]`, the Fourier coefficients of the sums
(s = 0) and differences of a row and its mirror image, reordered so that `s` is the
parity of the degrees they hold, and degrees `[m, s, (re, im) batch, r]`, `l = 2 r + s`.
A Legendre sum is then one batched real matrix product for each block of orders.

Source: Schaeffer (2013), Geochem. Geophys. Geosyst. 14, 751-758 (parity folding).
"""

from collections.abc import Iterable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Complex, Float

_fixed = lambda: eqx.field(metadata={"trainable": False})

# Spare columns keep the strides of the transpositions off powers of two, where a
# column would fall into one cache set.
_PAD = 4


class Tables(eqx.Module):
    """Legendre tables for both directions, the triangle of orders cut into blocks.

    The same numbers are held in two orders, since a matrix product that contracts the
    last axis of a table is several times slower.
    """

    blocks: tuple[tuple[int, int, int], ...] = eqx.field(static=True)
    degrees: int = eqx.field(static=True)  # lmax + 1
    down: tuple[Float[Array, "_ 2 _ _"], ...] = _fixed()  # [m, s, j, r]
    up: tuple[Float[Array, "_ 2 _ _"], ...] = _fixed()  # [m, s, r, j]
    last: Float[Array, "orders j"] = _fixed()  # the degree above the others

    @classmethod
    def build(
        cls,
        blocks: tuple[tuple[int, int, int], ...],
        tables: Iterable[tuple[np.ndarray, np.ndarray]],
    ) -> "Tables":
        """Keep `P[m, s, r, j]` and degree `lmax + 1` in JAX's default float type."""
        down, up, last = [], [], []
        dtype = jnp.result_type(float)
        for table, beyond in tables:
            table = table.astype(dtype)
            up.append(jnp.asarray(table))
            down.append(jnp.asarray(np.ascontiguousarray(table.swapaxes(-1, -2))))
            last.append(beyond)
        beyond = jnp.asarray(np.concatenate(last), dtype)
        return cls(blocks, blocks[-1][1], tuple(down), tuple(up), beyond)

    @property
    def size(self) -> int:
        """The number of orders: `lmax + 1`, or those of one device."""
        return self.blocks[-1][1]

    @property
    def rows(self) -> int:
        """The rows of the half of the latitudes that the tables hold."""
        return self.last.shape[1]


def analysis(
    field: Float[Array, "*batch latitude longitude"],
    tables: Tables,
    *,
    beyond: bool,
    precision: lax.Precision,
) -> Complex[Array, "*batch l m"]:
    """Return `sum_j table[m, l, j] rfft(field)[j, m]`, `beyond`: to degree lmax + 1."""
    leaves, structure = jax.tree.flatten(lax.stop_gradient(tables))
    *batch, rows, columns = field.shape
    out = _analysis.bind(
        field.reshape(-1, rows, columns),
        *leaves,
        structure=structure,
        shape=(rows, columns),
        beyond=beyond,
        precision=precision,
    )
    return out.reshape(*batch, *out.shape[1:])


def synthesis(
    coefficients: Complex[Array, "*batch l m"],
    tables: Tables,
    *,
    shape: tuple[int, int],
    precision: lax.Precision,
) -> Float[Array, "*batch latitude longitude"]:
    """Return the field with these coefficients: to degree lmax, or lmax + 1."""
    leaves, structure = jax.tree.flatten(lax.stop_gradient(tables))
    *batch, degrees, size = coefficients.shape
    out = _synthesis.bind(
        coefficients.reshape(-1, degrees, size),
        *leaves,
        structure=structure,
        shape=shape,
        beyond=degrees > size,
        precision=precision,
    )
    return out.reshape(*batch, *shape)


def _analyse(field, *leaves, structure, shape, beyond, precision):
    tables = jax.tree.unflatten(structure, [t.astype(field.dtype) for t in leaves])
    rows = jnp.fft.rfft(fold(field))[..., : tables.size]
    return to_coefficients(by_order(rows), tables, beyond, precision)


def fold(rows):
    """`(batch, latitude, ...)` to sums and differences `(batch, s, j, ...)`."""
    n_latitude = rows.shape[1]
    half = (n_latitude + 1) // 2
    first, last = rows[:, :half], jnp.flip(rows, 1)[:, :half]
    folded = jnp.stack([first + last, first - last], 1)
    if n_latitude % 2:  # the middle row met itself
        once = np.r_[np.ones(half - 1), 0.5][None, None, :, None]
        folded = folded * jnp.asarray(once, rows.dtype)
    return folded


def by_order(rows):
    """Folded Fourier coefficients `(batch, s, j, m)` to `[m, s, (re, im) batch, j]`."""
    half, orders = rows.shape[-2:]
    # Two steps: in one, XLA's loop would miss the cache.
    rows = lax.optimization_barrier(jnp.swapaxes(rows, -1, -2))
    rows = jnp.stack([rows.real, rows.imag]).transpose(3, 2, 0, 1, 4)
    rows = swap_odd_orders(rows.reshape(orders, 2, -1, half))
    return lax.optimization_barrier(rows)


def to_coefficients(rows, tables, beyond, precision):
    """The Legendre sums of `rows[m, s, (re, im) batch, j]`."""
    size, product = tables.size, []
    sizes = [end - first for first, end, _ in tables.blocks]
    parts = lax.split(rows, sizes, 0)
    for part, table, (_, _, start) in zip(
        parts, tables.down, tables.blocks, strict=True
    ):
        block = jnp.einsum("msbj,msjr->msbr", part, table, precision=precision)
        product.append(jnp.pad(block, ((0, 0),) * 3 + ((start, _PAD),)))
    degrees = lax.optimization_barrier(jnp.concatenate(product))
    half = degrees.shape[-1] - _PAD
    degrees = degrees.reshape(size, 2, 2, -1, half + _PAD)[..., :half]
    degrees = degrees.transpose(2, 3, 4, 1, 0)
    degrees = degrees.reshape(2, degrees.shape[1], 2 * half, size)
    degrees = degrees[:, :, : tables.degrees]
    coefficients = lax.complex(degrees[0], degrees[1])
    if not beyond:
        return coefficients
    extra = jnp.einsum(
        "mbj,mj->bm", rows[:, tables.degrees % 2], tables.last, precision=precision
    )
    extra = extra.reshape(2, -1, 1, size)
    return jnp.concatenate([coefficients, lax.complex(extra[0], extra[1])], 1)


def _synthesise(coefficients, *leaves, structure, shape, beyond, precision):
    dtype = coefficients.real.dtype
    tables = jax.tree.unflatten(structure, [t.astype(dtype) for t in leaves])
    rows = to_rows(coefficients, tables, beyond, precision)
    return jnp.fft.irfft(unfold(rows, shape[0]), shape[1], norm="forward")


def unfold(rows, n_latitude: int):
    """`[m, s, (re, im) batch, j]` to Fourier coefficients `(batch, latitude, m)`."""
    orders, half = rows.shape[0], rows.shape[-1]
    rows = swap_odd_orders(rows).reshape(orders, 2, 2, -1, half)
    first, last = rows[:, 0] + rows[:, 1], jnp.flip(rows[:, 0] - rows[:, 1], -1)
    spare = jnp.zeros((*first.shape[:-1], _PAD), rows.dtype)
    rows = jnp.concatenate([first, last[..., n_latitude % 2 :], spare], -1)
    rows = lax.optimization_barrier(rows)
    rows = lax.complex(rows[:, 0], rows[:, 1])[..., :n_latitude]
    rows = rows.reshape(orders, -1).swapaxes(0, 1)
    return lax.optimization_barrier(rows).reshape(-1, n_latitude, orders)


def to_rows(coefficients, tables, beyond, precision):
    """The rows `[m, s, (re, im) batch, j]` of these coefficients."""
    size, count = tables.size, tables.degrees
    parts = jnp.stack([coefficients.real, coefficients.imag])[:, :, :count]
    parts = jnp.pad(parts, ((0, 0), (0, 0), (0, count % 2), (0, _PAD)))
    parts = lax.optimization_barrier(parts)[..., :size]
    parts = lax.optimization_barrier(jnp.swapaxes(parts, -1, -2))
    parts = parts.reshape(*parts.shape[:-1], -1, 2).transpose(2, 4, 0, 1, 3)
    degrees = parts.reshape(size, 2, -1, parts.shape[-1])
    degrees = lax.optimization_barrier(degrees)
    product = []
    sizes = [end - first for first, end, _ in tables.blocks]
    for part, table, (_, _, start) in zip(
        lax.split(degrees, sizes, 0), tables.up, tables.blocks, strict=True
    ):
        part = part[..., start:]
        product.append(jnp.einsum("msbr,msrj->msbj", part, table, precision=precision))
    rows = lax.optimization_barrier(jnp.concatenate(product))
    if beyond:
        extra = coefficients[:, count].swapaxes(0, 1)
        extra = jnp.concatenate([extra.real, extra.imag], 1)
        rows = rows.at[:, count % 2].add(extra[..., None] * tables.last[:, None])
    return rows


def swap_odd_orders(rows):
    """Exchange parity and degree-parity: harmonics are even where l + m is even."""
    odd = (np.arange(rows.shape[0]) % 2 == 1).reshape(-1, 1, 1, 1)
    return jnp.where(odd, jnp.flip(rows, 1), rows)


# ------------------------------------------------------------------------- their rules


def _analysis_shape(field, *leaves, structure, shape, beyond, precision):
    size = jax.tree.unflatten(structure, leaves).size
    dtype = np.result_type(field.dtype, np.complex64)
    return field.update(shape=(field.shape[0], size + beyond, size), dtype=dtype)


def _synthesis_shape(coefficients, *_, structure, shape, beyond, precision):
    dtype = np.finfo(coefficients.dtype).dtype
    return coefficients.update(shape=(coefficients.shape[0], *shape), dtype=dtype)


def _fourier_weights(like, inverse: bool):
    """How often the orders' real parts stand in a field: once for m = 0, else twice."""
    count = np.where(np.arange(like.shape[-1]) == 0, 1.0, 2.0)
    return jnp.asarray(1 / count if inverse else count, like.dtype)[None, None]


def _analysis_transpose(cotangent, _, *leaves, **parameters):
    weight = _fourier_weights(cotangent, inverse=True)
    back = _synthesis.bind(cotangent.conj() * weight, *leaves, **parameters)
    return back, *(None,) * len(leaves)


def _synthesis_transpose(cotangent, _, *leaves, **parameters):
    back = _analysis.bind(cotangent, *leaves, **parameters)
    weight = _fourier_weights(back, inverse=False)
    return back.conj() * weight, *(None,) * len(leaves)


def _linear(name: str, function, abstract, transpose) -> Primitive:
    """A primitive that is linear in its first operand and constant in the others."""
    primitive = Primitive(name)

    @partial(jax.jit, static_argnames=("structure", "shape", "beyond", "precision"))
    def call(*operands, **parameters):
        return primitive.bind(*operands, **parameters)

    def jvp(primals, tangents, **parameters):
        out = primitive.bind(*primals, **parameters)
        if isinstance(tangents[0], ad.Zero):
            return out, ad.Zero.from_primal_value(out)
        return out, primitive.bind(tangents[0], *primals[1:], **parameters)

    def batch(operands, axes, **parameters):
        if any(axis is not None for axis in axes[1:]):  # an ensemble of transforms
            return jax.vmap(partial(function, **parameters), axes)(*operands), 0
        x = jnp.moveaxis(operands[0], axes[0], 0)
        merged = x.reshape(-1, *x.shape[2:])
        out = primitive.bind(merged, *operands[1:], **parameters)
        return out.reshape(*x.shape[:2], *out.shape[1:]), 0

    primitive.def_impl(call)
    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = batch
    return primitive


_analysis = _linear(
    "spherical_analysis", _analyse, _analysis_shape, _analysis_transpose
)
_synthesis = _linear(
    "spherical_synthesis", _synthesise, _synthesis_shape, _synthesis_transpose
)
