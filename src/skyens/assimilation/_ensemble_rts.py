"""The ensemble Rauch-Tung-Striebel smoother: one pass back through a cycle's result."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from skyens.assimilation._ensemble import (
    centre,
    count_members,
    matmul,
    recombine,
    split,
    wide,
)


def ensemble_rts(
    analyses: PyTree[Array],
    backgrounds: PyTree[Array],
    *,
    damping: float | Float[Array, ""] = 1.0,
    where: Callable[[Any], Any] | None = None,
) -> PyTree[Array]:
    """Return the smoothed analyses: each has seen the observations after it, too.

    From the last time back, with analyses E, backgrounds F and smoothed S,

        S_k = E_k + damping * (S_{k+1} - F_{k+1}) F'^+_{k+1} E'_k,

    where ' takes the mean over members away and + is the pseudo-inverse. With a global
    filter without rotation this equals the ensemble Kalman smoother of infinite lag if
    the model has no noise, or the members do not span the state; but only the two
    ensembles of each time are needed, `cycle(...).analyses` and `.backgrounds`. What
    the members cannot span is fitted by least squares, over all leaves as they are;
    scale leaves of other units, or choose them by `where`.

    Args:
        analyses: the filter's, `(time, member, ...)`, any pytree.
        backgrounds: those they were made from, alike.
        damping: factor of what goes back from one time to the one before. Where the
            filter inflates, it must be below the inverse of the inflation, or anomalies
            grow on the way back; 0.85 to 0.9 are good values then, else 1.
        where: the part of the state, of one time, to smooth; otherwise all leaves of
            real or complex numbers.

    Raises:
        ValueError: the two differ in structure or shapes, there are fewer than two
            members, or no time.
        EquinoxRuntimeError: `damping` lies outside [0, 1].

    Source: Raanes (2016), Q. J. R. Meteorol. Soc. 142, 1259-1264.
    """
    shapes = [
        jax.tree.map(lambda leaf: jnp.shape(leaf), tree)
        for tree in (analyses, backgrounds)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"`analyses` and `backgrounds` must be alike, got the shapes {shapes[0]} "
            f"and {shapes[1]}."
        )
    analyses, backgrounds = jax.tree.map(jnp.asarray, (analyses, backgrounds))
    times = {leaf.shape[:1] for leaf in jax.tree.leaves(analyses)}
    if len(times) != 1 or times & {(), (0,)}:
        raise ValueError(
            "every leaf needs the same leading `time` axis, got the shapes "
            f"{shapes[0]}."
        )
    last = jax.tree.map(lambda leaf: leaf[-1], analyses)
    count_members(last)
    factor = jnp.asarray(damping, float)
    inside = (factor >= 0) & (factor <= 1)
    factor = eqx.error_if(factor, ~inside, "`damping` must lie in [0, 1].")

    def back(later, x):
        analysis, background = x
        update, rest = split(analysis, where)
        forecast, _ = split(background, where)
        change = jax.tree.map(jnp.subtract, later, forecast)
        matrix = _fit(change, forecast)
        matrix = factor.astype(matrix.dtype) * matrix
        moved = jax.tree.map(lambda leaf: recombine(matrix, leaf), update)
        return moved, eqx.combine(moved, rest)

    start, _ = split(last, where)
    before = jax.tree.map(lambda leaf: leaf[:-1], analyses)
    after = jax.tree.map(lambda leaf: leaf[1:], backgrounds)
    _, earlier = jax.lax.scan(back, start, (before, after), reverse=True)
    join = lambda early, late: jnp.concatenate([early, late[None]])
    return jax.tree.map(join, earlier, last)


def _fit(change: PyTree[Array], ensemble: PyTree[Array]) -> Float[Array, "..."]:
    """Return the smallest matrix that takes the ensemble's anomalies to `change`."""
    crosses, squares = [], []
    for moved, leaf in zip(
        jax.tree.leaves(change), jax.tree.leaves(ensemble), strict=True
    ):
        _, anomalies = centre(leaf.astype(wide(leaf.dtype)))
        flat = anomalies.reshape(len(leaf), -1)
        moved = moved.astype(flat.dtype).reshape(len(leaf), -1)
        crosses.append(jnp.real(matmul(moved, jnp.conj(flat).T)))
        squares.append(jnp.real(matmul(flat, jnp.conj(flat).T)))
    # Leaves may differ in dtype: the widest holds the sums.
    dtype = max((x.dtype for x in squares), key=lambda dtype: jnp.finfo(dtype).bits)
    total = lambda terms: jnp.sum(jnp.stack([x.astype(dtype) for x in terms]), axis=0)
    return matmul(total(crosses), jnp.linalg.pinv(total(squares), hermitian=True))
