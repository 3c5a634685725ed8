"""Sparse linear maps along one axis, as fast backwards as forwards.

A target row or column needs a few neighbours of the source: their weighted sum is
gathered term by term. The reverse derivative gathers too, from its own table, since
scattering is many times slower; so the map is a JAX primitive, linear in the array and
constant in the tables.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float, Int

_fixed = lambda: eqx.field(metadata={"trainable": False})


class _Terms(eqx.Module):
    """`out[i] = sum_k weight[k, i] * x[index[k, i]]`; a weight of 0 meets no value."""

    index: Int[Array, "term output"] = _fixed()
    weight: Float[Array, "term output"] = _fixed()

    def __init__(self, output, source, weight, size: int):
        """Pack a list of entries, `(entry,)` each, into `size` sums."""
        order = np.argsort(output, kind="stable")
        output, source, weight = output[order], source[order], weight[order]
        count = np.bincount(output, minlength=size)
        term = np.arange(output.size) - np.repeat(np.cumsum(count) - count, count)
        shape = (max(1, count.max(initial=0)), size)
        indices, weights = np.zeros(shape, np.int32), np.zeros(shape)
        indices[term, output], weights[term, output] = source, weight
        self.index = jnp.asarray(indices)
        self.weight = jnp.asarray(weights, jnp.result_type(float))


class Band(eqx.Module):
    """A sparse matrix that acts along one axis of an array."""

    forward: _Terms
    adjoint: _Terms

    def __init__(
        self,
        output: Int[np.ndarray, " entry"],
        source: Int[np.ndarray, " entry"],
        weight: Float[np.ndarray, " entry"],
        shape: tuple[int, int],
    ):
        """Add up the entries `matrix[output, source] += weight` of a matrix of `shape`.

        The weights are float64 and kept in JAX's default float type.
        """
        output, source, weight = (x[weight != 0] for x in (output, source, weight))
        self.forward = _Terms(output, source, weight, shape[0])
        self.adjoint = _Terms(source, output, weight, shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """The matrix's number of rows and columns."""
        return self.forward.index.shape[1], self.adjoint.index.shape[1]

    @property
    def terms(self) -> int:
        """The largest number of terms in a sum."""
        return self.forward.index.shape[0]

    def __call__(self, x: Float[Array, "..."], *, axis: int) -> Float[Array, "..."]:
        """Return `matrix @ x` along `axis`, -1 or -2, in the dtype of `x`."""
        tables = [
            table if table.dtype == jnp.int32 else table.astype(x.dtype)
            for terms in (self.forward, self.adjoint)
            for table in (terms.index, terms.weight)
        ]
        return _band.bind(x, *tables, axis=axis)


def separable(
    rows: Band, columns: Band, field: Float[Array, "*batch latitude longitude"]
) -> Float[Array, "*batch rows columns"]:
    """Return `rows @ field @ columns.T`, the cheaper side first."""
    rows_first = field.shape[-1] * rows.shape[0] * rows.terms
    rows_first += rows.shape[0] * columns.shape[0] * columns.terms
    columns_first = field.shape[-2] * columns.shape[0] * columns.terms
    columns_first += columns.shape[0] * rows.shape[0] * rows.terms
    if rows_first <= columns_first:
        return columns(rows(field, axis=-2), axis=-1)
    return rows(columns(field, axis=-1), axis=-2)


def _gather(x, index, weight, *_, axis):
    expand = (slice(None), None) if axis == -2 else (slice(None),)
    lead = (1,) * (x.ndim - (1 if axis == -1 else 2))

    def term(index, weight):
        weight = weight[expand].reshape(*lead, *weight[expand].shape)
        value = jnp.take(x, index, axis=axis, mode="clip") * weight
        return jnp.where(weight != 0, value, 0)

    def add(total, entry):
        return total + term(*entry), None

    first, rest = term(index[0], weight[0]), (index[1:], weight[1:])
    return lax.scan(add, first, rest, unroll=8)[0]


def _abstract(x, index, *_, axis):
    shape = list(x.shape)
    shape[axis] = index.shape[1]
    return x.update(shape=tuple(shape))


def _jvp(primals, tangents, *, axis):
    # Where only a table is differentiated, the tangent is 0: tables are constants.
    tangent = ad.instantiate_zeros(tangents[0])
    out = _band.bind(*primals, axis=axis)
    return out, _band.bind(tangent, *primals[1:], axis=axis)


def _transpose(cotangent, _, *tables, axis):
    back = _band.bind(cotangent, *tables[2:], *tables[:2], axis=axis)
    return back, None, None, None, None


def _batch(operands, axes, *, axis):
    if any(lead is not None for lead in axes[1:]):  # an ensemble of maps
        return jax.vmap(partial(_gather, axis=axis), axes)(*operands), 0
    return _band.bind(
        jnp.moveaxis(operands[0], axes[0], 0), *operands[1:], axis=axis
    ), 0


_band = Primitive("band")
_band.def_impl(jax.jit(_band.bind, static_argnames="axis"))
_band.def_abstract_eval(_abstract)
mlir.register_lowering(_band, mlir.lower_fun(_gather, multiple_results=False))
ad.primitive_jvps[_band] = _jvp
ad.primitive_transposes[_band] = _transpose
batching.primitive_batchers[_band] = _batch
