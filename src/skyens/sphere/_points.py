"""From fields to points: bilinear interpolation and great-circle distance."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from skyens.sphere._grid import Grid


def interpolate(
    grid: Grid,
    field: Float[Array, "*batch latitude longitude"],
    latitude: Float[Array, " point"],
    longitude: Float[Array, " point"],
) -> Float[Array, "*batch point"]:
    """Return `field` at points, bilinear in latitude and longitude.

    Longitude is periodic. Between the last row and a pole that the grid leaves out,
    the pole's value is the mean of that row. Linear in `field`; differentiable in the
    points too, except across cell edges. The points may be traced: they may move.

    Args:
        grid: the grid of `field`.
        field: values, any unit.
        latitude: degrees, in [-90, 90].
        longitude: degrees, any turn.

    Raises:
        ValueError: `field` does not lie on `grid`.
    """
    grid.check(field)
    if grid.kind != "equiangular":
        south_north = [field[..., :1, :], field[..., -1:, :]]
        pole = [
            jnp.broadcast_to(r.mean(-1, keepdims=True), r.shape) for r in south_north
        ]
        field = jnp.concatenate([pole[0], field, pole[1]], axis=-2)
    sign = -1.0 if grid.north_first else 1.0
    dtype = latitude.dtype
    rows = np.array(sign * grid.latitude)
    if grid.kind != "equiangular":
        rows = np.concatenate([[-90.0], rows, [90.0]])
    rows[0], rows[-1] = -90, 90  # an arc cosine may leave them a rounding inside
    rows = jnp.asarray(rows, dtype)
    y = sign * latitude
    i = jnp.clip(jnp.searchsorted(rows, y, side="right") - 1, 0, rows.size - 2)
    up = ((y - rows[i]) / (rows[i + 1] - rows[i])).astype(field.dtype)
    x = jnp.mod(longitude - grid.longitude_origin, 360.0) * (grid.n_longitude / 360)
    j = jnp.clip(jnp.floor(x).astype(i.dtype), 0, grid.n_longitude - 1)
    right = (x - j.astype(dtype)).astype(field.dtype)
    next_j = jnp.mod(j + 1, grid.n_longitude)
    lead = (1,) * (field.ndim - 2)
    up, right = up.reshape(*lead, -1), right.reshape(*lead, -1)
    low = field[..., i, j] * (1 - right) + field[..., i, next_j] * right
    high = field[..., i + 1, j] * (1 - right) + field[..., i + 1, next_j] * right
    return low * (1 - up) + high * up


def great_circle_distance(
    latitude1: Float[Array, "*#points"],
    longitude1: Float[Array, "*#points"],
    latitude2: Float[Array, "*#points"],
    longitude2: Float[Array, "*#points"],
) -> Float[Array, "*points"]:
    """Return the angle between points in radians; the inputs (degrees) broadcast.

    Accurate for near and for opposite points; its gradient is 0, not NaN, where the
    points coincide.

    Source: Vincenty (1975), Survey Review 23, 88-93, on a sphere.
    """
    lat1, lat2 = jnp.deg2rad(latitude1), jnp.deg2rad(latitude2)
    turn = jnp.deg2rad(longitude2 - longitude1)
    across = jnp.cos(lat2) * jnp.sin(turn)
    along = jnp.cos(lat1) * jnp.sin(lat2) - jnp.sin(lat1) * jnp.cos(lat2) * jnp.cos(
        turn
    )
    down = jnp.sin(lat1) * jnp.sin(lat2) + jnp.cos(lat1) * jnp.cos(lat2) * jnp.cos(turn)
    squared = across**2 + along**2
    # Double where: the square root must never see the 0 it would differentiate.
    sine = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
    return jnp.arctan2(sine, down)
