"""The members of an ensemble and its truth, checked and brought to one form."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, DTypeLike, Float


class Members(NamedTuple):
    """An ensemble that leads with members, and its truth, of equal points.

    Both are of one precision, float32 or more. What is masked is 0, and so is the
    truth where no member is left: nothing that stands there reaches value or gradient.
    """

    members: Float[Array, "member *points"]
    truth: Float[Array, "*points"]
    valid: Bool[Array, "member *points"] | None  # None: all

    @property
    def count(self) -> Float[Array, "*#points"]:
        """The valid members of each point, 0 included."""
        if self.valid is None:
            shape = (1,) * self.truth.ndim
            return jnp.full(shape, self.members.shape[0], self.truth.dtype)
        return jnp.sum(self.valid, axis=0, dtype=self.truth.dtype)

    def masked(self, values: Float[Array, "member *points"]) -> Float[Array, "..."]:
        """Return `values`, 0 at members that are not valid."""
        return values if self.valid is None else jnp.where(self.valid, values, 0)


def gather(
    ensemble: Float[Array, "..."],
    truth: Float[Array, "..."],
    axis: int,
    where: Bool[Array, "..."] | None,
    names: tuple[str, str] = ("ensemble", "truth"),
) -> Members:
    """Lead with the members, broadcast what broadcasts, and widen half precision.

    Errors call the two arrays by their `names`.

    Raises:
        ValueError: there is no such axis, or it is empty, or the shapes do not
            broadcast.
    """
    check_members(ensemble, axis, names[0])
    truth = jnp.asarray(truth)
    dtype = wide_dtype(score_dtype(ensemble, truth))
    points = points_of(ensemble, truth, axis, names)
    members = lead_with_members(ensemble.astype(dtype), axis, points)
    truth = jnp.broadcast_to(truth.astype(dtype), points)
    if where is None:
        return Members(members, truth, None)
    try:
        valid = jnp.broadcast_to(where, ensemble.shape)
    except ValueError:
        raise ValueError(
            f"`where` has shape {where.shape}, which does not broadcast against "
            f"`{names[0]}` of shape {ensemble.shape}."
        ) from None
    valid = lead_with_members(valid, axis, points)
    # Masked entries may be NaN; a constant in their place cuts off their gradient.
    members = jnp.where(valid, members, 0)
    return Members(members, jnp.where(valid.any(axis=0), truth, 0), valid)


def check_members(ensemble: Array, axis: int, name: str = "ensemble") -> None:
    """Check that the array of that name has members along `axis`.

    Raises:
        ValueError: there is no such axis, or it is empty.
    """
    if not -ensemble.ndim <= axis < ensemble.ndim:
        raise ValueError(
            f"`axis` is {axis}, but `{name}` has {ensemble.ndim} axes, of shape "
            f"{ensemble.shape}."
        )
    if ensemble.shape[axis] == 0:
        raise ValueError(
            f"`{name}` has no members: axis {axis} of shape {ensemble.shape} is empty."
        )


def points_of(
    ensemble: Array,
    truth: Array,
    axis: int,
    names: tuple[str, str] = ("ensemble", "truth"),
) -> tuple[int, ...]:
    """Return the shape of the points, that of the truth and one member broadcast.

    Raises:
        ValueError: they do not broadcast.
    """
    axis %= ensemble.ndim
    points = ensemble.shape[:axis] + ensemble.shape[axis + 1 :]
    try:
        return jnp.broadcast_shapes(points, truth.shape)
    except ValueError:
        raise ValueError(
            f"`{names[1]}` of shape {truth.shape} does not broadcast against "
            f"`{names[0]}` of shape {ensemble.shape} without its axis {axis}, {points}."
        ) from None


def check_together(**arrays: Array) -> tuple[int, ...]:
    """Return the shape that these arrays, given by name, broadcast to.

    Raises:
        ValueError: they do not broadcast.
    """
    try:
        return jnp.broadcast_shapes(*(jnp.shape(array) for array in arrays.values()))
    except ValueError:
        shapes = (f"`{name}` {jnp.shape(array)}" for name, array in arrays.items())
        raise ValueError(f"Shapes do not broadcast: {', '.join(shapes)}.") from None


def lead_with_members(array: Array, axis: int, points: tuple[int, ...]) -> Array:
    """Lead with the members and broadcast the other axes to `points`."""
    array = jnp.moveaxis(array, axis, 0)
    missing = len(points) - (array.ndim - 1)
    array = jnp.expand_dims(array, tuple(range(1, 1 + missing)))
    return jnp.broadcast_to(array, (array.shape[0], *points))


def score_dtype(*arrays: Array) -> DTypeLike:
    """Return the dtype of a score of these arrays: of integers, the default float."""
    dtype = jnp.result_type(*arrays)
    return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.zeros(()).dtype


def wide_dtype(dtype: DTypeLike) -> DTypeLike:
    """Return `dtype`, or float32 instead of half precision."""
    return jnp.float32 if jnp.dtype(dtype).itemsize < 4 else dtype


def check_alpha(
    alpha: float | Float[Array, ""],
    ensemble: Array,
    axis: int,
    dtype: DTypeLike,
    name: str = "ensemble",
) -> Float[Array, ""]:
    """Return `alpha` as an array; NaN where it is traced and lies outside [0, 1].

    Raises:
        ValueError: `alpha` is known and lies outside [0, 1], or is positive though the
            ensemble has one member.
    """
    if isinstance(alpha, Tracer):
        inside = (alpha >= 0) & (alpha <= 1)
        return jnp.where(inside, alpha, jnp.nan).astype(dtype)
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` must lie in [0, 1], got {alpha}.")
    if ensemble.shape[axis] == 1 and alpha > 0:
        raise ValueError(
            f"`{name}` has 1 member along axis {axis}, and a fair score needs 2. "
            f"Use `alpha=0` (got {alpha}) for the absolute error."
        )
    return jnp.asarray(alpha, dtype)
