"""Drive a step: one member, many steps, one compiled loop."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Key, PyTree


def rollout(
    step: Callable,
    state: PyTree,
    steps: int,
    forcings: PyTree | None = None,
    *,
    key: Key[Array, ""] | None = None,
    reduce: Callable[[PyTree], Any] | None = None,
    checkpoint: bool = False,
) -> PyTree:
    """Return what `step` makes of `state`, step after step, the start left out.

    Args:
        step: `step(state, forcing=None, *, key=None) -> state`.
        state: the state of one member; use `jax.vmap` for more.
        steps: how many steps.
        forcings: one forcing per step, stacked on a leading axis, or None.
        key: the member's key; each step gets it with its number (from 0) folded in.
        reduce: keeps `reduce(state)` of every step instead of the state.
        checkpoint: recompute each step in reverse mode instead of storing its inside.

    Returns:
        the states, or what `reduce` keeps of them, stacked on a leading axis of length
        `steps`.

    Raises:
        ValueError: `steps` is negative, or `forcings` has another length.
    """
    if steps < 0:
        raise ValueError(f"`steps` must not be negative, got {steps}.")
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(forcings)]
    if wrong := [shape for shape in shapes if shape[:1] != (steps,)]:
        raise ValueError(
            f"`forcings` must have {steps} entries, one per step, on a leading axis, "
            f"got a leaf of shape {wrong[0]}."
        )

    def body(state, inputs):
        number, forcing = inputs
        step_key = None if key is None else jr.fold_in(key, number)
        state = step(state, forcing, key=step_key)
        return state, state if reduce is None else reduce(state)

    # A loop already keeps the compiler from undoing the recomputation.
    body = jax.checkpoint(body, prevent_cse=False) if checkpoint else body
    return jax.lax.scan(body, state, (jnp.arange(steps), forcings), length=steps)[1]
