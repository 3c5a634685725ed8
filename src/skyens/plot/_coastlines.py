"""Coastlines that are shipped: the zero contour of real relief, never a download."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    import cartopy.crs

_FILE = Path(__file__).parent / "coastlines.npz"
_STEP = 0.01  # degrees; a hundredth of a typical pixel of a map of the globe


def trace_coastlines(
    elevation: Float[np.ndarray, "latitude longitude"],
    latitude: Float[np.ndarray, " latitude"],
    longitude: Float[np.ndarray, " longitude"],
    *,
    smallest: float | int = 300,
) -> list[Float[np.ndarray, "_ 2"]]:
    """Return the lines of zero elevation; points are `(longitude, latitude)`, degrees.

    Lines end at the 180th meridian, so that each stays within -180 to 180 degrees.

    Args:
        elevation: above sea level, m, on the whole globe; finite.
        latitude: degrees, rising.
        longitude: degrees east, rising, equal steps of the full circle.
        smallest: km of coast below which a closed line is left out.
    """
    from contourpy import contour_generator

    # Start at the 180th meridian and close the circle there; where no column lies on
    # it, the mean of its two neighbours does.
    east = (longitude + 180) % 360 - 180
    order = np.argsort(east)
    east, elevation = east[order], elevation[:, order]
    if east[0] > -180:
        seam = (elevation[:, :1] + elevation[:, -1:]) / 2
        east = np.concatenate([[-180], east, [180]])
        elevation = np.concatenate([seam, elevation, seam], axis=1)
    else:
        east = np.concatenate([east, [180]])
        elevation = np.concatenate([elevation, elevation[:, :1]], axis=1)
    lines = contour_generator(east, latitude, elevation).lines(0.0)
    return [line for line in map(np.asarray, lines) if _length(line) >= smallest]


@lru_cache(maxsize=1)
def coastlines() -> tuple[Float[np.ndarray, "_ 2"], ...]:
    """Return the shipped coastlines, each point `(longitude, latitude)` in degrees.

    They were traced from the sample `"topography"`, relief of ETOPO5 in cells of 20
    minutes (NOAA National Geophysical Data Center, 1988), and rounded to 0.01 degrees.
    """
    with np.load(_FILE) as stored:
        points = np.cumsum(stored["steps"].astype(np.int64), axis=0) * _STEP
        return tuple(np.split(points, stored["starts"]))


def store_coastlines(lines: list[Float[np.ndarray, "_ 2"]], path: Path = _FILE) -> None:
    """Write `lines` where and as `coastlines` reads them: steps of 0.01 degrees."""
    points = np.rint(np.concatenate(lines) / _STEP)
    steps = np.diff(points, axis=0, prepend=0).astype(np.int32)
    starts = np.cumsum([len(line) for line in lines])[:-1]
    np.savez_compressed(path, steps=steps, starts=starts)


def draw_coastlines(ax: Any, **settings: Any) -> None:
    """Draw the shipped coastlines on cartopy axes of any projection.

    Args:
        ax: `cartopy.mpl.geoaxes.GeoAxes`.
        settings: of `matplotlib.collections.LineCollection` (`colors`, `linewidths`).
    """
    from matplotlib.collections import LineCollection

    look = {"colors": "#333333", "linewidths": 0.5, "zorder": 3} | settings
    # Already in the projection's own coordinates.
    ax.add_collection(LineCollection(_projected(ax.projection), **look), autolim=False)


@lru_cache(maxsize=8)
def _projected(projection: "cartopy.crs.Projection") -> list[np.ndarray]:
    """Return the coastlines in the coordinates of `projection`, cut at its seams."""
    import cartopy.crs as ccrs
    from shapely import MultiLineString

    lines = MultiLineString(list(coastlines()))
    projected = projection.project_geometry(lines, ccrs.PlateCarree())
    return [np.asarray(line.coords) for line in projected.geoms]


def _length(line: Float[np.ndarray, "point 2"]) -> float:
    """Return the length of `line` in km, on a sphere of 6371 km."""
    longitude, latitude = np.deg2rad(line).T
    east = np.diff(longitude) * np.cos((latitude[1:] + latitude[:-1]) / 2)
    return 6371 * float(np.sum(np.hypot(east, np.diff(latitude))))
