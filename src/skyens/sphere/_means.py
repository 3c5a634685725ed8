"""Means over the circle of latitude and over the sphere."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from skyens.sphere._grid import Grid
from skyens.sphere._precision import as_float, at_least_single


def zonal_mean(
    grid: Grid,
    field: Float[Array, "*batch latitude longitude"],
    where: Bool[Array, "#*batch #latitude #longitude"] | None = None,
) -> Float[Array, "*batch latitude"]:
    """Return the mean over longitude, of the points selected by `where` if it is given.

    What is not selected, NaN included, changes neither value nor gradient; a row with
    nothing selected is NaN.

    Raises:
        ValueError: `field` does not lie on `grid`.
    """
    return _mean(grid, field, where, np.ones(1), (-1,))


def global_mean(
    grid: Grid,
    field: Float[Array, "*batch latitude longitude"],
    where: Bool[Array, "#*batch #latitude #longitude"] | None = None,
    *,
    weights: Float[Array | np.ndarray, " latitude"] | None = None,
) -> Float[Array, "*batch"]:
    """Return the mean over the sphere, of the part selected by `where` if it is given.

    What is not selected, NaN included, changes neither value nor gradient; with nothing
    selected the mean is NaN.

    Args:
        grid: the grid of `field`.
        field: values, any unit; half precision is summed in single.
        where: which points count; broadcasts to `field`.
        weights: of the rows. By default the quadrature weights, `grid.weights`, which
            make the mean of a band-limited field exact; `grid.cell_areas` make the
            one that conservative regridding keeps.

    Raises:
        ValueError: `field` does not lie on `grid`.
    """
    rows = grid.weights if weights is None else weights
    return _mean(grid, field, where, rows, (-2, -1))


def _mean(grid, field, where, rows, axes):
    grid.check(field)
    field = as_float(field)
    x, lead = at_least_single(field), (1,) * (field.ndim - 2)
    weight = jnp.asarray(rows, x.dtype).reshape(*lead, -1, 1)
    weight = jnp.broadcast_to(weight, (*lead, *grid.shape))
    if where is not None:
        where = where.reshape((1,) * (field.ndim - where.ndim) + where.shape)
        where = jnp.broadcast_to(where, field.shape)
        x = jnp.where(where, x, 0)
        weight = jnp.where(where, jnp.broadcast_to(weight, x.shape), 0)
    total = jnp.sum(weight, axes)
    mean = jnp.sum(weight * x, axes) / jnp.where(total > 0, total, 1)
    return jnp.where(total > 0, mean, jnp.nan).astype(field.dtype)
