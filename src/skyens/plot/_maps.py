"""Maps: fields, ensembles and increments on projections of the globe."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Real

from skyens.plot._canvas import (
    COARSE,
    Extent,
    Number,
    Numbers,
    as_values,
    colour_bar_below,
    even_levels,
    fill,
    is_polar,
    map_axes,
    raster_of,
    round_levels,
)
from skyens.plot._raster import Where, coordinates
from skyens.plot._style import (
    AMOUNT,
    COLOURS,
    DIFFERENCE,
    FIELD,
    TEXT,
    TRUTH,
    WIDTH,
    style,
    with_units,
)

if TYPE_CHECKING:
    import cartopy.crs
    import matplotlib.figure


@style()
def map_field(
    field: Real[Numbers, "..."],
    grid: Where,
    *,
    ax: Any = None,
    projection: "cartopy.crs.Projection | None" = None,
    extent: Extent | None = None,
    levels: Sequence[Number] | Numbers | None = None,
    units: str = "",
    label: str = "",
    title: str = "",
    colours: str = FIELD,
    colour_bar: bool = True,
    lines: bool = False,
    coastlines: bool = True,
) -> Any:
    """Draw one field as filled contours with coastlines and return its axes.

    Args:
        field: `(latitude, longitude)`; NaN stays blank.
        grid: where `field` lies: a `sphere.Grid`, or `(latitude, longitude)` in degrees
            for a part of the globe.
        ax: cartopy axes to draw on; a new figure if left out.
        projection: of new axes; Robinson if left out.
        extent: `(west, east, south, north)` in degrees; if left out, the hemisphere
            poleward of 20 degrees on polar stereographic maps, the globe on others. All
            longitudes on a polar map give a round one.
        levels: rising borders of the colours; round numbers if left out.
        units: CF units, written on the colour bar (`"m2 s-2"`).
        label: what the colour bar shows, before the units.
        title: above the map.
        colours: name of a matplotlib colour map.
        colour_bar: draw one below the map.
        lines: draw the borders of the colours as thin lines too.
        coastlines: draw them; False for worlds that have none.

    Raises:
        ValueError: `field` does not lie on `grid`, is nowhere finite, or `ax` is no
            cartopy axes.
    """
    values = as_values("field", field, 2)
    latitude, longitude = coordinates(grid, values.shape)
    ax = map_axes(ax, projection, extent, coastlines)
    levels = round_levels(values) if levels is None else np.asarray(levels)
    filled = fill(ax, values, latitude, longitude, levels, colours, lines)
    if title:
        ax.set_title(title)
    if colour_bar:
        colour_bar_below(filled, [ax], with_units(label, units), levels, 10)
    return ax


@style()
def map_forecast(
    mean: Real[Numbers, "..."],
    spread: Real[Numbers, "..."],
    truth: Real[Numbers, "..."],
    grid: Where,
    *,
    projection: "cartopy.crs.Projection | None" = None,
    extent: Extent | None = None,
    levels: Sequence[Number] | Numbers | None = None,
    spread_levels: Sequence[Number] | Numbers | None = None,
    units: str = "",
    label: str = "",
    title: str = "",
) -> "matplotlib.figure.Figure":
    """Draw an ensemble's mean, the truth and the ensemble's spread side by side.

    Mean and truth share levels and a colour bar; the contours of the mean lie over the
    spread. Fields are `(latitude, longitude)`; the projection is polar stereographic,
    northern, if left out; for the rest see `map_field`.

    Raises:
        ValueError: a field does not lie on `grid` or is nowhere finite.
    """
    import cartopy.crs as ccrs
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes

    fields = {
        name: as_values(name, field, 2)
        for name, field in (("mean", mean), ("spread", spread), ("truth", truth))
    }
    places = [coordinates(grid, field.shape) for field in fields.values()]
    latitude, longitude = places[0]
    projection = projection or ccrs.NorthPolarStereo()
    height = WIDTH * (0.43 if is_polar(projection) else 0.27)
    figure, axes = plt.subplots(
        1,
        3,
        figsize=(WIDTH, height + (0.3 if title else 0)),
        subplot_kw={"projection": projection},
        layout="compressed",  # maps keep their aspect
    )
    if levels is None:
        levels = round_levels(np.stack([fields["mean"], fields["truth"]]))
    if spread_levels is None:
        spread_levels = round_levels(fields["spread"], zero=True)
    levels, spread_levels = np.asarray(levels), np.asarray(spread_levels)
    for ax, name in zip(axes, ("mean", "truth", "spread"), strict=True):
        map_axes(ax, None, extent)
        amount = name == "spread"
        filled = fill(
            ax,
            fields[name],
            latitude,
            longitude,
            spread_levels if amount else levels,
            AMOUNT if amount else FIELD,
            not amount,
        )
        ax.set_title({"mean": "Ensemble mean", "truth": "Truth"}.get(name, "Spread"))
        if name == "truth":
            colour_bar_below(
                filled, list(axes[:2]), with_units(label, units), levels, 8
            )
        if amount:
            pixels = raster_of(ax)
            # In the projection's coordinates, as in `fill`.
            Axes.contour(
                ax,
                pixels.x,
                pixels.y,
                pixels.sample(fields["mean"], latitude, longitude),
                levels=levels,
                colors=COLOURS[0],
                linewidths=0.7,
            )
            text = with_units("standard deviation", units)
            colour_bar_below(filled, [ax], text, spread_levels, 5)
    if title:
        figure.suptitle(title, fontsize=TEXT + 2, fontweight="bold")
    return figure


@style()
def spaghetti(
    members: Real[Numbers, "..."],
    grid: Where,
    *,
    contour: Number | Sequence[Number],
    truth: Real[Numbers, "..."] | None = None,
    ax: Any = None,
    projection: "cartopy.crs.Projection | None" = None,
    extent: Extent | None = None,
    units: str = "",
    label: str = "",
    title: str = "",
) -> Any:
    """Draw one contour (or a few) of every member, and of the truth, on one map.

    Args:
        members: `(member, latitude, longitude)`; those that are all NaN are left out.
        grid: see `map_field`, as `ax`, `extent` and `title`.
        contour: value or values whose contours are drawn, in `units`.
        truth: `(latitude, longitude)`, drawn in black.
        ax: cartopy axes; a new figure if left out.
        projection: polar stereographic, northern, if left out.
        extent: degrees.
        units: CF units, for the legend.
        label: what the contour is of, for the legend.
        title: above the map.

    Raises:
        ValueError: a field does not lie on `grid`.
    """
    import cartopy.crs as ccrs
    from contourpy import contour_generator
    from matplotlib.collections import LineCollection
    from matplotlib.lines import Line2D

    values = as_values("members", members, 3)
    values = values[np.isfinite(values).any(axis=(1, 2))]  # members that failed
    latitude, longitude = coordinates(grid, values.shape)
    ax = map_axes(ax, projection or ccrs.NorthPolarStereo(), extent)
    pixels = raster_of(ax, COARSE)
    wanted = np.atleast_1d(np.asarray(contour, np.float64))

    def draw(field: np.ndarray, **look: Any) -> None:
        sampled = pixels.sample(field, latitude, longitude)
        generator = contour_generator(pixels.x, pixels.y, sampled)
        segments: list[Any] = [
            line for at in wanted for line in generator.lines(float(at))
        ]
        ax.add_collection(LineCollection(segments, **look), autolim=False)

    faint = {"colors": COLOURS[0], "linewidths": 0.7}
    faint["alpha"] = float(np.clip(8 / len(values), 0.2, 0.8))
    for member in values:
        draw(member, zorder=4, **faint)
    shown = " and ".join(with_units(f"{at:g}", "") for at in wanted)
    what = " ".join(filter(None, [label, shown, with_units("", units)]))
    handles = [Line2D([], [], color=COLOURS[0], label=f"{len(values)} members")]
    if truth is not None:
        field = as_values("truth", truth, 2)
        coordinates(grid, field.shape)
        draw(field, zorder=5, colors=TRUTH, linewidths=2.0)
        handles.append(Line2D([], [], color=TRUTH, label="truth"))
    ax.legend(
        handles=handles,
        title=what,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=len(handles),
    )
    if title:
        ax.set_title(title)
    return ax


@style()
def increment(
    field: Real[Numbers, "..."],
    grid: Where,
    *,
    station_latitude: Any = None,
    station_longitude: Any = None,
    ax: Any = None,
    projection: "cartopy.crs.Projection | None" = None,
    extent: Extent | None = None,
    levels: Sequence[Number] | Numbers | None = None,
    units: str = "",
    label: str = "analysis - background",
    title: str = "",
) -> Any:
    """Draw what an analysis changed, colours about zero, and where the stations stand.

    Args:
        field: the change, `(latitude, longitude)`.
        grid: see `map_field`, as all that is not named here.
        station_latitude: degrees, `(station,)`.
        station_longitude: degrees east, `(station,)`.
        ax: cartopy axes; a new figure if left out.
        projection: Robinson if left out.
        extent: degrees.
        levels: of the colours; even about zero if left out.
        units: CF units.
        label: of the colour bar.
        title: above the map.

    Raises:
        ValueError: `field` does not lie on `grid`, or one of the stations' coordinates
            is missing or of another length.
    """
    import cartopy.crs as ccrs

    if (station_latitude is None) != (station_longitude is None):
        raise ValueError(
            "`station_latitude` and `station_longitude` must be given together."
        )
    values = as_values("field", field, 2)
    if levels is None:
        largest = float(np.nanmax(np.abs(values)))
        levels = even_levels(largest)
    ax = map_field(
        values,
        grid,
        ax=ax,
        projection=projection,
        extent=extent,
        levels=levels,
        units=units,
        label=label,
        title=title,
        colours=DIFFERENCE,
    )
    if station_latitude is not None:
        north, east = np.asarray(station_latitude), np.asarray(station_longitude)
        if north.shape != east.shape or north.ndim != 1:
            raise ValueError(
                "`station_latitude` and `station_longitude` must be vectors of one "
                f"length, got the shapes {north.shape} and {east.shape}."
            )
        place = ax.projection.transform_points(ccrs.PlateCarree(), east, north)
        ax.scatter(
            place[:, 0],
            place[:, 1],
            s=7,
            color="black",
            edgecolors="white",
            linewidths=0.3,
            zorder=5,
            label="stations",
        )
        ax.legend(loc="upper right", bbox_to_anchor=(1.0, 0.0), handletextpad=0.1)
    return ax
