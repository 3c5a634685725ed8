"""Places: latitudes and longitudes on the sphere, pressures in columns."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from skyens.observations._checks import check_values


def check_latitude(latitude: Float[Array | np.ndarray, "..."]) -> Float[Array, "..."]:
    """Return latitudes as an array; NaN is a place not known, and passes.

    Raises:
        EquinoxRuntimeError: one lies outside [-90, 90] degrees.
    """
    fine = lambda latitude: ~(abs(latitude) > 90)
    return check_values("latitude", "in [-90, 90]", latitude, fine)


def check_places(
    latitude: Float[Array | np.ndarray, "_"],
    longitude: Float[Array | np.ndarray, "_"],
) -> tuple[Float[Array, "point"], Float[Array, "point"]]:
    """Return both as arrays.

    Raises:
        ValueError: there are not as many latitudes as longitudes.
        EquinoxRuntimeError: a latitude lies outside [-90, 90] degrees.
    """
    shapes = jnp.shape(latitude), jnp.shape(longitude)
    if shapes[0] != shapes[1]:
        raise ValueError(
            "`latitude` and `longitude` must have the same shape, got "
            f"{shapes[0]} and {shapes[1]}."
        )
    return check_latitude(latitude), jnp.asarray(longitude)


def check_levels(levels: Float[Array | np.ndarray, "level"]) -> Float[Array, "level"]:
    """Return pressures of levels as an array.

    Raises:
        ValueError: there are fewer than two.
        EquinoxRuntimeError: they are not finite, above 0 and strictly monotonic.
    """
    if len(levels) < 2:
        raise ValueError(f"`levels` needs at least 2 pressures, got {len(levels)}.")

    def fine(levels):
        step = levels[1:] - levels[:-1]
        ordered = (step * step[:1] > 0).all()
        return (levels > 0) & (levels < np.inf) & ordered

    return check_values("levels", "finite, above 0 and in order", levels, fine)
