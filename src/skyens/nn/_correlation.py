"""The correlation beneath convolutions, in the one layout that is fast everywhere.

On CPU, XLA rewrites a convolution to the layout of its fast kernels only outside of
loops. Inside one (a scan over blocks, steps of a sampler, updates of training) any
other layout falls back to plain nested loops, fifteen times slower, and the transposes
of `lax.conv_general_dilated` have other layouts. So the correlation is a primitive
whose transposes are itself, of rearranged arguments.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float


def correlate(
    x: Float[Array, "batch row column in"],
    weight: Float[Array, "high wide in out"],
) -> Float[Array, "batch valid_row valid_column out"]:
    """Return `y[n, r, c, o] = sum x[n, r + i, c + j, k] weight[i, j, k, o]`.

    Only where the whole filter lies inside. Both have one dtype, which is kept.
    """
    return _correlate(x, weight)


def _correlate(x, weight):
    return correlate_p.bind(x, weight)


def _kernel(x, weight):
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, weight, (1, 1), "VALID", dimension_numbers=layout
    )


def _abstract(x, weight):
    y = jax.eval_shape(_kernel, x, weight)
    return ShapedArray(y.shape, y.dtype)


def _to_x(slope, _, weight):
    """Correlate with the filter turned around, wherever it touches."""
    high, wide = weight.shape[0] - 1, weight.shape[1] - 1
    edge = jnp.pad(slope, ((0, 0), (high, high), (wide, wide), (0, 0)))
    return _correlate(edge, weight[::-1, ::-1].swapaxes(2, 3))


def _to_weight(slope, x, _):
    """Correlate the input with the slope, the batch being what is summed over."""
    y = _correlate(x.transpose(3, 1, 2, 0), slope.transpose(1, 2, 0, 3))
    return y.transpose(1, 2, 0, 3)


def _batched(arguments, axes):
    x, weight = arguments
    x_axis, weight_axis = axes
    if weight_axis is None:
        x = jnp.moveaxis(x, x_axis, 0)
        y = _correlate(x.reshape(-1, *x.shape[2:]), weight)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0
    if x_axis is None:
        weight = jnp.moveaxis(weight, weight_axis, 3)
        y = _correlate(x, weight.reshape(*weight.shape[:3], -1))
        return y.reshape(*y.shape[:3], *weight.shape[3:]), 3
    return jax.vmap(_kernel, (x_axis, weight_axis))(x, weight), 0


correlate_p = Primitive("correlate")
correlate_p.def_impl(jax.jit(_kernel))
correlate_p.def_abstract_eval(_abstract)
ad.defbilinear(correlate_p, _to_x, _to_weight)
batching.primitive_batchers[correlate_p] = _batched
mlir.register_lowering(correlate_p, mlir.lower_fun(_kernel, multiple_results=False))
