"""Where the points of a state lie, and how far other places are from them.

A geometry says how to search it, too: places have two coordinates, one that cuts it
into bands, and one that runs along each band.
"""

from collections.abc import Mapping

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from skyens import sphere

Places = Float[Array, "2 *place"]
Values = float | Float[Array | np.ndarray, "..."]


class Sphere(eqx.Module):
    """Points of a sphere: a grid of latitude and longitude, or places anywhere on it.

    Fields end with the axes `shape`: (latitude, longitude), or (point,). Distances are
    along great circles, in the unit of `radius`.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    axes: tuple[Float[Array, "_"], ...] | None = eqx.field(
        metadata={"trainable": False}
    )
    points: Float[Array, "2 point"] = eqx.field(metadata={"trainable": False})
    radius: float = eqx.field(static=True)

    def __init__(
        self,
        grid: sphere.Grid
        | tuple[Float[Array | np.ndarray, "_"], Float[Array | np.ndarray, "_"]],
        *,
        radius: float = 6.371e6,
    ):
        """Take the points of a grid, or those at `(latitude, longitude)`, degrees.

        Raises:
            ValueError: there are not as many latitudes as longitudes, or `radius` is
                not above 0.
            EquinoxRuntimeError: a latitude lies outside [-90, 90].
        """
        self.radius = _positive("radius", radius)
        if isinstance(grid, sphere.Grid):
            mesh = np.meshgrid(grid.latitude, grid.longitude, indexing="ij")
            self.points = jnp.asarray(np.stack(mesh).reshape(2, -1))
            self.axes = jnp.asarray(grid.latitude), jnp.asarray(grid.longitude)
            self.shape = grid.shape
        else:
            self.points = _within(_gather(self.names, grid))
            self.axes, self.shape = None, self.points.shape[1:]

    @property
    def names(self) -> tuple[str, ...]:
        """What the coordinates are called."""
        return "latitude", "longitude"

    @property
    def periods(self) -> tuple[float | None, float | None]:
        """After how much a coordinate comes back, None for never."""
        return None, 360.0

    def place(self, coordinates: Mapping[str, Values]) -> Places:
        """Return the places of `coordinates`, flat.

        Raises:
            ValueError: a coordinate is missing, or they differ in size.
            EquinoxRuntimeError: a latitude lies outside [-90, 90].
        """
        return _within(_gather(self.names, _pick(self.names, coordinates)))

    def embed(self, places: Places) -> Float[Array, "*place 3"]:
        """Return unit vectors."""
        latitude, longitude = jnp.deg2rad(places)
        out = jnp.cos(latitude)
        east, north = out * jnp.cos(longitude), out * jnp.sin(longitude)
        return jnp.stack([east, north, jnp.sin(latitude)], axis=-1)

    def between(
        self, one: Float[Array, "*#pair 3"], other: Float[Array, "*#pair 3"]
    ) -> Float[Array, "*pair"]:
        """Return the distance of embedded places; accurate near and far.

        Source: Kahan (2006), How Futile are Mindless Assessments of Roundoff,
        section 12, for the angle between two vectors.
        """
        apart, together = _norm(one - other), _norm(one + other)
        return 2 * self.radius * jnp.arctan2(apart, together)

    def reach(self, distance: Float[Array, ""]) -> Float[Array, ""]:
        """Return a distance in degrees of latitude."""
        return jnp.rad2deg(distance / self.radius)

    def half_width(
        self,
        centre: Float[Array, "2 *#place"],
        south: Float[Array, "*#place"],
        north: Float[Array, "*#place"],
        reach: Float[Array, ""],
    ) -> Float[Array, "*place"]:
        """Return how far to either side a cap reaches in a band, degrees of longitude.

        Negative where the cap does not meet the band.
        """
        rim = jnp.cos(jnp.deg2rad(jnp.minimum(reach, 180)))
        middle = jnp.deg2rad(centre[0])
        # The cap is widest where a meridian touches it, or at the band's edge.
        touch = jnp.sin(middle) / jnp.where(rim > 0, rim, 1)
        touch = jnp.where(rim > 0, jnp.arcsin(jnp.clip(touch, -1, 1)), middle)
        low, high = (jnp.deg2rad(jnp.clip(edge, -90, 90)) for edge in (south, north))
        widest = jnp.clip(touch, low, high)
        spread = jnp.cos(middle) * jnp.cos(widest)
        cosine = rim - jnp.sin(middle) * jnp.sin(widest)
        turning = jnp.arccos(jnp.clip(cosine / jnp.where(spread > 0, spread, 1), -1, 1))
        width = jnp.rad2deg(turning)
        everything = (cosine <= -spread) | (reach >= 90)
        return jnp.where(everything, 360.0, jnp.where(cosine > spread, -1.0, width))


class Plane(eqx.Module):
    """Points of a line or a plane, each axis open or periodic.

    `Plane(x)` is a line, of fields `(..., x)`; `Plane(x, y)` has fields `(..., y, x)`.
    Distances are straight, the shortest way round, in the unit of the coordinates.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    axes: tuple[Float[Array, "_"], ...] | None = eqx.field(
        metadata={"trainable": False}
    )
    points: Float[Array, "2 point"] = eqx.field(metadata={"trainable": False})
    names: tuple[str, ...] = eqx.field(static=True)
    periods: tuple[float | None, float | None] = eqx.field(static=True)

    def __init__(
        self,
        x: Float[Array | np.ndarray, "_"],
        y: Float[Array | np.ndarray, "_"] | None = None,
        *,
        period: float | None = None,
        period_y: float | None = None,
        scattered: bool = False,
    ):
        """Take a line along `x`, or the grid of all `y` and `x`.

        Args:
            x: coordinates of the last axis, any unit and order.
            y: those of the axis before it.
            period: the length after which `x` comes back, None if it does not;
            period_y: that of `y`.
            scattered: whether `x` and `y` are those of points in no order, for fields
                `(..., point)`.

        Raises:
            ValueError: a period is not above 0, or scattered points have not as many
                `x` as `y`.
        """
        check = lambda name, p: None if p is None else _positive(name, p)
        self.periods = check("period_y", period_y), check("period", period)
        self.names = ("x",) if y is None else ("y", "x")
        x = jnp.asarray(x)
        y = jnp.zeros(1, x.dtype) if y is None else jnp.asarray(y, x.dtype)
        if scattered:
            self.points = _gather(self.names, (y, x))
            self.axes, self.shape = None, self.points.shape[1:]
        else:
            self.points = jnp.stack(jnp.meshgrid(y, x, indexing="ij")).reshape(2, -1)
            self.axes = (y, x)[-len(self.names) :]
            self.shape = tuple(axis.size for axis in self.axes)

    def place(self, coordinates: Mapping[str, Values]) -> Places:
        """Return the places of `coordinates`, `x` or `x` and `y`, flat.

        Raises:
            ValueError: a coordinate is missing, or they differ in size.
        """
        found = _pick(self.names, coordinates)
        if len(found) == 1:
            found = [jnp.zeros_like(found[0]), *found]
        return _gather(("y", "x"), found)

    def embed(self, places: Places) -> Float[Array, "*place 2"]:
        """Return the coordinates, last."""
        return jnp.moveaxis(places, 0, -1)

    def between(
        self, one: Float[Array, "*#pair 2"], other: Float[Array, "*#pair 2"]
    ) -> Float[Array, "*pair"]:
        """Return the distance of embedded places."""
        gap = jnp.moveaxis(one - other, -1, 0)
        return _norm(
            jnp.stack(
                [_shortest(g, p) for g, p in zip(gap, self.periods, strict=True)], -1
            )
        )

    def reach(self, distance: Float[Array, ""]) -> Float[Array, ""]:
        """Return the distance: bands have its unit."""
        return distance

    def half_width(
        self,
        centre: Float[Array, "2 *#place"],
        south: Float[Array, "*#place"],
        north: Float[Array, "*#place"],
        reach: Float[Array, ""],
    ) -> Float[Array, "*place"]:
        """Return how far to either side a disc reaches in a band, along x.

        Negative where the disc does not meet the band.
        """
        gap = _shortest(centre[0] - (south + north) / 2, self.periods[0])
        gap = jnp.maximum(jnp.abs(gap) - (north - south) / 2, 0)
        square = (reach - gap) * (reach + gap)
        width = jnp.sqrt(jnp.maximum(square, 0))
        return jnp.where(gap > reach, -1, width)


Geometry = Sphere | Plane


def as_geometry(grid: sphere.Grid | Geometry, radius: float | None) -> Geometry:
    """Return a geometry, that of a sphere for one of its grids.

    Raises:
        ValueError: a `radius` is given to a geometry, which has its own.
    """
    if isinstance(grid, sphere.Grid):
        return Sphere(grid) if radius is None else Sphere(grid, radius=radius)
    if radius is not None:
        raise ValueError(
            "`radius` goes with a `sphere.Grid`; a geometry has its own: "
            "Sphere(grid, radius=...)."
        )
    return grid


def _pick(names, coordinates):
    if missing := set(names) - set(coordinates):
        example = ", ".join(f"{name!r}: ..." for name in names)
        raise ValueError(
            f"`coordinates` needs {' and '.join(names)}, {sorted(missing)} is missing; "
            "say where the observations are: Observation(..., coordinates="
            f"{{{example}}})."
        )
    return [jnp.asarray(coordinates[name]).reshape(-1) for name in names]


def _gather(names, coordinates) -> Float[Array, "2 place"]:
    one, other = (jnp.asarray(c).reshape(-1) for c in coordinates)
    if one.shape != other.shape:
        raise ValueError(
            f"`coordinates` needs as many {names[0]}s as {names[1]}s, got {one.size} "
            f"and {other.size}."
        )
    dtype = jnp.promote_types(one.dtype, other.dtype)
    return jnp.stack([one.astype(dtype), other.astype(dtype)])


def _within(places):
    """Check latitudes; NaN is a place not known, and passes."""
    if isinstance(places, Tracer):
        outside = jnp.abs(places[0]) > 90
        return eqx.error_if(places, outside, "`latitude` must lie in [-90, 90].")
    outside = np.abs(np.asarray(places[0])) > 90
    if not outside.any():
        return places
    first = int(np.argmax(outside))
    message = (
        f"`latitude` must lie in [-90, 90] degrees: {int(outside.sum())} of "
        f"{outside.size} values do not, the first, at {first}, is {places[0, first]}."
    )
    return eqx.error_if(places, np.asarray(True), message)


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"`{name}` must be above 0, got {value}.")
    return float(value)


def _shortest(gap, period):
    return gap if period is None else gap - period * jnp.round(gap / period)


def _norm(vector):
    """Length of a vector along the last axis; its gradient at 0 is 0."""
    square = jnp.sum(vector**2, axis=-1)
    # Double where: the square root must never see the 0 it would differentiate.
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
