"""From fields to points: interpolation to places anywhere on the sphere."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from skyens.sphere._grid import Grid
from skyens.sphere._interpolation import (
    Bicubic,
    Bilinear,
    column_polynomials,
    evaluate,
    inner_places,
)
from skyens.sphere._precision import as_float, at_least_single


def interpolate(
    grid: Grid,
    field: Float[Array, "*batch latitude longitude"],
    latitude: Float[Array, " point"],
    longitude: Float[Array, " point"],
    method: Bilinear | Bicubic | None = None,
) -> Float[Array, "*batch point"]:
    """Return `field` at points, by default bilinear in latitude and longitude.

    Longitude is periodic, and the poles are no edges: see `Bilinear` and `Bicubic`.
    Linear in `field`; differentiable in the points too, where bilinear slopes jump at
    the edges of cells and bicubic ones do not. The points may be traced: they may move.

    Args:
        grid: the grid of `field`.
        field: values, any unit; half precision is computed in single.
        latitude: degrees, in [-90, 90]; traced values outside see NaN.
        longitude: degrees, any turn.
        method: `Bilinear()` or `Bicubic()`; for a component of a vector, `Bilinear(
            vector=True)`, say.

    Raises:
        ValueError: `field` does not lie on `grid`.
        EquinoxRuntimeError: a known latitude lies outside [-90, 90].
    """
    grid.check(field)
    latitude = _check_latitude(latitude)
    return _interpolate(
        grid, as_float(field), latitude, longitude, method or Bilinear()
    )


@jax.jit
def _interpolate(grid, field, latitude, longitude, method):
    kept, field = field.dtype, at_least_single(field)
    dtype, point = field.dtype, latitude.dtype
    known = (jnp.abs(latitude) <= 90) & jnp.isfinite(longitude)
    # An unknown place must not reach the weights: 0 * NaN spoils the gradient.
    latitude, longitude = jnp.where(known, latitude, 0), jnp.where(known, longitude, 0)

    places = method.places(grid)
    beyond = (places.size - grid.n_latitude) // 2
    edges = inner_places(places, method)
    y = -latitude if grid.north_first else latitude
    cell = jnp.searchsorted(jnp.asarray(edges, point), y, side="right") - 1
    cell = jnp.clip(cell, 0, edges.size - 2)
    width = jnp.asarray(np.diff(edges), point)[cell]
    fraction = ((y - jnp.asarray(edges, point)[cell]) / width).astype(dtype)
    pieces = jnp.asarray(np.moveaxis(method.polynomials(places), 0, -1), dtype)
    row_weights = [evaluate(piece[:, cell], fraction) for piece in pieces]

    x = jnp.mod(longitude - grid.longitude_origin, 360.0) * (grid.n_longitude / 360)
    column = jnp.clip(jnp.floor(x).astype(cell.dtype), 0, grid.n_longitude - 1)
    fraction = (x - column.astype(x.dtype)).astype(dtype)
    pieces = column_polynomials(method).tolist()
    column_weights = [evaluate(piece, fraction) for piece in pieces]

    # Rows beyond the poles are few: kept apart, the field need not be copied.
    ghosts = jnp.concatenate(method.beyond(grid, field), axis=-2)
    lead = (1,) * (field.ndim - 2)
    value = jnp.zeros((*field.shape[:-2], latitude.size), dtype)
    for i, row_weight in enumerate(row_weights):
        row = cell + (i - beyond)
        inside = ((row >= 0) & (row < grid.n_latitude)).reshape(*lead, -1)
        ghost = jnp.where(row < 0, row + beyond, row - grid.n_latitude + beyond)
        along = jnp.zeros_like(value)
        for j, column_weight in enumerate(column_weights):
            offset = j + 1 - len(column_weights) // 2
            at = jnp.mod(column + offset, grid.n_longitude)
            seen = _take(field, row, at)
            if beyond:
                seen = jnp.where(inside, seen, _take(ghosts, ghost, at))
            along = along + seen * column_weight.reshape(*lead, -1)
        value = value + along * row_weight.reshape(*lead, -1)
    return jnp.where(known.reshape(*lead, -1), value, jnp.nan).astype(kept)


def _take(rows, row, column):
    row = jnp.clip(row, 0, rows.shape[-2] - 1)
    return rows.at[..., row, column].get(mode="promise_in_bounds")


def _check_latitude(latitude: Float[Array, " point"]) -> Float[Array, " point"]:
    """Check latitudes that are known; NaN is a place not known, and passes."""
    if isinstance(latitude, Tracer):
        return latitude
    outside = np.abs(np.asarray(latitude)) > 90
    if not np.any(outside):
        return latitude
    first = int(np.argmax(outside))
    message = (
        f"`latitude` must lie in [-90, 90] degrees: {int(outside.sum())} of "
        f"{outside.size} values do not, the first, at {first}, is {latitude[first]}."
    )
    return eqx.error_if(latitude, np.asarray(True), message)
