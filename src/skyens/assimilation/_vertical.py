"""Localisation in the vertical, for leaves with levels and leaves without."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from skyens.assimilation._localisation import gaspari_cohn
from skyens.observations import Observation


@dataclass(frozen=True)
class Levels:
    """Which of the vertical places the levels of a leaf are; `axis`: it has some."""

    numbers: tuple[int, ...] = (0,)
    axis: bool = False


class Vertical(eqx.Module):
    """Weights by vertical distance: leaves know their levels, observations theirs.

    The weight of an observation at a level is the taper of their distance over
    `length`, and multiplies the weight by horizontal distance. Distance is in the
    logarithm of pressure, unless told otherwise. An observation whose place is NaN
    is nobody's neighbour.

    Source: Miyoshi & Yamane (2007), Mon. Wea. Rev. 135, 3841-3861, for the product.
    """

    places: Float[Array, "place"] = eqx.field(metadata={"trainable": False})
    length: Float[Array, ""]
    levels: tuple[Levels, ...] = eqx.field(static=True)
    structure: Any = eqx.field(static=True)
    name: str = eqx.field(static=True)
    transform: Callable[[Array], Array] | None = eqx.field(static=True)
    taper: Callable[[Array], Array] = eqx.field(static=True)

    def __init__(
        self,
        levels: PyTree[Any],
        *,
        length: float | Float[Array, ""],
        name: str = "pressure",
        transform: Callable[[Array], Array] | None = jnp.log,
        taper: Callable[[Array], Array] = gaspari_cohn,
    ):
        """Say where levels are.

        Args:
            levels: a pytree like the state, or a prefix of it. For a leaf
                `(..., level, *point)` the places of its levels; for one that lies at
                one place, a surface pressure say, a number; None for one without a
                place, which is not localised in the vertical. Known, not traced.
            length: of the taper, in the unit of transformed places; 0.3 to 1 are usual
                for the logarithm of pressure.
            name: of the observations' coordinate, in the unit of `levels`.
            transform: what distance is measured in, `jnp.log` of a pressure; None for
                a height.
            taper: the weight by distance over length.

        Raises:
            ValueError: levels are not finite (after `transform`), or not numbers.
            EquinoxRuntimeError: `length` is not above 0.
        """
        leaves, self.structure = jax.tree.flatten(levels, is_leaf=lambda x: x is None)
        known = [None if x is None else np.asarray(x, float) for x in leaves]
        if any(x is not None and x.ndim > 1 for x in known):
            raise ValueError("`levels` of a leaf must be a number or one axis of them.")
        # A place of its own for what has none: NaN.
        flat = [np.ravel(np.nan if x is None else x) for x in known]
        different, number = np.unique(np.concatenate(flat), return_inverse=True)
        cuts = np.split(number.ravel(), np.cumsum([x.size for x in flat])[:-1])
        self.levels = tuple(
            Levels(tuple(cut.tolist()), x is not None and x.ndim == 1)
            for cut, x in zip(cuts, known, strict=True)
        )
        places = jnp.asarray(different)
        places = places if transform is None else transform(places)
        if np.any(~np.isfinite(places) & ~np.isnan(different)):
            raise ValueError(f"`levels` must be finite, and known to be, got {levels}.")
        length = jnp.asarray(length, float)
        message = "`length` must be above 0."
        self.length = eqx.error_if(length, ~(length > 0), message)
        self.places = places
        self.name, self.transform, self.taper = name, transform, taper

    def of(self, state: PyTree[Array]) -> PyTree[Levels]:
        """Return the levels of each leaf of `state`.

        Raises:
            ValueError: `levels` is no prefix of the state.
        """
        levels = jax.tree.unflatten(self.structure, self.levels)
        try:
            return jax.tree.broadcast(
                levels, state, is_leaf=lambda x: isinstance(x, Levels)
            )
        except ValueError as error:
            raise ValueError(
                f"`levels` must be a pytree like the state, or a prefix of it: {error}"
            ) from None

    def weights(self, observation: Observation) -> Float[Array, "observation place"]:
        """Return the weight of each observation at each place.

        Raises:
            ValueError: the observation has no such coordinate.
        """
        there = self.heights(observation)
        everywhere = jnp.isnan(self.places)[None, :]
        here = jnp.where(everywhere, 0, self.places[None, :]).astype(there.dtype)
        return jnp.where(everywhere, 1, self.near(there[:, None], here))

    def heights(self, observation: Observation) -> Float[Array, "observation"]:
        """Return the transformed places of the observations, NaN where unknown.

        Raises:
            ValueError: the observation has no such coordinate.
        """
        coordinates = observation.coordinates or {}
        if self.name not in coordinates:
            raise ValueError(
                f"`coordinates` needs {self.name}, to localise in the vertical; give "
                "the observations one, NaN where they have none."
            )
        there = coordinates[self.name].reshape(-1)
        # Double where: a masked one may have no logarithm, nor a gradient of it.
        mask = observation.mask.reshape(-1)
        there = jnp.where(mask, there, 1)
        there = there if self.transform is None else self.transform(there)
        return jnp.where(mask & jnp.isfinite(there), there, jnp.nan)

    def near(
        self, one: Float[Array, "*#pair"], other: Float[Array, "*#pair"]
    ) -> Float[Array, "*pair"]:
        """Return the weight between transformed places, 0 where one is NaN."""
        distance = jnp.abs(one - other) / self.length.astype(one.dtype)
        known = jnp.isfinite(distance)
        return jnp.where(known, self.taper(jnp.where(known, distance, 0)), 0)


def levels_of(
    vertical: Vertical | None,
    state: PyTree[Array],
    update: PyTree[Array | None],
    shape: tuple[int, ...],
) -> list[Levels]:
    """Return the levels of the leaves to `update`, in order, all leaves checked.

    Raises:
        ValueError: a leaf does not end with `shape`, or not with the levels before it.
    """
    leaves = jax.tree.leaves(update)
    for leaf in leaves:
        if leaf.shape[1:][-len(shape) :] != shape:
            raise ValueError(
                f"a leaf of shape {leaf.shape} does not end with {shape}, the points of"
                " the localisation. Leave it out by where=..."
            )
    if vertical is None:
        return [Levels()] * len(leaves)
    everything = vertical.of(state)
    selected = jax.tree.map(
        lambda x, levels: None if x is None else levels,
        update,
        everything,
        is_leaf=lambda x: x is None,
    )
    found = jax.tree.leaves(selected)
    for leaf, levels in zip(leaves, found, strict=True):
        wanted = (len(levels.numbers),) if levels.axis else ()
        if leaf.shape[1:][-len(shape) - len(wanted) :] != wanted + shape:
            raise ValueError(
                f"a leaf of shape {leaf.shape} does not end with its "
                f"{len(levels.numbers)} levels before {shape}."
            )
    return found


def flatten(leaf: Array, dimensions: int, levels: Levels) -> Array:
    """Return a leaf as `(member, rest, level, point)`, the points' axes in one."""
    end = leaf.ndim - dimensions
    rest = leaf.shape[1:end]
    level = rest[-1] if levels.axis else 1
    points = prod(leaf.shape[end:])
    return leaf.reshape(leaf.shape[0], prod(rest) // level, level, points)
