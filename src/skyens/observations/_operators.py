"""Observation operators: from one state to what an instrument would see of it.

Any callable of one state that returns an array of the value's shape is an operator.
These are the common ones. For a state that is not a plain array, choose the array
first: `observation.pullback(lambda state: state["temperature"])`.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from skyens import sphere
from skyens.observations._places import check_places
from skyens.sphere._precision import as_float


class Index(eqx.Module):
    """See entries of an array, `state[indices]` as in NumPy."""

    indices: tuple[Int[Array, "*observation"], ...]

    def __init__(
        self,
        indices: Int[Array | np.ndarray, "..."]
        | tuple[Int[Array | np.ndarray, "..."], ...],
    ):
        """Set integer `indices` into the first axis, or a tuple of them for several."""
        indices = indices if isinstance(indices, tuple) else (indices,)
        self.indices = tuple(map(jnp.asarray, indices))

    def __call__(self, state: Float[Array, "*state"]) -> Float[Array, "..."]:
        """Return the entries; NaN for indices outside that only the run tells.

        Raises:
            ValueError: the state has fewer axes than there are indices, or, where the
                indices are known at trace time, one lies outside of it.
        """
        if len(self.indices) > state.ndim:
            raise ValueError(
                f"`indices` address {len(self.indices)} axes, the state has the shape "
                f"{state.shape}."
            )
        for axis, index in enumerate(self.indices):
            size = state.shape[axis]
            if isinstance(index, Tracer):
                continue
            outside = (np.asarray(index) < -size) | (np.asarray(index) >= size)
            if outside.any():
                raise ValueError(
                    f"`indices` must lie within axis {axis} of size {size}, got "
                    f"{np.asarray(index)[outside][0]}."
                )
        return as_float(state).at[self.indices].get(mode="fill", fill_value=jnp.nan)


class Linear(eqx.Module):
    """See `matrix @ state`, the state flattened in C order."""

    matrix: Float[Array, "observation state"]

    def __init__(self, matrix: Float[Array | np.ndarray, "observation state"]):
        """Set `matrix`, in units of the value per unit of the state."""
        self.matrix = jnp.asarray(matrix)

    def __call__(self, state: Float[Array, "*state"]) -> Float[Array, "observation"]:
        """Return the product, in the state's dtype.

        Raises:
            ValueError: the state's size is not the matrix's number of columns.
        """
        if state.size != self.matrix.shape[1]:
            raise ValueError(
                f"`matrix` of shape {self.matrix.shape} does not apply to a state of "
                f"shape {state.shape}, {state.size} entries."
            )
        flat = as_float(state).reshape(-1)
        return jnp.matmul(self.matrix.astype(flat.dtype), flat, precision="highest")


class Interpolate(eqx.Module):
    """See a field at points of the sphere, by default bilinear between grid points.

    `method` may be another of `sphere.interpolate`: `sphere.Bicubic()` or, for the
    components of a wind near the poles, `sphere.Bilinear(vector=True)`. An observation
    made with it knows its `coordinates` without being told.
    """

    grid: sphere.Grid
    latitude: Float[Array, "point"] = eqx.field(metadata={"trainable": False})
    longitude: Float[Array, "point"] = eqx.field(metadata={"trainable": False})
    method: sphere.Bilinear | sphere.Bicubic

    def __init__(
        self,
        grid: sphere.Grid,
        latitude: Float[Array | np.ndarray, "point"],
        longitude: Float[Array | np.ndarray, "point"],
        method: sphere.Bilinear | sphere.Bicubic | None = None,
    ):
        """Set the `grid` of the fields, and the points in degrees.

        A point at NaN has no place yet (a slot kept for a station, say): it sees NaN,
        and must be masked.

        Raises:
            ValueError: there are not as many latitudes as longitudes.
            EquinoxRuntimeError: a latitude lies outside [-90, 90].
        """
        self.grid = grid
        self.latitude, self.longitude = check_places(latitude, longitude)
        self.method = sphere.Bilinear() if method is None else method

    @property
    def coordinates(self) -> dict[str, Float[Array, "point"]]:
        """`latitude` and `longitude` of the points, degrees."""
        return {"latitude": self.latitude, "longitude": self.longitude}

    def __call__(
        self, field: Float[Array, "*batch latitude longitude"]
    ) -> Float[Array, "*batch point"]:
        """Return the values at the points, in the field's units and dtype.

        Raises:
            ValueError: `field` does not lie on the grid.
        """
        return sphere.interpolate(
            self.grid, field, self.latitude, self.longitude, self.method
        )
