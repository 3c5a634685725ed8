"""Ensembles of vectors and their truth, checked and brought to one form."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from skyens.scores._members import gather


class Events(NamedTuple):
    """Members and truth of one precision, float32 or more, each event one vector.

    What is masked is 0. `valid` tells the members that count, `known` the dimensions
    of the event that do; both are None where all are.
    """

    members: Float[Array, "member event points"]
    truth: Float[Array, "event points"]
    valid: Bool[Array, "member points"] | None
    known: Bool[Array, "event points"] | None


def gather_events(
    ensemble: Float[Array, "..."],
    truth: Float[Array, "..."],
    axis: int,
    event_axes: tuple[int, ...],
    where: Bool[Array, "..."] | None,
) -> tuple[Events, tuple[int, ...]]:
    """Return the events of all points on one last axis, and the shape of the points.

    `event_axes` are those of one member and the truth, broadcast. A dimension of the
    event that no member has is left out of its point; a member that lacks one of the
    others does not count there.

    Raises:
        ValueError: the shapes do not broadcast, there are no members, or `event_axes`
            name an axis twice or one that is not there.
    """
    seen = gather(ensemble, truth, axis, where)
    axes = _check_axes(event_axes, seen.truth.shape)
    shape = tuple(n for i, n in enumerate(seen.truth.shape) if i not in axes)
    size = math.prod(seen.truth.shape[i] for i in axes)

    def lay_out(array, lead):
        here = [lead + i for i in axes]
        array = jnp.moveaxis(array, here, range(lead, lead + len(axes)))
        return array.reshape((*array.shape[:lead], size, math.prod(shape)))

    members, truth = lay_out(seen.members, 1), lay_out(seen.truth, 0)
    if seen.valid is None:
        return Events(members, truth, None, None), shape
    entries = lay_out(seen.valid, 1)
    known = entries.any(axis=0)
    valid = (entries | ~known[None]).all(axis=1) & known.any(axis=0)[None]
    members = jnp.where(valid[:, None], members, 0)
    # What no valid member counts for may be NaN in the truth.
    truth = jnp.where(valid.any(axis=0)[None], truth, 0)
    return Events(members, truth, valid, known), shape


def _check_axes(event_axes: tuple[int, ...], shape: tuple[int, ...]) -> list[int]:
    ndim = len(shape)
    inside = all(-ndim <= axis < ndim for axis in event_axes)
    axes = sorted({axis % ndim for axis in event_axes}) if inside else []
    if len(axes) != len(event_axes):
        raise ValueError(
            f"`event_axes` must name different axes of one member, of shape {shape}, "
            f"got {event_axes}."
        )
    return axes
