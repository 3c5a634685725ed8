"""Localisation: which observations a grid point listens to, and how much."""

from collections.abc import Mapping
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Scalar

from skyens import sphere
from skyens.observations import Observation


def gaspari_cohn(r: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return the compactly supported correlation at `r`, distance over length.

    1 at 0, 5/24 at 1, 0 from 2 on; twice differentiable, and smooth enough at 2 for
    its square root to have a gradient. Never negative, in float32 too.

    Source: Gaspari & Cohn (1999), Quart. J. Roy. Meteor. Soc. 125, 723-757,
    equation 4.10; the outer branch factorised, which leaves nothing to cancel.
    """
    r = jnp.minimum(jnp.abs(r), 2)
    near = 1 + r**2 * (-5 / 3 + r * (5 / 8 + r * (1 / 2 - r / 4)))
    # Double where: the quotient must never see the 0 it would differentiate.
    outside = jnp.where(r > 1, r, 1)
    far = (2 - outside) ** 4 * (outside**2 + 2 * outside - 0.5) / (12 * outside)
    return jnp.where(r > 1, far, near)


class Localisation(eqx.Module):
    """For each point of a grid, the observations within reach and their weights.

    A table of static width, so its size is grid points times `width`, never grid points
    times observations. `index` numbers the observations (flattened), `taper` is the
    Gaspari-Cohn function of the great-circle distance, 0 in slots that are not needed.
    """

    index: Int[Array, "latitude longitude width"]
    taper: Float[Array, "latitude longitude width"] = eqx.field(
        metadata={"trainable": False}
    )
    position: Float[Array, "2 observation"] = eqx.field(metadata={"trainable": False})

    def __init__(
        self,
        grid: sphere.Grid,
        coordinates: Mapping[str, Float[Array | np.ndarray, "..."]] | None,
        *,
        length: float | Float[Array, ""],
        width: int | None = None,
        radius: float = 6.371e6,
    ):
        """Build the table.

        Args:
            grid: the grid of the states.
            coordinates: `latitude` and `longitude` of the observations in degrees, as
                `observation.coordinates` has them; other names are not used. An
                observation at NaN is nobody's neighbour.
            length: of the Gaspari-Cohn function, in metres; the weights reach 0 at
                twice that. `jnp.inf` uses all observations everywhere.
            width: neighbours that the table has room for at each point. What is needed,
                when not given; must be given under tracing.
            radius: of the sphere, in metres.

        Raises:
            ValueError: latitude or longitude is missing, their shapes differ, or
                `width` is not given under tracing.
            EquinoxRuntimeError: `length` is not above 0, a latitude lies outside
                [-90, 90], or a point has more neighbours than `width`.
        """
        coordinates = {} if coordinates is None else coordinates
        if missing := {"latitude", "longitude"} - set(coordinates):
            raise ValueError(
                f"`coordinates` needs latitude and longitude, {sorted(missing)} is "
                "missing; say where the observations are: Observation(..., coordinates="
                "{'latitude': ..., 'longitude': ...})."
            )
        latitude = jnp.asarray(coordinates["latitude"]).reshape(-1)
        longitude = jnp.asarray(coordinates["longitude"]).reshape(-1)
        if latitude.shape != longitude.shape:
            raise ValueError(
                "`coordinates` needs as many latitudes as longitudes, got "
                f"{latitude.size} and {longitude.size}."
            )
        latitude = eqx.error_if(
            latitude, jnp.abs(latitude) > 90, "`latitude` must lie in [-90, 90]."
        )
        dtype = latitude.dtype
        length = jnp.asarray(length, dtype)
        length = eqx.error_if(length, ~(length > 0), "`length` must be above 0.")
        position = jnp.stack([latitude, longitude.astype(dtype)])
        scale = jnp.asarray(radius, dtype) / length
        needed = _needed(grid, position, scale)
        if width is None:
            if isinstance(needed, Tracer):
                raise ValueError(
                    "`width` must be given under tracing: it is the shape of the table."
                )
            width = max(int(needed), 1)
        count = "more" if isinstance(needed, Tracer) else int(needed)
        message = f"`width` is {width}, a point has {count} neighbours."
        position = eqx.error_if(position, needed > width, message)
        width = min(width, latitude.size)
        self.index, self.taper = _nearest(grid, position, scale, width)
        self.position = position

    def neighbours(
        self, observation: Observation
    ) -> tuple[
        Int[Array, "latitude longitude width"], Float[Array, "latitude longitude width"]
    ]:
        """Return `index` and `taper` for the observation that the table was built for.

        Raises:
            ValueError: the observation has another number of entries.
            EquinoxRuntimeError: it lies elsewhere by more than 1e-3 degrees: the table
                must be built anew.
        """
        if observation.value.size != self.position.shape[1]:
            raise ValueError(
                f"the localisation was built for {self.position.shape[1]} observations,"
                f" got {observation.value.size}; build one with their coordinates."
            )
        place = observation.coordinates or {}
        if not {"latitude", "longitude"} <= set(place):
            return self.index, self.taper
        now = jnp.stack([place[n].reshape(-1) for n in ("latitude", "longitude")])
        turn = jnp.abs(now.astype(self.position.dtype) - self.position)
        # A masked station may be anywhere; NaN compares False.
        moved = (jnp.minimum(turn, 360 - turn) > 1e-3) & observation.mask.reshape(1, -1)
        message = (
            "the observations are not where the localisation was built for; build one "
            "with their coordinates."
        )
        return eqx.error_if((self.index, self.taper), moved, message)


@partial(jax.jit, static_argnums=0)
def _needed(grid: sphere.Grid, position: Array, scale: Array) -> Int[Array, ""]:
    """Largest number of neighbours of any point."""
    count = lambda row: jnp.max(jnp.sum(_row(grid, position, scale, row) < 2, axis=-1))
    return jnp.max(jax.lax.map(count, jnp.asarray(grid.latitude, position.dtype)))


@partial(jax.jit, static_argnums=(0, 3))
def _nearest(grid: sphere.Grid, position: Array, scale: Array, width: int):
    """Index and taper of the `width` nearest observations of each point."""

    def nearest(row):
        closeness, index = jax.lax.top_k(-_row(grid, position, scale, row), width)
        return index, gaspari_cohn(-closeness)

    return jax.lax.map(nearest, jnp.asarray(grid.latitude, position.dtype))


def _row(
    grid: sphere.Grid, position: Array, scale: Array, latitude: Scalar
) -> Float[Array, "longitude observation"]:
    """Distance over length between the points of one row and all observations."""
    known = jnp.all(jnp.isfinite(position), axis=0)
    # Double where: an unknown place must not spoil the gradient of the others.
    there = jnp.where(known[None, :], position, 0)
    longitude = jnp.asarray(grid.longitude, position.dtype)[:, None]
    here = jnp.full_like(longitude, latitude)
    distance = sphere.great_circle_distance(here, longitude, there[:1], there[1:])
    return jnp.where(known[None, :], distance * scale, jnp.inf)
