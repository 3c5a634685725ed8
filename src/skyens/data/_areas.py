"""What points count for: exact areas of cells, and the parts of them in regions."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from skyens.data._match import same_points
from skyens.data._names import conventional_names
from skyens.sphere import Grid

if TYPE_CHECKING:
    import xarray

Number = float | int
Box = tuple[Number, Number, Number, Number]  # west, east, south, north, degrees
Regions = Mapping[str, "xarray.DataArray | Box"]

_GLOBE: Box = (0, 360, -90, 90)


def point_weights(
    field: "xarray.DataArray",
    dimensions: Sequence[str],
    regions: Regions | None,
    weights: "xarray.DataArray | None",
    bounds: Mapping[str, np.ndarray],
) -> np.ndarray:
    """Return `([region,] *dimensions)`: what each point counts for, on average 1.

    On latitudes and longitudes it is the area of the cell between its edges, and of a
    box the part of the area that lies inside; elsewhere all points count equally.

    Args:
        field: has the coordinates of the points.
        dimensions: those of the points.
        regions: by name, a box or a mask (or fractions) of points.
        weights: in place of the areas.
        bounds: edges of cells by coordinate, `(n, 2)`, where the data give them.

    Raises:
        ValueError: coordinates are missing, do not rise or fall, or have two
            dimensions; weights or masks do not fit, are negative or not finite; a
            region holds no point.
    """
    edges = {
        name: _edges(field, name, bounds.get(name))
        for name in ("latitude", "longitude")
        if name in dimensions
    }
    if weights is not None:
        base = _on_points("weights", weights, field, dimensions)
    else:
        _check_known(field, dimensions)
        base = np.ones([field.sizes[dim] for dim in dimensions])
        base = base * _inside(field, dimensions, edges, _GLOBE)
    base = np.asarray(base / base.mean())
    if regions is None:
        return base
    if not regions:
        raise ValueError("`regions` must name at least one region, got none.")
    areas = _inside(field, dimensions, edges, _GLOBE)
    parts = []
    for name, region in regions.items():
        if isinstance(region, tuple):
            _check_box(name, region)
            part = _inside(field, dimensions, edges, region) / areas
        else:
            part = _on_points(f"regions[{name!r}]", region, field, dimensions)
        part = np.broadcast_to(part, base.shape)
        if not np.any(part * base > 0):
            raise ValueError(f"`regions[{name!r}]` holds no point of the forecast.")
        parts.append(part * base)
    return np.stack(parts)


def _edges(
    field: "xarray.DataArray", name: str, bounds: np.ndarray | None
) -> np.ndarray:
    """Return both edges of each cell along `name`, `(n, 2)`, lower first, degrees."""
    if name not in field.coords:
        raise ValueError(
            f"`forecast` has the dimension {name!r} without coordinates: assign them, "
            "or give `weights`."
        )
    values = field[name].values.astype(np.float64)
    if name == "longitude":
        # East of the first, so that a jump from 180 to -180 or 360 to 0 is none.
        values = values[0] + (values - values[0]) % 360
    steps = np.diff(values)
    if not (np.all(steps > 0) or np.all(steps < 0)):
        raise ValueError(
            f"`{name}` must rise or fall strictly for areas of cells; sort the "
            "forecast and the truth, or give `weights`."
        )
    if bounds is not None:
        return np.sort(np.asarray(bounds, np.float64), axis=1)
    if values.size == 1:  # a row or a column alone: any width will do
        return values[:, None] + np.array([-0.5, 0.5])
    if (known := _known_edges(name, values)) is not None:
        middle = known
    else:
        middle = np.concatenate([
            [values[0] - steps[0] / 2],
            (values[:-1] + values[1:]) / 2,
            [values[-1] + steps[-1] / 2],
        ])  # fmt: skip
    if name == "latitude":
        middle = np.clip(middle, -90, 90)
    return np.sort(np.stack([middle[:-1], middle[1:]], axis=1), axis=1)


def _known_edges(name: str, values: np.ndarray) -> np.ndarray | None:
    """Return the edges of the rows of a known grid of the globe; None for others."""
    if name == "longitude":
        return None
    try:
        return Grid.from_coordinates(values, np.zeros(1)).latitude_edges
    except ValueError:
        return None


def _inside(
    field: "xarray.DataArray",
    dimensions: Sequence[str],
    edges: Mapping[str, np.ndarray],
    box: Box,
) -> np.ndarray:
    """Return the area inside `box` of each cell, or 1 for each point inside of it."""
    west, east, south, north = map(float, box)
    width = 360.0 if east - west >= 360 else (east - west) % 360
    area = np.ones([1] * len(dimensions))
    for name in ("latitude", "longitude"):
        if name in edges:
            part = (
                _band(edges[name], south, north)
                if name == "latitude"
                else _arc(edges[name], west, width)
            )
            dim = name
        elif box == _GLOBE:
            continue
        elif name in field.coords and field[name].ndim == 1:
            place = field[name].values.astype(np.float64)
            part = (
                (place >= south) & (place <= north)
                if name == "latitude"
                else (place - west) % 360 <= width
            )
            dim = str(field[name].dims[0])
        else:
            raise ValueError(
                f"A region given as a box needs the coordinate {name!r} of each point; "
                "give a mask."
            )
        if dim not in dimensions:
            raise ValueError(
                f"A region needs {dim!r} among the points, but it is kept by `by`."
            )
        shape = [-1 if other == dim else 1 for other in dimensions]
        area = area * part.astype(np.float64).reshape(shape)
    return area


def _band(edges: np.ndarray, south: float, north: float) -> np.ndarray:
    """Return the height of the part of each band that lies within two latitudes."""
    low = np.clip(edges[:, 0], south, north)
    high = np.clip(edges[:, 1], south, north)
    # A product keeps the digits that the difference of two sines would lose.
    middle, half = np.deg2rad(low + high) / 2, np.deg2rad(high - low) / 2
    return 2 * np.cos(middle) * np.sin(half)


def _arc(edges: np.ndarray, west: float, width: float) -> np.ndarray:
    """Return the part of each cell, in radians, within `width` degrees east of west."""
    start = (edges[:, 0] - west) % 360
    end = start + (edges[:, 1] - edges[:, 0])
    once = np.clip(np.minimum(end, width) - start, 0, None)
    again = np.clip(np.minimum(end, 360 + width) - np.maximum(start, 360), 0, None)
    return np.deg2rad(once + again)


def _check_known(field: "xarray.DataArray", dimensions: Sequence[str]) -> None:
    for name in ("latitude", "longitude"):
        if name in field.coords and field[name].ndim > 1:
            raise ValueError(
                f"`{name}` has the dimensions {field[name].dims}: the areas of such "
                "cells are not known; give `weights`."
            )


def _check_box(name: str, box: Box) -> None:
    west, east, south, north = box
    if not (np.isfinite(box).all() and west != east and -90 <= south < north <= 90):
        raise ValueError(
            f"`regions[{name!r}]` must be (west, east, south, north) in degrees with "
            f"south < north, got {box}."
        )


def _on_points(
    name: str,
    values: "xarray.DataArray",
    field: "xarray.DataArray",
    dimensions: Sequence[str],
) -> np.ndarray:
    """Return a mask or weights as an array of axes `dimensions`, checked."""
    values = conventional_names(values.to_dataset(name="_"))["_"]
    if extra := [dim for dim in values.dims if dim not in dimensions]:
        raise ValueError(
            f"`{name}` has the dimensions {extra}, which are not among those of the "
            f"points, {tuple(dimensions)}."
        )
    same_points(field, values, name)
    shape = [values.sizes.get(dim, 1) for dim in dimensions]
    order = [dim for dim in dimensions if dim in values.dims]
    array = values.transpose(*order).values.astype(np.float64).reshape(shape)
    if not np.isfinite(array).all() or (array < 0).any() or not array.any():
        raise ValueError(f"`{name}` must be finite, not negative and not all 0.")
    sizes = [field.sizes[dim] for dim in dimensions]
    return np.broadcast_to(array, sizes)
