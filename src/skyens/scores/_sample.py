"""One update's forecasts, checked and brought to one form."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, DTypeLike, Float, PyTree

from skyens.scores._members import score_dtype, wide_dtype
from skyens.scores._sums import Sums


class Sample(NamedTuple):
    """One update's forecasts, checked, masked and all of one number of axes."""

    ensemble: Float[Array, "member *points"]
    truth: Float[Array, "*points"]
    valid: Bool[Array, "member *points"] | None  # None: all
    weights: Float[Array, "*points"]  # broadcast over all points

    @property
    def count(self) -> Float[Array, "*points"]:
        """The valid members of each point, at least 1 so that one may divide."""
        if self.valid is None:
            members = self.ensemble.shape[0]
            return jnp.full((1,) * self.truth.ndim, members, self.truth.dtype)
        return jnp.maximum(self._number, 1)

    def weights_of(self, least: int) -> Float[Array, "*points"]:
        """Return the weights, 0 at points with fewer than `least` valid members."""
        if self.valid is None:
            return self.weights
        return jnp.where(self._number >= least, self.weights, 0)

    @property
    def has_members(self) -> Bool[Array, "*points"]:
        """Whether a point has any valid member."""
        if self.valid is None:
            return jnp.ones((1,) * self.truth.ndim, bool)
        return self._number > 0

    def departures(self, reference: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return the members minus `reference`, 0 where they are masked."""
        departures = self.ensemble - reference[None]
        return (
            departures if self.valid is None else jnp.where(self.valid, departures, 0)
        )

    def mean_departure(self, reference: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return the ensemble mean minus `reference`, exact at large offsets."""
        return self.total(lambda departure: departure, reference) / self.count

    def total(
        self, term: Callable[[Array], PyTree], reference: Float[Array, "..."]
    ) -> PyTree:
        """Return sums over the valid members of what `term` makes of a departure."""

        def each(member, valid=None):
            departure = member - reference
            if valid is None:
                return term(departure)
            # Masked entries may be NaN; a constant in their place cuts off gradients.
            values = term(jnp.where(valid, departure, 0))
            return jax.tree.map(
                lambda x: jnp.where(valid, x, jnp.zeros_like(x)), values
            )

        rows = (self.ensemble,) if self.valid is None else (self.ensemble, self.valid)
        return sum_rows(each, rows, self.truth.dtype)

    @property
    def _number(self) -> Float[Array, "*points"]:
        """The valid members of each point, where any is masked."""
        return sum_rows(lambda valid: valid, (self.valid,), self.truth.dtype)


def sum_rows(
    each: Callable[..., PyTree], rows: tuple[Array | None, ...], dtype: DTypeLike
) -> PyTree:
    """Return the sums of `each(*row)` over the rows of arrays with equal first axes.

    One is added after another: on CPU ten times faster than a sum over the first axis.
    """
    values = lambda row: jax.tree.map(lambda x: x.astype(dtype), each(*row))
    add = lambda total, row: (jax.tree.map(jnp.add, total, values(row)), None)
    # Made of a row, as `shard_map` wants sums to vary from the start as terms do.
    none = jax.tree.map(
        lambda x: 0 * jnp.isnan(x).astype(dtype),
        values(jax.tree.map(lambda x: x[0], rows)),
    )
    return lax.scan(add, none, rows)[0]


def sample(
    sums: Sums,
    ensemble: Float[Array, "member ..."],
    truth: Float[Array, "..."],
    weights: Float[Array, "..."] | None,
    where: Bool[Array, "..."] | None,
    least: int = 1,
) -> Sample:
    """Check the arguments of an update and bring them to one form, float32 or more.

    Raises:
        ValueError: there are fewer than `least` members, or the shapes do not fit each
            other or the axes that the state keeps.
    """
    if ensemble.ndim != truth.ndim + 1:
        raise ValueError(
            "`ensemble` leads with members and otherwise has the axes of `truth`; got "
            f"shapes {ensemble.shape} and {truth.shape}."
        )
    if (members := ensemble.shape[0]) < least:
        raise ValueError(f"`ensemble` needs at least {least} members, got {members}.")
    dtype = wide_dtype(score_dtype(ensemble, truth))
    weights = jnp.ones((), dtype) if weights is None else weights.astype(dtype)
    weights = _pad_axes("weights", weights, truth.ndim)
    points = {
        "ensemble": ensemble.shape[1:],
        "truth": truth.shape,
        "weights": weights.shape,
    }
    if where is not None:
        where = _pad_axes("where", where, ensemble.ndim)
        if where.shape[0] not in (1, members):
            raise ValueError(
                f"`where` of shape {where.shape} does not broadcast against "
                f"`ensemble` of shape {ensemble.shape}."
            )
        points["where"] = where.shape[1:]
    try:
        shape = jnp.broadcast_shapes(*points.values())
    except ValueError:
        raise ValueError(
            f"These shapes, without members, do not broadcast: {points}."
        ) from None
    kept = sums["weight"].high.shape
    if shape[: len(kept)] != kept:
        raise ValueError(
            f"The state was made by `init(shape={kept})` and keeps these leading axes, "
            f"but what is scored has shape {shape}, from {points}."
        )
    if where is not None:
        where = jnp.broadcast_to(where, (members, *where.shape[1:]))
    weights = jnp.broadcast_to(weights, shape)
    return Sample(ensemble.astype(dtype), truth.astype(dtype), where, weights)


def check_member_count(ensemble: Float[Array, "member ..."], members: int) -> None:
    """Check that an update has the members that a statistic was made for.

    Raises:
        ValueError: it has another number.
    """
    if ensemble.ndim and ensemble.shape[0] != members:
        raise ValueError(
            f"`ensemble` has {ensemble.shape[0]} members, but this statistic is for "
            f"{members}."
        )


def to_truth(
    name: str, values: Float[Array, "..."], truth: Float[Array, "*points"]
) -> Float[Array, "*points"]:
    """Return `values` in the shape and dtype of the truth.

    Raises:
        ValueError: they do not broadcast to it.
    """
    try:
        return jnp.broadcast_to(values, truth.shape).astype(truth.dtype)
    except ValueError:
        raise ValueError(
            f"`{name}` of shape {values.shape} does not broadcast to `truth` of shape "
            f"{truth.shape}."
        ) from None


def _pad_axes(name: str, array: Array, ndim: int) -> Array:
    if array.ndim > ndim:
        raise ValueError(f"`{name}` of shape {array.shape} has more than {ndim} axes.")
    return array.reshape((1,) * (ndim - array.ndim) + array.shape)
