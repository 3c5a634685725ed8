"""Rasters: a latitude-longitude field seen at the pixels of a map projection.

Contours are drawn from these, in the projection's own coordinates. Drawn from the
latitude-longitude cells they would have to be cut at the seams of every projection.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from skyens.sphere import Grid

if TYPE_CHECKING:
    import cartopy.crs

Where = Grid | tuple[Any, Any]  # a grid, or latitude and longitude in degrees


def coordinates(
    where: Where, shape: tuple[int, ...]
) -> tuple[Float[np.ndarray, " latitude"], Float[np.ndarray, " longitude"]]:
    """Return latitude and longitude of `where`, both rising, checked against `shape`.

    Raises:
        ValueError: the last two axes of a field of that `shape` do not fit, or
            coordinates do not rise or fall strictly.
    """
    latitude, longitude = (
        (where.latitude, where.longitude)
        if isinstance(where, Grid)
        else (np.asarray(axis, np.float64) for axis in where)
    )
    if latitude.ndim != 1 or longitude.ndim != 1:
        raise ValueError(
            "`grid` must be a Grid, or the vectors (latitude, longitude), got the "
            f"shapes {latitude.shape} and {longitude.shape}."
        )
    if shape[-2:] != (latitude.size, longitude.size):
        raise ValueError(
            f"a field of shape {shape} does not lie on `grid`: its last two axes must "
            f"be (latitude, longitude) = {(latitude.size, longitude.size)}."
        )
    # East of the first, so that a jump from 180 to -180 or 360 to 0 is none.
    longitude = longitude[0] + (longitude - longitude[0]) % 360
    steps = np.diff(latitude)
    if not (np.all(steps > 0) or np.all(steps < 0)):
        raise ValueError("`grid` must have latitudes that rise or fall strictly.")
    if min(latitude.size, longitude.size) < 2:
        raise ValueError(
            "`grid` must have at least 2 latitudes and 2 longitudes, got "
            f"{latitude.size} and {longitude.size}."
        )
    if not np.all(np.diff(longitude) > 0):
        raise ValueError("`grid` must have longitudes that run east, once around.")
    return latitude, longitude


class Raster:
    """The pixels of a map, and for each its latitude and longitude.

    `x` and `y` are in the projection's coordinates. Pixels outside the globe take the
    place of the nearest inside, in their row; the map's outline then clips them, and
    colours reach up to it.
    """

    def __init__(
        self,
        projection: "cartopy.crs.Projection",
        extent: tuple[float, float, float, float],
        pixels: int,
    ):
        """Lay about `pixels` squared pixels over `extent`: west, east, south, north."""
        import cartopy.crs as ccrs

        west, east, south, north = extent
        aspect = np.sqrt((east - west) / (north - south))
        self.x = np.linspace(west, east, int(np.ceil(pixels * aspect)))
        self.y = np.linspace(south, north, int(np.ceil(pixels / aspect)))
        x, y = np.meshgrid(self.x, self.y)
        sphere = ccrs.PlateCarree()
        with np.errstate(invalid="ignore"):
            place = sphere.transform_points(projection, x, y)[..., :2]
            # Some inverses give places for pixels outside the globe.
            back = projection.transform_points(sphere, place[..., 0], place[..., 1])
            error = np.hypot(back[..., 0] - x, back[..., 1] - y)
        inside = error < 1e-3 * (east - west)  # False for NaN
        place[~inside] = np.nan
        column, row = np.arange(self.x.size), np.arange(self.y.size)
        rows = np.flatnonzero(inside.any(axis=1))
        for i in rows:
            known = np.flatnonzero(inside[i])
            place[i] = place[i, np.clip(column, known[0], known[-1])]
        place = place[np.clip(row, rows[0], rows[-1])]
        self.longitude, self.latitude = place[..., 0], place[..., 1]

    def sample(
        self,
        field: Float[np.ndarray, "*batch latitude longitude"],
        latitude: Float[np.ndarray, " latitude"],
        longitude: Float[np.ndarray, " longitude"],
    ) -> Float[np.ndarray, "*batch y x"]:
        """Return `field` at the pixels; NaN beyond a part of the globe.

        Cubic (Catmull-Rom along both axes), so that contours of a coarse grid have no
        kinks, but never beyond the extremes of `field`; bilinear beside NaN. The circle
        of longitudes is closed, and rows go on beyond a pole on the other side.
        """
        if latitude[0] > latitude[-1]:
            latitude, field = latitude[::-1], field[..., ::-1, :]
        around = longitude[0] + 360 - longitude[-1] < 1.5 * np.diff(longitude).max()
        if around:
            latitude, field = _beyond_poles(latitude, field)
            longitude = np.append(longitude, longitude[0] + 360)
            field = np.concatenate([field, field[..., :1]], axis=-1)
        east = longitude[0] + (self.longitude - longitude[0]) % 360
        row, along = _between(latitude, self.latitude)
        column, across = _between(longitude, east)

        def combine(weights: Callable[[np.ndarray], Sequence[np.ndarray]]):
            downs, overs = weights(along), weights(across)
            first = 1 - len(downs) // 2
            total = 0.0
            for j, down in enumerate(downs, first):
                rows = np.clip(row + j, 0, latitude.size - 1)
                for i, over in enumerate(overs, first):
                    columns = column + i
                    if around:
                        columns = columns % (longitude.size - 1)
                    columns = np.clip(columns, 0, longitude.size - 1)
                    total = total + down * over * field[..., rows, columns]
            return total

        sampled = combine(_cubic)
        if not np.isfinite(field).all():
            sampled = np.where(np.isfinite(sampled), sampled, combine(_linear))
        return np.clip(sampled, np.nanmin(field), np.nanmax(field))


@lru_cache(maxsize=8)
def raster(
    projection: "cartopy.crs.Projection",
    extent: tuple[float, float, float, float],
    pixels: int,
) -> Raster:
    """Return the raster, kept for the next map of the same projection and extent."""
    return Raster(projection, extent, pixels)


def _beyond_poles(
    latitude: Float[np.ndarray, " n"], field: Float[np.ndarray, "*batch n longitude"]
) -> tuple[np.ndarray, np.ndarray]:
    """Add two rows beyond each pole that the rows reach: those across it, turned."""
    size = field.shape[-1]
    turned = (np.roll(field, size // 2, -1) + np.roll(field, -(size // 2), -1)) / 2
    step = np.diff(latitude).max()
    south, north = latitude[0] - step < -90, latitude[-1] + step > 90
    first, last = int(latitude[0] < -90 + 1e-6), -1 - int(latitude[-1] > 90 - 1e-6)
    under = slice(first, first + 2) if south else slice(0)
    over = slice(last - 1, last + 1 or None) if north else slice(0)
    return (
        np.concatenate(
            [-180 - latitude[under][::-1], latitude, 180 - latitude[over][::-1]]
        ),
        np.concatenate(
            [
                turned[..., under, :][..., ::-1, :],
                field,
                turned[..., over, :][..., ::-1, :],
            ],
            axis=-2,
        ),
    )


def _between(
    axis: Float[np.ndarray, " n"], at: Float[np.ndarray, "..."]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of the value of `axis` before `at`, and the part of the way on.

    The part is NaN outside `axis`.
    """
    index = np.clip(np.searchsorted(axis, at, side="right") - 1, 0, axis.size - 2)
    part = (at - axis[index]) / (axis[index + 1] - axis[index])
    return index, np.where((part < -1e-9) | (part > 1 + 1e-9), np.nan, part)


def _linear(t: np.ndarray) -> tuple[np.ndarray, ...]:
    return 1 - t, t


def _cubic(t: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return Catmull-Rom's weights of the points -1, 0, 1, 2, at `t` in [0, 1]."""
    return (
        -t / 2 + t**2 - t**3 / 2,
        1 - 2.5 * t**2 + 1.5 * t**3,
        t / 2 + 2 * t**2 - 1.5 * t**3,
        (t**3 - t**2) / 2,
    )
