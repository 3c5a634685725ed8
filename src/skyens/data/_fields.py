"""Fields in and out of xarray, by the names of their dimensions."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from skyens.data._names import COORDINATE_ATTRIBUTES, split_level, variable_attributes
from skyens.nn import Channels
from skyens.sphere import Grid

if TYPE_CHECKING:
    import xarray

_HORIZONTAL = ("latitude", "longitude")


def grid_of(dataset: "xarray.Dataset | xarray.DataArray") -> Grid:
    """Return the grid that the coordinates `latitude` and `longitude` describe.

    Raises:
        ValueError: one of the two is missing (`conventional_names` gives `lat` and
            `lon` these names), or they belong to no known grid.
    """
    missing = [name for name in _HORIZONTAL if name not in dataset.coords]
    if missing:
        raise ValueError(
            f"`dataset` has no coordinate {' and no '.join(missing)}, only "
            f"{sorted(map(str, dataset.coords))}; `conventional_names` renames common "
            "spellings."
        )
    return Grid.from_coordinates(
        dataset["latitude"].values, dataset["longitude"].values
    )


def check_finite(field: "xarray.DataArray") -> None:
    """Check that `field` has no NaN and no infinity.

    Raises:
        ValueError: it has; the message counts them and says where the first is.
    """
    bad = ~np.isfinite(field.values)
    if count := int(bad.sum()):
        index = np.unravel_index(int(np.argmax(bad)), bad.shape)
        place = {
            dim: shown(field[dim].values[i])
            for dim, i in zip(field.dims, index, strict=True)
        }
        raise ValueError(
            f"{_name(field)} has {count} of {bad.size} values that are not finite; the "
            "first stands at "
            + ", ".join(f"{dim} = {value}" for dim, value in place.items())
            + ". Fill, mask or leave them out first."
        )


def check_coordinates(
    first: "xarray.Dataset | xarray.DataArray",
    second: "xarray.Dataset | xarray.DataArray",
) -> None:
    """Check that the coordinates that both have are the same, in the same order.

    Numbers may differ by rounding to float32. xarray itself would align: keep the
    points that both have, drop the rest, and drop scalars that differ.

    Raises:
        ValueError: a coordinate differs; the message names the first difference.
    """
    for name in first.coords:
        if name not in second.coords:
            continue
        one, other = first[name].values, second[name].values
        if one.shape != other.shape:
            raise ValueError(
                f"Coordinates do not match: `{name}` has {one.size} values in the "
                f"first and {other.size} in the second."
            )
        same = one == other
        if one.dtype.kind == other.dtype.kind == "f":
            same = np.isclose(one, other, rtol=1e-6, atol=1e-6, equal_nan=True)
        if not np.all(same):
            i = np.unravel_index(int(np.argmin(same)), one.shape)
            where = f" at index {', '.join(map(str, i))}" if i else ""
            raise ValueError(
                f"Coordinates do not match: `{name}`{where} is {shown(one[i])} in the "
                f"first and {shown(other[i])} in the second; select or reorder by "
                "value before comparing."
            )


def from_xarray(
    field: "xarray.DataArray",
    dimensions: Sequence[str] | None = None,
    *,
    grid: Grid | None = None,
) -> Shaped[Array, "*dimensions latitude longitude"]:
    """Return `field` as an array whose axes are `dimensions`, latitude, longitude.

    Args:
        field: finite values; latitude order and units stay as they are, and so does
            the dtype, but for float64 where x64 is off.
        dimensions: all dimensions but latitude and longitude, in the order wanted.
            `None` takes `member` first and the others as they come.
        grid: the grid on which the field must lie, if one is expected.

    Raises:
        ValueError: dimensions are missing or left over, `field` lies on another grid
            than `grid`, or on none that is known, or it has values that are not finite.
    """
    if dimensions is None:
        others = [str(dim) for dim in field.dims if dim not in _HORIZONTAL]
        dimensions = sorted(others, key=lambda dim: dim != "member")
    wanted = (*dimensions, *_HORIZONTAL)
    if missing := [dim for dim in wanted if dim not in field.dims]:
        raise ValueError(
            f"{_name(field)} lacks the dimensions {missing}; it has {field.dims}."
        )
    if extra := [dim for dim in field.dims if dim not in wanted]:
        raise ValueError(
            f"{_name(field)} has the dimensions {extra} besides {wanted}: select from "
            f"them (`.sel({extra[0]}=...)`) or name them in `dimensions`."
        )
    found = grid_of(field)
    if grid is not None:
        _check_grid(field, found, grid)
    check_finite(field)
    return jnp.asarray(field.transpose(*wanted).values)


def to_xarray(
    values: Shaped[jax.Array | np.ndarray, "*dimensions latitude longitude"],
    grid: Grid,
    coordinates: Mapping[str, Any] | None = None,
    *,
    name: str,
    units: str | None = None,
) -> "xarray.DataArray":
    """Return `values` on `grid` as a labelled field with CF attributes.

    Args:
        values: `(*dimensions, latitude, longitude)`.
        grid: the grid of the last two axes.
        coordinates: name and values of each axis before them, in order; a scalar
            (`{"level": 500.0}`) labels the whole field and takes no axis.
        name: of the variable, as in WeatherBench (`geopotential`).
        units: CF units; needed where the name does not tell them.

    Raises:
        ValueError: `values` fit neither `grid` nor `coordinates`, or the units are
            unknown.
    """
    import xarray

    grid.check(values, "values")
    values = np.asarray(values)
    if values.dtype == jnp.bfloat16:  # no file format knows it
        values = values.astype(np.float32)
    labels: dict[str, Any] = {}
    dimensions: list[str] = []
    for dim, label in (coordinates or {}).items():
        label = np.asarray(label)
        attributes = COORDINATE_ATTRIBUTES.get(dim, {})
        labels[dim] = ((dim,) if label.ndim else (), label, attributes)
        dimensions += [dim] if label.ndim else []
    sizes = tuple(np.size(labels[dim][1]) for dim in dimensions)
    if values.shape[:-2] != sizes:
        raise ValueError(
            f"`values` of shape {values.shape} do not fit `coordinates`: before "
            f"latitude and longitude they must have the axes {tuple(dimensions)} of "
            f"sizes {sizes}."
        )
    for dim in _HORIZONTAL:
        labels[dim] = (dim, getattr(grid, dim), COORDINATE_ATTRIBUTES[dim])
    return xarray.DataArray(
        values,
        labels,
        (*dimensions, *_HORIZONTAL),
        name=name,
        attrs=variable_attributes(name, units),
    )


def to_arrays(
    dataset: "xarray.Dataset",
    channels: Channels,
    dimensions: Sequence[str] | None = None,
    *,
    grid: Grid | None = None,
) -> Shaped[Array, "*dimensions channel latitude longitude"]:
    """Return the variables that `channels` names, stacked along a channel axis.

    A channel is a variable of `dataset`, or a variable and a value of its coordinate
    `level`: `geopotential_500`.

    Raises:
        ValueError: a variable or level is missing, its units are not those of its
            channel, the variables differ in dimensions or dtype, or `from_xarray`
            objects to one of them.
    """
    fields = {}
    for name, units in zip(channels.names, channels.units, strict=True):
        field = channel_of(dataset, name, units)
        fields[name] = from_xarray(field, dimensions, grid=grid)
    return channels.pack(fields)


def to_dataset(
    array: Shaped[jax.Array | np.ndarray, "*dimensions channel latitude longitude"],
    channels: Channels,
    grid: Grid,
    coordinates: Mapping[str, Any] | None = None,
) -> "xarray.Dataset":
    """Return the channels of `array` as the variables of a dataset; see `to_xarray`.

    Raises:
        ValueError: `array` does not fit `channels`, `grid` or `coordinates`.
    """
    import xarray

    if array.ndim < 3 or array.shape[-3] != len(channels.names):
        raise ValueError(
            f"`array` must be (..., channel, latitude, longitude) with the channels "
            f"{channels.names}, got {array.shape}."
        )
    # By hand: unpacking is for jax arrays, and would round float64 where x64 is off.
    return xarray.Dataset(
        {
            name: to_xarray(
                array[..., i, :, :], grid, coordinates, name=name, units=units
            )
            for i, (name, units) in enumerate(
                zip(channels.names, channels.units, strict=True)
            )
        }
    )


def channel_of(dataset: "xarray.Dataset", name: str, units: str) -> "xarray.DataArray":
    """Return the variable `name` of `dataset`, or `variable_level` at that level.

    Raises:
        ValueError: there is no such variable or level, or it has other units.
    """
    stem, level = (name, None) if name in dataset else split_level(name)
    if stem not in dataset:
        raise ValueError(
            f"`dataset` has no variable {name!r}, only "
            f"{sorted(map(str, dataset.data_vars))}."
        )
    field = dataset[stem]
    if (found := field.attrs.get("units")) != units:
        raise ValueError(
            f"{_name(field)} has the units {found!r}, its channel {name!r} has "
            f"{units!r}: convert one of them."
        )
    if level is None:
        return field
    levels = field["level"].values if "level" in field.coords else np.array([])
    if level not in levels:
        raise ValueError(
            f"`{stem}` has no level {level:g} for {name!r}, only {levels.tolist()}."
        )
    return field.sel(level=level) if levels.ndim else field


def _check_grid(field: "xarray.DataArray", found: Grid, grid: Grid) -> None:
    """Check that `field`, which lies on `found`, lies on `grid`."""
    for dim in _HORIZONTAL:
        here, there = getattr(found, dim), getattr(grid, dim)
        if here.size != there.size:
            raise ValueError(
                f"{_name(field)} has {here.size} values of {dim}, `grid` has "
                f"{there.size}: interpolate first."
            )
        distance = np.abs((here - there + 180) % 360 - 180)
        if np.any(distance > 1e-3 * 180 / here.size):
            i = int(np.argmax(distance > 1e-3 * 180 / here.size))
            mend = "interpolate"
            if np.allclose(here[::-1], there, rtol=0, atol=1e-6):
                mend = f"flip it with `.isel({dim}=slice(None, None, -1))`"
            raise ValueError(
                f"{_name(field)} lies on another grid than `grid`: {dim} at index {i} "
                f"is {here[i]:g} and should be {there[i]:g}; {mend} first."
            )


def _name(field: "xarray.DataArray") -> str:
    return "`field`" if field.name is None else f"`{field.name}`"


def shown(value: Any) -> str:
    """Return a coordinate's value as messages show it."""
    if isinstance(value, np.datetime64):
        return np.datetime_as_string(value, unit="m")
    if isinstance(value, np.timedelta64):
        return f"{value / np.timedelta64(1, 'h'):g} h"
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)
