"""Localisation: which observations a point listens to, and how much."""

from collections.abc import Callable, Mapping

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from skyens import sphere
from skyens.assimilation._geometry import Geometry, as_geometry
from skyens.assimilation._neighbours import (
    Neighbours,
    find_neighbours,
    most_candidates,
    most_neighbours,
    support,
)
from skyens.observations import Observation

Taper = Callable[[Array], Array]


def gaspari_cohn(r: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return the compactly supported correlation at `r`, distance over length.

    1 at 0, 5/24 at 1, 0 from 2 on; twice differentiable, and smooth enough at 2 for
    its square root to have a gradient. Never negative, in float32 too. The `loc_rad`
    of DAPPER is the length over 1.82.

    Source: Gaspari & Cohn (1999), Quart. J. Roy. Meteor. Soc. 125, 723-757,
    equation 4.10; the outer branch factorised, which leaves nothing to cancel.
    """
    r = jnp.minimum(jnp.abs(r), 2)
    near = 1 + r**2 * (-5 / 3 + r * (5 / 8 + r * (1 / 2 - r / 4)))
    # Double where: the quotient must never see the 0 it would differentiate.
    outside = jnp.where(r > 1, r, 1)
    far = (2 - outside) ** 4 * (outside**2 + 2 * outside - 0.5) / (12 * outside)
    return jnp.where(r > 1, far, near)


class Step(eqx.Module):
    """The taper that is 1 up to the length, there included, and 0 beyond.

    Any callable of distance over length is a taper. Its attribute `support` says where
    it ends, in lengths; 2 if it has none.
    """

    @property
    def support(self) -> float:
        """Where the taper ends: at one length."""
        return 1.0

    def __call__(self, r: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Return 1 where `r` is at most 1, but for rounding, and 0 elsewhere."""
        edge = 1 + 8 * float(jnp.finfo(r.dtype).eps)
        return (jnp.abs(r) <= edge).astype(r.dtype)


class Localisation(eqx.Module):
    """For each point of a state, the observations within reach and their weights.

    A table of static width, so its size is points times `width`, never points times
    observations; it is found by sorting, in nearly linear time. `index` numbers the
    observations (flattened), nearest first; `taper` is their weight by distance, 0 in
    slots that are not needed. `reached` says which observations any point hears.
    """

    geometry: Geometry
    length: Float[Array, ""] = eqx.field(metadata={"trainable": False})
    index: Int[Array, "*point width"]
    taper: Float[Array, "*point width"] = eqx.field(metadata={"trainable": False})
    reached: Bool[Array, "observation"]
    position: Float[Array, "2 observation"] = eqx.field(metadata={"trainable": False})

    def __init__(
        self,
        grid: sphere.Grid | Geometry,
        coordinates: Mapping[str, Float[Array | np.ndarray, "..."]] | None,
        *,
        length: float | Float[Array, ""],
        width: int | None = None,
        radius: float | None = None,
        taper: Taper = gaspari_cohn,
    ):
        """Build the table.

        Args:
            grid: where the points of the states are: a grid of the sphere, or a
                geometry (`Sphere`, `Plane`).
            coordinates: those of the observations that the geometry has names for, as
                `observation.coordinates` has them: `latitude` and `longitude` in
                degrees, or `x` and `y`; others are not used. An observation at NaN is
                nobody's neighbour.
            length: of the taper, in metres on the sphere, in the unit of the
                coordinates on a plane; Gaspari and Cohn's reaches 0 at twice that.
                `jnp.inf` uses all observations everywhere.
            width: neighbours that the table has room for at each point. What is needed,
                when not given; must be given under tracing.
            radius: of the sphere, in metres, 6.371e6 when not given.
            taper: the weight by distance over length, see `Step`.

        Raises:
            ValueError: a coordinate is missing, they are empty, their shapes differ,
                or `width` is not given under tracing.
            EquinoxRuntimeError: `length` is not above 0, a latitude lies outside
                [-90, 90], or a point has more neighbours than `width`.
        """
        geometry, length, places = _place(grid, coordinates, length, radius)
        room = most_candidates(geometry, places, length * support(taper))
        known = not isinstance(room, Tracer)
        if known:
            # In steps, so that similar observations share a program.
            room = -(-max(int(room), 1) // 16) * 16
        elif width is not None:
            room = _room(width)
        else:
            raise ValueError(
                "`width` must be given under tracing: it is the shape of the table."
            )
        room = min(room, places.shape[1])
        if width is None:
            most = most_neighbours(geometry, places, length, taper, room)
            width = max(int(most), 1)
        kept = min(width, room)
        near, most = find_neighbours(geometry, places, length, taper, room, kept)
        count = int(most) if known else "more"
        message = f"`width` is {width}, a point has {count} neighbours."
        self.position = eqx.error_if(places, most > width, message)
        self.geometry, self.length = geometry, length
        self.index = near.index.reshape(*geometry.shape, kept)
        self.taper = near.taper.reshape(*geometry.shape, kept)
        self.reached = near.reached

    def neighbours(self, observation: Observation) -> Neighbours:
        """Return the table for the observation that it was built for.

        Raises:
            ValueError: the observation has another number of entries.
            EquinoxRuntimeError: it lies elsewhere by more than a thousandth of the
                length: the table must be built anew.
        """
        if observation.value.size != self.position.shape[1]:
            raise ValueError(
                f"the localisation was built for {self.position.shape[1]} observations,"
                f" got {observation.value.size}; build one with their coordinates."
            )
        index, taper = self.index, self.taper
        where = observation.coordinates or {}
        if set(self.geometry.names) <= set(where):
            now = self.geometry.place(where).astype(self.position.dtype)
            here, there = self.geometry.embed(now), self.geometry.embed(self.position)
            gap = self.geometry.between(here, there)
            unknown = jnp.isnan(now) & jnp.isnan(self.position)
            # A masked station may be anywhere; NaN compares False.
            stayed = (gap <= 1e-3 * self.length) | jnp.any(unknown, axis=0)
            moved = ~stayed & observation.mask.reshape(-1)
            message = (
                "the observations are not where the localisation was built for; build "
                "one with their coordinates."
            )
            index, taper = eqx.error_if((index, taper), moved, message)
        return Neighbours(index, taper, jnp.zeros((), jnp.int32), self.reached)


class Moving(eqx.Module):
    """A localisation that is built anew for each observation, under jit.

    For stations that move or change from one analysis to the next. Where there are more
    neighbours than `width`, the nearest are kept, and `overflow` counts the others: a
    number above 0 says that `width` is too small. (It may count a few that were only
    nearly in reach.)
    """

    geometry: Geometry
    length: Float[Array, ""]
    width: int = eqx.field(static=True)
    taper: Taper = eqx.field(static=True)

    def __init__(
        self,
        grid: sphere.Grid | Geometry,
        *,
        length: float | Float[Array, ""],
        width: int,
        radius: float | None = None,
        taper: Taper = gaspari_cohn,
    ):
        """Set what `Localisation` takes; `length` is an array, and trainable.

        Raises:
            ValueError: `width` is below 1.
            EquinoxRuntimeError: `length` is not above 0.
        """
        if width < 1:
            raise ValueError(f"`width` must be at least 1, got {width}.")
        self.geometry = as_geometry(grid, radius)
        self.length = _above_0(jnp.asarray(length, float))
        self.width = width
        self.taper = taper

    def neighbours(self, observation: Observation) -> Neighbours:
        """Return the table for this observation, in reach of `observation.coordinates`.

        Masked entries take no room.

        Raises:
            ValueError: the observation does not say where it is.
            EquinoxRuntimeError: a latitude lies outside [-90, 90].
        """
        geometry = self.geometry
        places = geometry.place(observation.coordinates or {})
        length = self.length.astype(places.dtype)
        # At NaN, nobody's neighbour.
        places = jnp.where(observation.mask.reshape(1, -1), places, jnp.nan)
        room = min(_room(self.width), places.shape[1])
        width = min(self.width, room)
        near, _ = find_neighbours(geometry, places, length, self.taper, room, width)
        index, taper = (
            x.reshape(*geometry.shape, width) for x in (near.index, near.taper)
        )
        return near._replace(index=index, taper=taper)


def _place(
    grid, coordinates, length, radius
) -> tuple[Geometry, Float[Array, ""], Float[Array, "2 observation"]]:
    """Geometry, length and places in one dtype, checked."""
    geometry = as_geometry(grid, radius)
    places = geometry.place({} if coordinates is None else coordinates)
    if places.size == 0:
        raise ValueError("`coordinates` must be those of one observation at least.")
    return geometry, _above_0(jnp.asarray(length, places.dtype)), places


def _above_0(length: Array) -> Array:
    return eqx.error_if(length, ~(length > 0), "`length` must be above 0.")


def _room(width: int) -> int:
    # Bands hold some that are not in reach: 1.4 times the disc where all is even.
    return 2 * width + 16
