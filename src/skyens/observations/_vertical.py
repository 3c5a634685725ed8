"""Columns at pressures between their levels, linear in log pressure."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from skyens import sphere
from skyens.observations._checks import check_values
from skyens.observations._operators import Interpolate
from skyens.observations._places import check_levels
from skyens.sphere._precision import as_float


class LogPressure(eqx.Module):
    """See a column between its levels, linear in the logarithm of pressure.

    Nothing is extrapolated: above the top level, below the lowest, and where the
    pressure is NaN, it sees NaN, and the observation must be masked there:
    `mask=operator.inside`. A masked entry has no gradient. An observation made with it
    knows its coordinate `pressure`.
    """

    levels: Float[Array, "level"] = eqx.field(metadata={"trainable": False})
    pressure: Float[Array, "*observation"] = eqx.field(metadata={"trainable": False})

    def __init__(
        self,
        levels: Float[Array | np.ndarray, "level"],
        pressure: Float[Array | np.ndarray, "*observation"],
    ):
        """Set both in Pa; levels in either order.

        Raises:
            ValueError: there are fewer than two levels.
            EquinoxRuntimeError: levels are not finite, above 0 and in order, or a
                pressure is not above 0.
        """
        self.levels = check_levels(levels)
        fine = lambda pressure: ~(pressure <= 0)
        self.pressure = check_values("pressure", "above 0", pressure, fine)

    @property
    def coordinates(self) -> dict[str, Float[Array, "*observation"]]:
        """`pressure` of the entries, Pa."""
        return {"pressure": self.pressure}

    @property
    def inside(self) -> Bool[Array, "*observation"]:
        """Where the pressure lies between the outermost levels, both included."""
        levels = self.levels.astype(self.pressure.dtype)
        least, most = jnp.min(levels), jnp.max(levels)
        return (self.pressure >= least) & (self.pressure <= most)

    def __call__(
        self, column: Float[Array, "level *columns"]
    ) -> Float[Array, "*observation"]:
        """Return the values at the pressures, in the column's units and dtype.

        Args:
            column: one for all entries, `(level,)`, or one for each, `(level, ...)`
                with the rest as the pressures.

        Raises:
            ValueError: `column` has other levels, or is of another number of entries.
        """
        count, shape = self.levels.size, self.pressure.shape
        if column.shape not in ((count,), (count, *shape)):
            raise ValueError(
                f"`column` must have the shape {(count,)} or {(count, *shape)}, got "
                f"{column.shape}."
            )
        column = as_float(column)
        inside, pressure = self.inside, self.pressure
        rising = self.levels[-1] > self.levels[0]
        height = jnp.log(jnp.where(rising, self.levels, self.levels[::-1]))
        height = height.astype(pressure.dtype)
        at = jnp.log(jnp.where(inside, pressure, self.levels[0].astype(pressure.dtype)))
        below = jnp.clip(jnp.searchsorted(height, at, side="right") - 1, 0, count - 2)
        fraction = (at - height[below]) / (height[below + 1] - height[below])
        fraction = jnp.clip(fraction, 0, 1).astype(column.dtype)
        # The rank of a level in the column, which may run the other way.
        first = jnp.where(rising, below, count - 1 - below)
        second = jnp.where(rising, below + 1, count - 2 - below)
        low, high = _take(column, first), _take(column, second)
        return jnp.where(inside, low + fraction * (high - low), jnp.nan)


class Sounding(eqx.Module):
    """See a field on levels at places and pressures: `(level, latitude, longitude)`.

    Interpolated in the horizontal first, then in the vertical: see `Interpolate` and
    `LogPressure`, whose rules for places and pressures that are unknown or outside hold
    here too. An observation made with it knows its `coordinates`.
    """

    horizontal: Interpolate
    vertical: LogPressure

    def __init__(
        self,
        grid: sphere.Grid,
        levels: Float[Array | np.ndarray, "level"],
        latitude: Float[Array | np.ndarray, "point"],
        longitude: Float[Array | np.ndarray, "point"],
        pressure: Float[Array | np.ndarray, "point"],
        method: sphere.Bilinear | sphere.Bicubic | None = None,
    ):
        """Set the grid and levels (Pa) of the fields, and the points (degrees, Pa).

        Raises:
            ValueError, EquinoxRuntimeError: as for `Interpolate` and `LogPressure`.
        """
        self.horizontal = Interpolate(grid, latitude, longitude, method)
        self.vertical = LogPressure(levels, pressure)

    @property
    def coordinates(self) -> dict[str, Float[Array, "point"]]:
        """`latitude` and `longitude` in degrees and `pressure` in Pa."""
        return self.horizontal.coordinates | self.vertical.coordinates

    @property
    def inside(self) -> Bool[Array, "point"]:
        """Where the place is known and the pressure lies between the levels."""
        places = self.horizontal.coordinates.values()
        known = jnp.isfinite(jnp.stack(list(places))).all(axis=0)
        return self.vertical.inside & known

    def __call__(
        self, field: Float[Array, "level latitude longitude"]
    ) -> Float[Array, "point"]:
        """Return the values at the points, in the field's units and dtype.

        Raises:
            ValueError: `field` does not lie on the grid, or has other levels.
        """
        return self.vertical(self.horizontal(field))


def _take(column, level):
    if column.ndim == 1:
        return column[level]
    return jnp.take_along_axis(column, level[None], axis=0)[0]
