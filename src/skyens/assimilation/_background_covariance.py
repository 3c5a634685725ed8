"""Background covariances as linear operators: increments from control variables.

A covariance B is known by a root, `B = L L'`: `increment = L v` takes control variables
v of covariance one to increments of a state of covariance B. Variational methods
minimise over v, which spares them an inverse of B and conditions their problem; the
adjoint `L'` comes from `jax.linear_transpose`, and a draw from B is L times noise.
"""

from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, PyTree

from skyens.assimilation._background_covariance_root import symmetric_root
from skyens.assimilation._ensemble import matmul, wide


@runtime_checkable
class BackgroundCovariance(Protocol):
    """The contract of a background covariance, `B = L L'`, known by its root L.

    `state` is one state, real leaves only; of it only structure, shapes and dtypes are
    used. None in place of a leaf stands for one that is not updated.
    """

    def control(self, state: PyTree[Array]) -> PyTree[Array]:
        """Return control variables of 0, in the precision of `state`."""
        ...

    def root(self, control: PyTree[Array], state: PyTree[Array]) -> PyTree[Array]:
        """Return the increment `L control`, in the structure and units of `state`.

        It is in the dtype of `control`, and linear in it.
        """
        ...


class DenseCovariance(eqx.Module):
    """A covariance matrix of the whole state, for small ones.

    The state's flattening in C order, leaf after leaf, orders its rows. The control
    variables are one vector of the state's size.
    """

    factor: Float[Array, "state state"]

    def __init__(self, covariance: Float[Array | np.ndarray, "state state"]):
        """Set the covariance, in the state's units squared; it may be singular.

        Raises:
            EquinoxRuntimeError: it is not finite, or not positive semidefinite.
        """
        matrix = jnp.asarray(covariance)
        factor = symmetric_root(matrix)
        # What the root does not give back was negative or antisymmetric.
        slack = 1e3 * len(matrix) * float(jnp.finfo(matrix.dtype).eps)
        lost = jnp.abs(matmul(factor, factor) - matrix)
        fine = lost <= slack * jnp.max(jnp.abs(jnp.diagonal(matrix)))
        message = "`covariance` must be finite, symmetric and positive semidefinite."
        self.factor = eqx.error_if(factor, ~fine, message)

    def control(self, state: PyTree[Array]) -> Float[Array, "state"]:
        """Return a vector of zeros.

        Raises:
            ValueError: the state's size is not the matrix's.
        """
        size = sum(leaf.size for leaf in jax.tree.leaves(state))
        if size != len(self.factor):
            raise ValueError(
                f"`covariance` of shape {self.factor.shape} does not fit a state of "
                f"{size} entries."
            )
        return jnp.zeros(size, precision(state))

    def root(self, control: Float[Array, "state"], state: PyTree[Array]) -> PyTree[Any]:
        """Return the symmetric root of the matrix times `control`, as a state."""
        flat = matmul(self.factor.astype(control.dtype), control)
        leaves, structure = jax.tree.flatten(state)
        ends = np.cumsum([leaf.size for leaf in leaves])[:-1].tolist()
        parts = jnp.split(flat, ends)
        return structure.unflatten(
            part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)
        )


class DiagonalCovariance(eqx.Module):
    """Independent background errors of standard deviation `std`."""

    std: PyTree[Array]

    def __init__(self, std: float | PyTree[Any]):
        """Set `std`, one number, or a state of them: arrays that broadcast to it.

        Raises:
            EquinoxRuntimeError: it is negative or not finite somewhere.
        """
        std = jax.tree.map(lambda leaf: jnp.asarray(leaf, _float(leaf)), std)
        fine = [jnp.all((x >= 0) & (x < jnp.inf)) for x in jax.tree.leaves(std)]
        message = "`std` must be finite and not negative."
        self.std = eqx.error_if(std, ~jnp.all(jnp.stack(fine)), message)

    def control(self, state: PyTree[Array]) -> PyTree[Array]:
        """Return a state of zeros."""
        dtype = precision(state)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), state)

    def root(self, control: PyTree[Array], state: PyTree[Array]) -> PyTree[Array]:
        """Return `std * control`.

        Raises:
            ValueError: `std` does not fit the state.
        """
        return scaled(self.std, control)


def covariance_times(
    covariance: BackgroundCovariance, state: PyTree[Array]
) -> PyTree[Array]:
    """Return `B state`: what an impulse spreads to; B has the state's units squared."""
    zero = covariance.control(state)
    root = lambda control: covariance.root(control, state)
    impulse = jax.tree.map(lambda leaf: leaf.astype(precision(state)), state)
    (control,) = jax.linear_transpose(root, zero)(impulse)
    return like(root(control), state)


def draw_perturbation(
    covariance: BackgroundCovariance, state: PyTree[Array], *, key: Key[Array, ""]
) -> PyTree[Array]:
    """Return one draw from N(0, B), in the structure and dtypes of `state`."""
    zero, unravel = ravel_pytree(covariance.control(state))
    noise = unravel(jr.normal(key, zero.shape, zero.dtype))
    return like(covariance.root(noise, state), state)


def precision(state: PyTree[Array]) -> np.dtype:
    """Return the widest dtype among the leaves, float32 at least.

    Raises:
        ValueError: a leaf is complex or no real number.
    """
    leaves = jax.tree.leaves(state)
    if wrong := [x.dtype for x in leaves if not jnp.issubdtype(x.dtype, jnp.floating)]:
        raise ValueError(
            f"covariances are of real numbers, got a leaf of {wrong[0]}; give real and "
            "imaginary part as two leaves, or leave it out by `where`."
        )
    return max((wide(leaf.dtype) for leaf in leaves), key=lambda dtype: dtype.itemsize)


def scaled(std: PyTree[Array], state: PyTree[Array]) -> PyTree[Array]:
    """Return `std * state`, where `std` is one number or broadcasts leaf by leaf.

    Raises:
        ValueError: it does not.
    """
    if jax.tree_util.all_leaves([std]):
        std = jax.tree.map(lambda _: std, state)
    if jax.tree.structure(std) != jax.tree.structure(state):
        raise ValueError(
            f"`std` has the structure {jax.tree.structure(std)}, the state "
            f"{jax.tree.structure(state)}."
        )

    def multiply(std, leaf):
        try:
            std = jnp.broadcast_to(std.astype(leaf.dtype), leaf.shape)
        except ValueError:
            raise ValueError(
                f"`std` of shape {std.shape} does not broadcast to {leaf.shape}."
            ) from None
        return std * leaf

    return jax.tree.map(multiply, std, state)


def like(increment: PyTree[Array], state: PyTree[Array]) -> PyTree[Array]:
    """Return `increment` in the dtypes of `state`."""
    return jax.tree.map(lambda x, leaf: x.astype(leaf.dtype), increment, state)


def _float(leaf):
    return getattr(leaf, "dtype", np.dtype(float)) if np.ndim(leaf) else None
