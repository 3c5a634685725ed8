"""Means over spherical caps: the neighbourhood of a point, of one size everywhere."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from skyens.sphere._grid import Grid
from skyens.sphere._precision import as_float, at_least_single


def cap_mean(
    grid: Grid,
    field: Float[Array, "*batch latitude longitude"],
    radius_degrees: float,
    where: Bool[Array, "#*batch #latitude #longitude"] | None = None,
) -> Float[Array, "*batch latitude longitude"]:
    """Return at each point the mean of the points within a great-circle radius of it.

    Each weighs by the area of its cell, and those on the rim count. The points of a row
    within a cap are a run of longitudes, whose sum is a product with a Dirichlet kernel
    in zonal wavenumber: the cost is that of a few operations for each pair of rows that
    the radius joins, whatever the radius, and poles are no exception. Linear in
    `field`, and exact at any offset.

    Args:
        grid: the grid of `field`.
        field: values, any unit; half precision is summed in single.
        radius_degrees: the cap's, in [0, 180]; below the distance between points, the
            mean is the field (on a pole, the mean of the row).
        where: which points count; broadcasts to `field`. A cap without any is NaN, and
            what is not selected, NaN included, changes neither value nor gradient.

    Raises:
        ValueError: `field` does not lie on `grid`, or `radius_degrees` is no such
            angle.

    Source: Roberts & Lean (2008), Mon. Wea. Rev. 136, 78-97, for squares of a plane.
    """
    grid.check(field)
    if not 0 <= radius_degrees <= 180:
        raise ValueError(
            f"`radius_degrees` must lie in [0, 180], got {radius_degrees}."
        )
    return _cap_mean(grid, float(radius_degrees), as_float(field), where)


class _Rows(NamedTuple):
    """How many points of the rows around it a cap holds, for each row."""

    widths: np.ndarray  # (2 reach + 1, latitude), from `reach` rows before to after
    area: np.ndarray  # (latitude, 1), of the whole cap, in cells' steradian

    @property
    def reach(self) -> int:
        return (len(self.widths) - 1) // 2


@functools.lru_cache(maxsize=32)
def _cap_rows(grid: Grid, radius_degrees: float) -> _Rows:
    latitude = np.deg2rad(grid.latitude)
    # A rim that rounding moves is a rim still.
    radius = np.deg2rad(radius_degrees) + 1e-9
    rows = np.arange(grid.n_latitude)
    reach = int(np.max(np.sum(abs(latitude[:, None] - latitude) <= radius, axis=1))) - 1
    other = rows[None] + np.arange(-reach, reach + 1)[:, None]
    exists = (other >= 0) & (other < grid.n_latitude)
    other = np.clip(other, 0, grid.n_latitude - 1)
    # Haversines: sin(d/2)^2 = sin(dlat/2)^2 + cos cos sin(dlon/2)^2.
    left = np.sin(min(radius, np.pi) / 2) ** 2
    left = left - np.sin((latitude - latitude[other]) / 2) ** 2
    spread = np.cos(latitude) * np.cos(latitude[other])
    whole = left >= spread - 1e-15  # where both are 1, the sine is flat
    share = np.where(whole, 0, np.maximum(left, 0) / np.where(whole, 1, spread))
    half = np.floor(2 * np.arcsin(np.sqrt(share)) / (2 * np.pi / grid.n_longitude))
    width = np.where(whole, grid.n_longitude, 2 * half + 1)
    width = np.where(exists & (left >= 0), np.minimum(width, grid.n_longitude), 0)
    area = np.sum(width * grid.cell_areas[other], axis=0)[:, None]
    return _Rows(width.astype(np.int32), area)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _cap_mean(grid, radius_degrees, field, where):
    x, lead = at_least_single(field), (1,) * (field.ndim - 2)
    cells = jnp.asarray(grid.cell_areas, x.dtype).reshape(*lead, -1, 1)
    if where is not None:
        where = where.reshape((1,) * (field.ndim - where.ndim) + where.shape)
        where = jnp.broadcast_to(where, field.shape)
        x = jnp.where(where, x, 0)
    # Any constant may be taken out, and the large part of a field should be.
    number = x.size if where is None else jnp.maximum(jnp.sum(where), 1)
    level = lax.stop_gradient(jnp.sum(x / jnp.asarray(number, x.dtype)))
    level = jnp.where(jnp.isfinite(level), level, 0)
    rows = _cap_rows(grid, radius_degrees)
    if where is None:
        area = jnp.asarray(rows.area, x.dtype).reshape(*lead, -1, 1)
        mean = level + _cap_sum(rows, cells * (x - level)) / area
        return mean.astype(field.dtype)
    departures = cells * jnp.where(where, x - level, 0)
    present = where.astype(x.dtype)
    sums = _cap_sum(rows, jnp.stack([departures, cells * present, present]))
    # A count is whole, so that rounding cannot fill an empty cap.
    filled = sums[2] > 0.5
    mean = level + sums[0] / jnp.where(filled, sums[1], 1)
    return jnp.where(filled, mean, jnp.nan).astype(field.dtype)


def _cap_sum(rows, field):
    """Return the sum of the points in each cap: a symmetric operator."""
    *_, n_latitude, n_longitude = field.shape
    waves = jnp.fft.rfft(field, axis=-1)
    # Kernels are real: real and imaginary parts go their ways.
    waves = jnp.stack([waves.real, waves.imag])
    ends = [(0, 0)] * (field.ndim - 1) + [(rows.reach, rows.reach), (0, 0)]
    waves = jnp.pad(waves, ends)
    wavenumber = jnp.arange(1, n_longitude // 2 + 1, dtype=jnp.int32)
    angle = jnp.pi / n_longitude
    below = jnp.sin(wavenumber.astype(field.dtype) * angle)

    # Recomputed in reverse mode, which else would hold a kernel for each pair of rows.
    @jax.checkpoint
    def add(total, offset):
        shift, width = offset
        phase = (width[:, None] * wavenumber[None]) % (2 * n_longitude)
        kernel = jnp.sin(phase.astype(field.dtype) * angle) / below[None]
        mean = width.astype(field.dtype)[:, None]
        kernel = jnp.concatenate([mean, kernel], axis=-1)
        kernel = kernel.reshape((1,) * (field.ndim - 1) + kernel.shape)
        row = lax.dynamic_slice_in_dim(waves, shift, n_latitude, axis=-2)
        return total + row * kernel, None

    start = jnp.zeros((2, *field.shape[:-1], n_longitude // 2 + 1), field.dtype)
    shifts = jnp.arange(len(rows.widths), dtype=jnp.int32)
    total, _ = lax.scan(add, start, (shifts, jnp.asarray(rows.widths)))
    return jnp.fft.irfft(lax.complex(*total), n_longitude, axis=-1)
