"""The linear maps under the spherical harmonics, each with its adjoint.

Analysis takes fields `(batch, latitude, longitude)` to coefficients `(batch, l, m)`;
synthesis goes back. Each is a JAX primitive, since both are linear and the reverse
derivative of one is the other, with the same tables: a gradient costs what the
transforms cost. Tables have no derivative: they are never trained.

In between lie rows `[m, s, (re, im) batch, j]`: Fourier coefficients of row `j`, plus
(s + m even) or minus its mirror image, which is what degrees of parity `s` see; and
degrees `[m, s, (re, im) batch, r]`, `l = 2 r + s`. A Legendre sum is then one batched
real matrix product for each block of orders.

Source: Schaeffer (2013), Geochem. Geophys. Geosyst. 14, 751-758 (parity folding).
"""

import math
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
        field.reshape(math.prod(batch), rows, columns),
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
        coefficients.reshape(math.prod(batch), degrees, size),
        *leaves,
        structure=structure,
        shape=shape,
        beyond=degrees > size,
        precision=precision,
    )
    return out.reshape(*batch, *shape)


def _analyse(field, *leaves, structure, shape, beyond, precision):
    tables = jax.tree.unflatten(structure, [t.astype(field.dtype) for t in leaves])
    return legendre_sums(jnp.fft.rfft(field), tables, beyond, precision)


def legendre_sums(rows, tables: Tables, beyond: bool, precision):
    """Fourier coefficients `(batch, latitude, m)` to coefficients `(batch, l, m)`."""
    batch, n_latitude = rows.shape[:2]
    degrees, half = tables.degrees, tables.rows
    once = np.ones(half)
    once[n_latitude // 2 :] = 0.5  # a middle row meets itself
    once = jnp.asarray(once, rows.real.dtype)[None, None, None, None]
    out = jnp.zeros((batch, degrees + beyond, tables.size), rows.dtype)
    for table, (first, end, start) in zip(tables.down, tables.blocks, strict=True):
        # Two steps to [m, s, (re, im) batch, j]: in one, XLA's loop misses the cache.
        part = jnp.swapaxes(rows[..., first:end], -1, -2)
        part = lax.optimization_barrier(part)
        part = jnp.stack([part.real, part.imag]).transpose(2, 0, 1, 3)[:, None]
        sign = _mirror_sign(first, end, part.dtype)[:, :, None, None, None]
        part = (part[..., :half] + sign * jnp.flip(part, -1)[..., :half]) * once
        part = part.reshape(end - first, 2, 2 * batch, half)
        part = lax.optimization_barrier(_with_spare(part))
        sums = jnp.einsum("msbj,msjr->msbr", part, table, precision=precision)
        sums = sums[:, :, : 2 * batch].reshape(end - first, 2, 2, batch, -1)
        sums = sums.transpose(2, 3, 4, 1, 0).reshape(2, batch, -1, end - first)
        sums = sums[:, :, : degrees - 2 * start]
        sums = lax.complex(sums[0], sums[1])
        if len(tables.blocks) == 1 and not beyond:
            return sums
        out = lax.dynamic_update_slice(out, sums, (0, 2 * start, first))
        if beyond:
            part = part[:, degrees % 2, : 2 * batch]
            last = tables.last[first:end]
            sums = jnp.einsum("mbj,mj->bm", part, last, precision=precision)
            sums = lax.complex(sums[:batch], sums[batch:])[:, None]
            out = lax.dynamic_update_slice(out, sums, (0, degrees, first))
    return out


def _synthesise(coefficients, *leaves, structure, shape, beyond, precision):
    dtype = coefficients.real.dtype
    tables = jax.tree.unflatten(structure, [t.astype(dtype) for t in leaves])
    n_latitude, n = shape
    # A real field has no imaginary part of order 0.
    keep = jnp.asarray(np.arange(tables.size) > 0, dtype)[None, None]
    imaginary = coefficients.imag * keep
    coefficients = lax.complex(coefficients.real, imaginary)
    # A row and its mirror image are the real and the imaginary part of one complex
    # row: half as many Fourier transforms.
    out = jnp.zeros((coefficients.shape[0], tables.rows, n), coefficients.dtype)
    for (first, end, _), ((a, b), (c, d)) in zip(
        tables.blocks, harmonic_rows(coefficients, tables, precision), strict=True
    ):
        parts = jnp.stack([a - d, b + c, a + d, c - b])
        # A spare column, for the stride of the transposition.
        parts = jnp.pad(parts, ((0, 0),) * 3 + ((0, 4),))
        parts = lax.optimization_barrier(parts)[..., : tables.rows]
        parts = jnp.moveaxis(parts, 1, -1)
        onward = lax.complex(parts[0], parts[1])
        backward = jnp.flip(lax.complex(parts[2], parts[3]), -1)
        if first == 0:  # order 0 has no negative
            backward = backward[..., :-1]
        if len(tables.blocks) == 1:
            between = out[..., : n - onward.shape[-1] - backward.shape[-1]]
            out = jnp.concatenate([onward, between, backward], -1)
        else:
            out = lax.dynamic_update_slice(out, onward, (0, 0, first))
            start = n - end + 1
            out = lax.dynamic_update_slice(out, backward, (0, 0, start))
    pairs = jnp.fft.ifft(lax.optimization_barrier(out), norm="forward")
    mirrored = jnp.flip(pairs.imag, 1)[:, n_latitude % 2 :]
    return jnp.concatenate([pairs.real, mirrored], 1)


def harmonic_rows(coefficients, tables: Tables, precision):
    """Yield, block by block, rows `[(re, im), m, batch, j]` and their mirror images.

    `coefficients` may have one degree more than the tables.
    """
    batch, degrees = coefficients.shape[0], tables.degrees
    for table, (first, end, start) in zip(tables.up, tables.blocks, strict=True):
        part = coefficients[:, 2 * start : degrees, first:end]
        part = jnp.stack([part.real, part.imag])
        part = jnp.pad(part, ((0, 0), (0, 0), (0, degrees % 2), (0, 0)))
        # Two steps, as above.
        part = lax.optimization_barrier(jnp.swapaxes(part, -1, -2))
        part = part.reshape(*part.shape[:3], -1, 2).transpose(2, 4, 0, 1, 3)
        part = _with_spare(part.reshape(end - first, 2, 2 * batch, -1))
        part = lax.optimization_barrier(part)
        rows = jnp.einsum("msbr,msrj->msbj", part, table, precision=precision)
        rows = rows[:, :, : 2 * batch]
        if coefficients.shape[1] > degrees:
            extra = coefficients[:, degrees, first:end].swapaxes(0, 1)
            extra = jnp.concatenate([extra.real, extra.imag], 1)[..., None]
            extra = extra * tables.last[first:end, None]
            rows = rows.at[:, degrees % 2].add(extra)
        rows = rows.reshape(end - first, 2, 2, batch, -1).transpose(1, 2, 0, 3, 4)
        sign = _mirror_sign(first, end, rows.dtype)[:, 0].reshape(1, -1, 1, 1)
        yield rows[0] + rows[1], sign * (rows[0] - rows[1])


def _with_spare(rows):
    """One more row in the batch.

    It keeps the strides of the transpositions off powers of two, where a column would
    fall into one cache set.
    """
    return jnp.pad(rows, ((0, 0), (0, 0), (0, 1), (0, 0)))


def _mirror_sign(first: int, end: int, dtype):
    """`(-1)^(m + s)`: the sign with which a harmonic returns beyond the equator."""
    m, s = np.arange(first, end)[:, None], np.arange(2)
    return jnp.asarray((-1.0) ** (m + s), dtype)


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
            return out, ad.Zero(jax.typeof(out).to_tangent_aval())
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
