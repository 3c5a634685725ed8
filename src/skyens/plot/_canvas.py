"""The canvas of a map: its axes, its filled contours, their levels and colour bar."""

from typing import Any

import jax
import numpy as np

from skyens.plot._coastlines import draw_coastlines
from skyens.plot._raster import Raster, raster
from skyens.plot._style import QUIET, TEXT, WIDTH

Numbers = jax.Array | np.ndarray
Number = float | int  # beartype does not take one for the other
Extent = tuple[Number, Number, Number, Number]

FINE = 500  # pixels on a side of the raster behind a map
COARSE = 200  # ... behind each of many members, whose lines are thin


def as_values(name: str, field: Any, axes: int) -> np.ndarray:
    """Return `field` in float64, checked for its number of axes and finite values."""
    values = np.asarray(field, np.float64)
    if values.ndim != axes:
        wish = ("member, " if axes == 3 else "") + "latitude, longitude"
        raise ValueError(f"`{name}` must be ({wish}), got the shape {values.shape}.")
    if not np.isfinite(values).any():
        raise ValueError(f"`{name}` has no finite value to draw.")
    return values


def is_polar(projection: Any) -> bool:
    """Whether `projection` is one of the two polar stereographic ones."""
    import cartopy.crs as ccrs

    return isinstance(projection, ccrs.NorthPolarStereo | ccrs.SouthPolarStereo)


def map_axes(
    ax: Any, projection: Any, extent: Extent | None, coastlines: bool = True
) -> Any:
    """Return cartopy axes with extent, coastlines and a quiet outline."""
    import cartopy.crs as ccrs
    import matplotlib.pyplot as plt
    from cartopy.mpl.geoaxes import GeoAxes

    if ax is None:
        projection = projection or ccrs.Robinson()
        size = (WIDTH * 0.7, WIDTH * 0.8) if is_polar(projection) else (WIDTH, 5.4)
        figure = plt.figure(figsize=size, layout="compressed")
        ax = figure.add_subplot(projection=projection)
    elif not isinstance(ax, GeoAxes):
        raise ValueError(
            "`ax` must be cartopy axes, as `figure.add_subplot(projection=...)` makes "
            f"them, got {type(ax).__name__}."
        )
    projection = ax.projection
    if extent is None and is_polar(projection):
        north = isinstance(projection, ccrs.NorthPolarStereo)
        extent = (-180, 180, 20, 90) if north else (-180, 180, -90, -20)
    if extent is None:
        ax.set_global()
    else:
        ax.set_extent(extent, ccrs.PlateCarree())
        if is_polar(projection) and extent[1] - extent[0] == 360:
            _round_off(ax, extent)
    if coastlines:
        draw_coastlines(ax)
    ax.spines["geo"].set(linewidth=0.8, edgecolor=QUIET)
    return ax


def _round_off(ax: Any, extent: Extent) -> None:
    """Make the outline of a polar map the circle of its outermost latitude."""
    import cartopy.crs as ccrs
    from matplotlib.path import Path

    outermost = min(extent[2:], key=abs)
    longitude = np.linspace(0, 360, 181)
    circle = ax.projection.transform_points(
        ccrs.PlateCarree(), longitude, np.full(181, outermost)
    )
    # The whole circle: the extent is that of a few points on it, and cuts it flat.
    radius = np.abs(circle[:, :2]).max()
    ax.set_xlim(-radius, radius)
    ax.set_ylim(-radius, radius)
    ax.set_boundary(Path(circle[:, :2], closed=True), transform=ax.transData)


def raster_of(ax: Any, pixels: int = FINE) -> Raster:
    extent = tuple(float(side) for side in (*ax.get_xlim(), *ax.get_ylim()))
    return raster(ax.projection, extent, pixels)


def fill(
    ax: Any,
    values: np.ndarray,
    latitude: np.ndarray,
    longitude: np.ndarray,
    levels: np.ndarray,
    colours: str,
    lines: bool,
) -> Any:
    """Draw filled contours of `values` between `levels` and return them."""
    from matplotlib.axes import Axes

    pixels = raster_of(ax)
    below, above = np.nanmin(values) < levels[0], np.nanmax(values) > levels[-1]
    beyond = {(True, True): "both", (True, False): "min", (False, True): "max"}
    sampled = np.ma.masked_invalid(pixels.sample(values, latitude, longitude))
    # The data are in the projection's coordinates: cartopy's own methods would search
    # the globe for seams once more, for seconds on some projections.
    filled = Axes.contourf(
        ax,
        pixels.x,
        pixels.y,
        sampled,
        levels=levels,
        cmap=colours,
        extend=beyond.get((bool(below), bool(above)), "neither"),
    )
    if lines:
        Axes.contour(
            ax,
            pixels.x,
            pixels.y,
            sampled,
            levels=levels,
            colors="white",
            linewidths=0.4,
            alpha=0.7,
        )
    return filled


def round_levels(values: np.ndarray, *, zero: bool = False) -> np.ndarray:
    """Return about a dozen round levels that hold `values`."""
    from matplotlib.ticker import MaxNLocator

    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if zero:
        low = min(low, 0.0)
    if low == high:  # one colour for a constant field
        low, high = low - 0.5, high + 0.5
    locator = MaxNLocator(12, steps=[1, 2, 2.5, 4, 5, 10])
    return np.asarray(locator.tick_values(low, high))


def even_levels(largest: float) -> np.ndarray:
    """Return an even number of levels about zero, so that what is small stays white."""
    from matplotlib.ticker import MaxNLocator

    largest = largest or 1.0
    locator = MaxNLocator(10, steps=[1, 2, 2.5, 4, 5, 10], symmetric=True)
    levels = np.asarray(locator.tick_values(-largest, largest))
    return levels[levels != 0]


def colour_bar_below(
    filled: Any, axes: list[Any], text: str, levels: np.ndarray, numbers: int
) -> None:
    """Draw a colour bar with units below `axes`, with at most so many `numbers`."""
    every = levels[:: max(1, int(np.ceil(levels.size / numbers)))]
    bar = (
        axes[0]
        .get_figure()
        .colorbar(
            filled,
            ax=axes,
            orientation="horizontal",
            shrink=0.8,
            aspect=25 * len(axes),
            pad=0.03,
            ticks=every,
            extendfrac=0.03,
        )
    )
    bar.set_label(text)
    bar.ax.tick_params(labelsize=TEXT - 0.5, color=QUIET)
    bar.outline.set(linewidth=0.5, edgecolor=QUIET)
