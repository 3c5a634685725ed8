"""From one grid to another."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from skyens.sphere._bands import Band, separable
from skyens.sphere._grid import Grid, band_heights
from skyens.sphere._harmonics import SphericalHarmonics
from skyens.sphere._precision import as_float, at_least_single

Operator = Callable[[Float[Array, "..."]], Float[Array, "..."]]


class Regridder(eqx.Module):
    """Carry fields from one grid to another, any two of ours.

    A method is any callable that takes both grids and returns what carries a field:

    - `Conservative()`, the default: means over the target's cells. They keep the area
      integral and never overshoot, and coarse cells see all they cover. On a finer
      grid they show the source's cells as steps.
    - `Bilinear()`, `Bicubic()`: values at the target's points. Meant for grids of
      about equal or finer spacing; on a coarser one they skip what lies between.
    - `Spectral()`: exact for band-limited fields, rings at sharp edges.

    Linear, and as fast in reverse mode as forwards. Fields keep their dtype; half
    precision is computed in single. NaN stays where it is within a method's reach
    (`Spectral` sees everywhere); `Conservative` leaves it out.
    """

    source: Grid = eqx.field(static=True)
    target: Grid = eqx.field(static=True)
    operator: Operator = eqx.field(metadata={"trainable": False})

    def __init__(
        self,
        source: Grid,
        target: Grid,
        method: Callable[[Grid, Grid], Operator] | None = None,
    ):
        """Build the tables from `source` to `target` in float64 and keep them.

        They have JAX's default float type and are never trained.
        """
        method = Conservative() if method is None else method
        self.source, self.target = source, target
        self.operator = method(source, target)

    def __call__(
        self,
        field: Float[Array, "*batch latitude longitude"],
        where: Bool[Array, "#*batch #latitude #longitude"] | None = None,
    ) -> Float[Array, "*batch rows columns"]:
        """Return `field` on the target grid.

        Args:
            field: values on the source grid, any unit.
            where: the points that are valid, for `Conservative`; NaN never is. What is
                not valid changes neither value nor gradient.

        Raises:
            ValueError: `field` does not lie on the source grid, or the method takes no
                `where`.
        """
        self.source.check(field)
        field = as_float(field)
        x = at_least_single(field)
        if where is None:
            return self.operator(x).astype(field.dtype)
        where = where.reshape((1,) * (field.ndim - where.ndim) + where.shape)
        where = jnp.broadcast_to(where, field.shape)
        return self._cells()(jnp.where(where, x, jnp.nan)).astype(field.dtype)

    def valid_fraction(
        self, where: Bool[Array, "*batch latitude longitude"]
    ) -> Float[Array, "*batch rows columns"]:
        """Return which part of each target cell's area is valid, with `Conservative`.

        For a field with NaN, `where` is `~jnp.isnan(field)`.

        Raises:
            ValueError: `where` does not lie on the source grid, or the method is
                another.
        """
        self.source.check(where, "where")
        return self._cells().fraction(where.astype(jnp.result_type(float)))

    def _cells(self) -> "CellMeans":
        if not isinstance(self.operator, CellMeans):
            raise ValueError(
                "`where` is for `Conservative()`; this method has no cells."
            )
        return self.operator


class Conservative(eqx.Module):
    """Average over the target's cells, each source cell by the area it shares.

    The area integral, with `grid.cell_areas`, stays to rounding. NaN is left out: a
    target cell is the mean of its valid part, and NaN if that is less than `least` of
    its area or nothing at all; `Regridder.valid_fraction` tells the part.

    First order: Jones (1999), Mon. Wea. Rev. 127, 2204-2210.
    """

    least: float = eqx.field(default=0.0, static=True)

    def __check_init__(self):
        """Check the setting.

        Raises:
            ValueError: `least` lies outside [0, 1].
        """
        if not 0 <= self.least <= 1:
            raise ValueError(f"`least` must lie in [0, 1], got {self.least}.")

    def __call__(self, source: Grid, target: Grid) -> "CellMeans":
        """Return the operator between grids for `Regridder`."""
        return CellMeans(source, target, self.least)


class CellMeans(eqx.Module):
    """Means of what is valid over the cells of another grid."""

    rows: Band
    columns: Band
    least: float = eqx.field(static=True)

    def __init__(self, source: Grid, target: Grid, least: float):
        """Find the shared areas: bands of latitude times arcs of longitude."""
        self.least = least
        edges = [np.sort(grid.latitude_edges) for grid in (source, target)]
        here, there, low, width = _overlaps(*edges)
        area = band_heights(low, width)
        if source.north_first:
            here = source.n_latitude - 1 - here
        if target.north_first:
            there = target.n_latitude - 1 - there
        whole = np.bincount(there, area)
        shape = target.n_latitude, source.n_latitude
        self.rows = Band(there, here, area / whole[there], shape)

        arcs = target.longitude_edges
        first = source.longitude_edges[0]
        # The source's cells, repeated over as many turns as the target's reach.
        begin = int(np.floor((arcs[0] - first) / 360)) * source.n_longitude
        cells = np.arange(begin, begin + 2 * source.n_longitude + 1)
        here, there, _, width = _overlaps(
            first + cells * 360 / source.n_longitude, arcs
        )
        here = cells[here] % source.n_longitude
        whole = np.bincount(there, width)
        shape = target.n_longitude, source.n_longitude
        self.columns = Band(there, here, width / whole[there], shape)

    def __call__(
        self, field: Float[Array, "*batch latitude longitude"]
    ) -> Float[Array, "*batch rows columns"]:
        """Return the means of what is not NaN."""
        valid = ~jnp.isnan(field)
        fraction = self.fraction(valid.astype(field.dtype))
        total = separable(self.rows, self.columns, jnp.where(valid, field, 0))
        # Rounding may leave a whole cell a little less than whole.
        slack = 16 * float(jnp.finfo(field.dtype).eps)
        known = (fraction > 0) & (fraction >= self.least - slack)
        return jnp.where(known, total / jnp.where(known, fraction, 1), jnp.nan)

    def fraction(
        self, valid: Float[Array, "*batch latitude longitude"]
    ) -> Float[Array, "*batch rows columns"]:
        """Return the part of each cell's area where `valid` is 1 and not 0."""
        return separable(self.rows, self.columns, valid)


def _overlaps(
    source: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return source cell, target cell, lower edge and width of all shared intervals.

    Both are rising edges; the source covers the target. Edges that coincide but for
    rounding are one.
    """
    nearest = source[
        np.clip(np.searchsorted((source[1:] + source[:-1]) / 2, target), 0, None)
    ]
    target = np.where(np.abs(nearest - target) < 1e-10, nearest, target)
    cuts = np.unique(np.concatenate([source, target]))
    cuts = cuts[(cuts >= target[0]) & (cuts <= target[-1])]
    low, width = cuts[:-1], np.diff(cuts)
    here = np.searchsorted(source, low, side="right") - 1
    there = np.searchsorted(target, low, side="right") - 1
    return here, there, low, width


class Spectral(eqx.Module):
    """Analyse the field and sum its harmonics on the other grid.

    Exact for fields band-limited to `lmax`, by default the largest degree that both
    grids resolve; beyond it, fields are truncated. A scalar method: for winds carry
    vorticity and divergence, `SphericalHarmonics.wind_analysis` and `wind_synthesis`.
    """

    lmax: int | None = eqx.field(default=None, static=True)

    def __call__(self, source: Grid, target: Grid) -> Operator:
        """Return the operator between grids for `Regridder`.

        Raises:
            ValueError: `lmax` is beyond one of the grids.
        """
        both = min(source.largest_lmax, target.largest_lmax)
        lmax = both if self.lmax is None else self.lmax
        if not 0 <= lmax <= both:
            raise ValueError(
                f"`lmax` must lie between 0 and {both}, what both grids resolve, got "
                f"{lmax}."
            )
        return SpectralTransfer(
            SphericalHarmonics(source, lmax), SphericalHarmonics(target, lmax)
        )


class SpectralTransfer(eqx.Module):
    """Analysis on one grid, synthesis on another."""

    source: SphericalHarmonics
    target: SphericalHarmonics

    def __call__(
        self, field: Float[Array, "*batch latitude longitude"]
    ) -> Float[Array, "*batch rows columns"]:
        """Return the band-limited part of `field` on the target grid."""
        return self.target.synthesis(self.source.analysis(field))
