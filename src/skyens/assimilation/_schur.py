"""Localisation of covariances: their product, entry by entry, with a taper."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from skyens import sphere
from skyens.assimilation._geometry import Geometry, as_geometry
from skyens.assimilation._localisation import gaspari_cohn
from skyens.assimilation._vertical import Vertical
from skyens.observations import Observation


class Located(NamedTuple):
    """Where observations are: embedded, in the vertical, and whether that is known."""

    places: Float[Array, "observation _"]
    heights: Float[Array, "observation"] | None
    by_place: Float[Array, "observation place"]
    known: Bool[Array, "observation"]


class Schur(eqx.Module):
    """Weights of covariances by distance, computed where they are needed.

    Nothing is kept of the size of points times observations. For `EnSRF` and
    `LocalisedEnKF`; the `LETKF` has its `Localisation`.
    """

    geometry: Geometry
    length: Float[Array, ""]
    vertical: Vertical | None
    taper: Callable[[Array], Array] = eqx.field(static=True)

    def __init__(
        self,
        grid: sphere.Grid | Geometry,
        *,
        length: float | Float[Array, ""],
        radius: float | None = None,
        taper: Callable[[Array], Array] = gaspari_cohn,
        vertical: Vertical | None = None,
    ):
        """Set what `Localisation` takes, and weights by vertical distance, if any.

        Raises:
            ValueError: a `radius` is given to a geometry, which has its own.
            EquinoxRuntimeError: `length` is not above 0.
        """
        self.geometry = as_geometry(grid, radius)
        length = jnp.asarray(length, float)
        message = "`length` must be above 0."
        self.length = eqx.error_if(length, ~(length > 0), message)
        self.taper = taper
        self.vertical = vertical

    def locate(self, observation: Observation) -> Located:
        """Return where the observations are; one at NaN is near nobody.

        Raises:
            ValueError: the observation does not say where it is.
            EquinoxRuntimeError: a latitude lies outside [-90, 90].
        """
        places = self.geometry.place(observation.coordinates or {})
        known = jnp.all(jnp.isfinite(places), axis=0)
        heights, by_place = None, jnp.ones((known.size, 1), places.dtype)
        if self.vertical is not None:
            heights = self.vertical.heights(observation)
            by_place = self.vertical.weights(observation)
        places = self.geometry.embed(jnp.where(known[None, :], places, 0))
        return Located(places, heights, by_place, known)

    def to_points(
        self, located: Located, number: Int[Array, ""]
    ) -> tuple[Float[Array, "place"], Float[Array, "point"]]:
        """Return the weights of one observation at vertical places and at points."""
        points = self.geometry.points.astype(located.places.dtype)
        horizontal = self._weight(self.geometry.embed(points), located.places[number])
        there = jnp.where(located.known[number], horizontal, 0)
        return located.by_place[number], there

    def unreached(
        self, located: Located, mask: Bool[Array, "observation"]
    ) -> Int[Array, ""]:
        """Count the unmasked observations that are near no point.

        They still correct what is expected of their neighbours.
        """

        def hears(number):
            by_place, by_point = self.to_points(located, number)
            return jnp.any(by_place > 0) & jnp.any(by_point > 0)

        heard = jax.lax.map(hears, jnp.arange(mask.size), batch_size=32)
        return jnp.sum(mask & ~heard)

    def to_observations(
        self, located: Located, number: Int[Array, ""]
    ) -> Float[Array, "observation"]:
        """Return the weights of one observation at all of them; at itself it is 1."""
        weight = self._weight(located.places, located.places[number])
        weight = jnp.where(located.known & located.known[number], weight, 0)
        if self.vertical is not None and located.heights is not None:
            heights = located.heights
            weight = weight * self.vertical.near(heights[number][None], heights)
        return weight.at[number].set(1)

    def from_point(
        self, located: Located, point: Shaped[Array, "2"]
    ) -> Float[Array, "place observation"]:
        """Return the weights of all observations at a point, for each place."""
        here = self.geometry.embed(point.astype(located.places.dtype))
        weight = jnp.where(located.known, self._weight(located.places, here), 0)
        return located.by_place.T * weight[None, :]

    def between_observations(
        self, located: Located
    ) -> Float[Array, "observation observation"]:
        """Return the weights between all observations."""
        numbers = jnp.arange(len(located.known))
        return jax.vmap(lambda j: self.to_observations(located, j))(numbers)

    def _weight(self, places, place):
        distance = self.geometry.between(places, place[None, :])
        return self.taper(distance / self.length.astype(distance.dtype))
