"""Run many members, a fixed number at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key, PyTree

from skyens.dynamics import member_keys, rollout as member_rollout


def rollout(
    step: Callable,
    states: PyTree,
    steps: int,
    forcings: PyTree | None = None,
    *,
    key: Key[Array, ""],
    members: Int[Array | np.ndarray, " member"] | None = None,
    width: int | None = None,
    reduce: Callable[[PyTree], Any] | None = None,
) -> PyTree:
    """Return the trajectories of many members, `width` of them at a time.

    Each member draws its randomness from `key` and its own index alone, so that any
    one can be run again by itself: hand over its state, its index in `members`, and
    the same `width`, and it comes out bit for bit the same on the same machine (where
    `members` were consecutive, as they are by default).

    Args:
        step: `step(state, forcing=None, *, key=None) -> state`.
        states: states of all members on a leading member axis.
        steps: how many steps.
        forcings: one forcing per step (the same for all members), or None.
        key: of the run, see `dynamics.run_key`.
        members: the members' indices; 0, 1, 2 ... where None.
        width: how many run side by side; all where None. Less needs less memory.
        reduce: keeps `reduce(state)` of every step instead of the state.

    Returns:
        the states, or what `reduce` keeps of them, `(member, step, ...)`.

    Raises:
        ValueError: the leaves of `states` or `members` differ in length, or `width`
            is below 1.
    """
    counts = {leaf.shape[0] for leaf in jax.tree.leaves(states)}
    if len(counts) != 1:
        raise ValueError(f"`states` must share one member axis, got lengths {counts}.")
    (count,) = counts
    members = np.arange(count) if members is None else members
    if members.shape[0] != count:
        raise ValueError(
            f"`members` must name each of the {count} states, got {members.shape[0]}."
        )
    if width is not None and width < 1:
        raise ValueError(f"`width` must be at least 1, got {width}.")
    width = width or max(count, 1)
    keys = member_keys(key, members)
    one = lambda state, key: member_rollout(
        step, state, steps, forcings, key=key, reduce=reduce
    )
    # The last block is filled up with its last member: every block compiles alike,
    # and a member's bits do not depend on how many others there are.
    fill = -count % width
    block = lambda leaf: jnp.concatenate([leaf, leaf[np.full(fill, -1)]]).reshape(
        -1, width, *leaf.shape[1:]
    )
    real = jnp.asarray(np.arange(count + fill) < count).reshape(-1, width)
    blocks = jax.tree.map(block, (states, keys, jnp.asarray(members)))

    def run_block(inputs):
        (states, keys, members), real = inputs
        places, order = _seats(members, real)
        seated = jax.tree.map(lambda leaf: leaf[order], (states, keys))
        return jax.tree.map(lambda leaf: leaf[places], jax.vmap(one)(*seated))

    result = jax.lax.map(run_block, (blocks, real))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], result)


def _seats(
    members: Int[Array, " width"], real: Bool[Array, " width"]
) -> tuple[Int[Array, " width"], Int[Array, " width"]]:
    """Return each member's place in its block, and who sits at each place.

    Matrix products round differently at different places of a batch, so the place
    follows from the member's index, whoever else is in the block. Members that would
    share a place (they are not consecutive) keep the order given.
    """
    given = jnp.arange(members.size)
    outside = jnp.full_like(given, members.size)  # fill: written nowhere
    places = jnp.where(real, members.astype(given.dtype) % members.size, outside)
    taken = jnp.zeros_like(given).at[places].add(1, mode="drop")
    places = jnp.where(jnp.all(taken <= 1), places, given)
    order = jnp.zeros_like(given).at[places].set(given, mode="drop")
    return jnp.minimum(places, members.size - 1), order
