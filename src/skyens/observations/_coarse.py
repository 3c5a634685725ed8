"""Coarse views of a field."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from skyens import sphere


class CoarseGrain(eqx.Module):
    """See means of fields over the cells of a coarser grid.

    Cells are weighed by the area that they share, so the area integral stays: see
    `sphere.Conservative`. It leaves NaN out. An observation made with it knows its
    `coordinates`, the centres of the cells.
    """

    regridder: sphere.Regridder

    def __init__(self, fine: sphere.Grid, coarse: sphere.Grid):
        """Set the grid of the fields and that of what is seen.

        Raises:
            ValueError: `coarse` has more rows or columns than `fine`.
        """
        if any(c > f for c, f in zip(coarse.shape, fine.shape, strict=True)):
            raise ValueError(
                f"`coarse` must be no finer than `fine`, got {coarse.shape} rows and "
                f"columns after {fine.shape}. To see a field on a finer grid, take a "
                "`sphere.Regridder` as operator."
            )
        self.regridder = sphere.Regridder(fine, coarse)

    @property
    def coordinates(self) -> dict[str, Float[Array, "latitude longitude"]]:
        """`latitude` and `longitude` of the cells' centres, degrees."""
        grid = self.regridder.target
        latitude = jnp.asarray(grid.latitude, float)[:, None]
        longitude = jnp.asarray(grid.longitude, float)[None, :]
        return {
            "latitude": jnp.broadcast_to(latitude, grid.shape),
            "longitude": jnp.broadcast_to(longitude, grid.shape),
        }

    def __call__(
        self, field: Float[Array, "*batch latitude longitude"]
    ) -> Float[Array, "*batch rows columns"]:
        """Return the means, in the field's units and dtype.

        Raises:
            ValueError: `field` does not lie on the fine grid.
        """
        return self.regridder(field)
