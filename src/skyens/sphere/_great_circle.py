"""Great circles: distance, bearing, destination, and points along the way.

Angles come in degrees, any turn, and broadcast; distances are in radians, so that
times a radius they are lengths.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

Degrees = float | Float[Array, "*#points"]


def great_circle_distance(
    latitude1: Degrees, longitude1: Degrees, latitude2: Degrees, longitude2: Degrees
) -> Float[Array, "*points"]:
    """Return the angle between points in radians; the inputs (degrees) broadcast.

    Accurate for near and for opposite points; its gradient is 0, not NaN, where the
    points coincide.

    Source: Vincenty (1975), Survey Review 23, 88-93, on a sphere.
    """
    across, along, up = _seen_from(latitude1, longitude1, latitude2, longitude2)
    return jnp.arctan2(_length(across, along), up)


def bearing(
    latitude1: Degrees, longitude1: Degrees, latitude2: Degrees, longitude2: Degrees
) -> Float[Array, "*points"]:
    """Return the direction in which the second point is seen from the first.

    Degrees clockwise from north, in [0, 360). It is 0, with no gradient, where the
    points coincide; at a pole, north is along the longitude given for it.
    """
    across, along, _ = _seen_from(latitude1, longitude1, latitude2, longitude2)
    turned = jnp.mod(jnp.rad2deg(_angle(across, along)), 360)
    return jnp.where(turned < 360, turned, turned - 360)  # a little below 0 rounds up


def destination(
    latitude: Degrees,
    longitude: Degrees,
    bearing: Degrees,
    distance: Degrees,
) -> tuple[Float[Array, "*points"], Float[Array, "*points"]]:
    """Return where a great circle leads: latitude and longitude in degrees.

    Args:
        latitude: of the start, degrees.
        longitude: of the start, degrees; the result lies within half a turn of it.
        bearing: at the start, degrees clockwise from north.
        distance: radians, length over radius.
    """
    lat, turn = jnp.deg2rad(latitude), jnp.deg2rad(bearing)
    ahead = jnp.sin(distance) * jnp.cos(turn)
    east = jnp.sin(distance) * jnp.sin(turn)
    out = jnp.cos(lat) * jnp.cos(distance) - jnp.sin(lat) * ahead
    north = jnp.sin(lat) * jnp.cos(distance) + jnp.cos(lat) * ahead
    end = jnp.rad2deg(jnp.arctan2(north, _length(out, east)))
    return end, longitude + jnp.rad2deg(_angle(east, out))


def great_circle_path(
    latitude1: float | Float[Array, ""],
    longitude1: float | Float[Array, ""],
    latitude2: float | Float[Array, ""],
    longitude2: float | Float[Array, ""],
    points: int,
) -> tuple[Float[Array, "{points}"], Float[Array, "{points}"]]:
    """Return equally spaced points on the shortest way, both ends included.

    Latitude and longitude in degrees, the longitude within half a turn of the start's.
    Between opposite points, where every way is as short, it is the one that `bearing`
    gives. With `interpolate` it makes a section.

    Raises:
        ValueError: fewer than two points.
    """
    if points < 2:
        raise ValueError(f"`points` must be at least 2, got {points}.")
    ends = latitude1, longitude1, latitude2, longitude2
    distance = great_circle_distance(*ends)
    steps = jnp.linspace(0, 1, points, dtype=distance.dtype)
    return destination(latitude1, longitude1, bearing(*ends), distance * steps)


def _seen_from(latitude1, longitude1, latitude2, longitude2):
    """Return the second point's components east, north and up at the first."""
    lat1, lat2 = jnp.deg2rad(latitude1), jnp.deg2rad(latitude2)
    turn = jnp.deg2rad(longitude2 - longitude1)
    east = jnp.cos(lat2) * jnp.sin(turn)
    # From the difference of latitudes: near points keep their digits.
    north = jnp.sin(jnp.deg2rad(latitude2 - latitude1))
    north = north + 2 * jnp.sin(lat1) * jnp.cos(lat2) * jnp.sin(turn / 2) ** 2
    level = jnp.cos(lat1) * jnp.cos(lat2) * jnp.cos(turn)
    return east, north, jnp.sin(lat1) * jnp.sin(lat2) + level


def _length(x, y):
    """The length of a plane vector; its gradient at 0 is 0."""
    squared = x**2 + y**2
    # Double where: the square root must never see the 0 it would differentiate.
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)


def _angle(y, x):
    """The arc tangent of `y / x`; at the origin it is 0, and so is its gradient."""
    origin = (x == 0) & (y == 0)
    return jnp.where(origin, 0, jnp.arctan2(y, jnp.where(origin, 1, x)))
