"""What quality control looks at: departures, their expected size, and their places."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from skyens import sphere
from skyens.observations._observation import Observation
from skyens.observations._precision import wide


def departures(
    observation: Observation, ensemble: PyTree[Any]
) -> tuple[
    Float[Array, "*observation"],
    Float[Array, "*observation"],
    Float[Array, "*observation"],
]:
    """Return `value - mean prediction`, the variance of predictions, and of the error.

    In the units of the value and their square; the departure is 0 where masked, NaN
    where a member's prediction is not finite. The variance of the predictions is the
    unbiased one over members, 0 for one member.

    Raises:
        ValueError: the ensemble has no leaf, or the error has no standard deviation of
            each entry (see `error_std`).
    """
    # A filter in a window has recorded what its members showed earlier.
    recorded = getattr(observation.operator, "predictions", None)
    if recorded is None:
        recorded = jax.vmap(observation.predict)(ensemble)
    predictions = observation.unwrap(recorded.astype(wide(recorded.dtype)))
    first = predictions[:1]  # small spreads about large values keep their digits
    shifted = predictions - first
    mean = (first + jnp.mean(shifted, axis=0, keepdims=True))[0]
    members = predictions.shape[0]
    variance = jnp.var(shifted, axis=0, ddof=1) if members > 1 else jnp.zeros_like(mean)
    unseen = observation.mask & ~jnp.isfinite(mean)
    departure = jnp.where(unseen, jnp.nan, observation.residual(mean))
    variance = jnp.where(observation.mask & ~unseen, variance, 0)
    return departure, variance, error_std(observation, mean) ** 2


def error_std(
    observation: Observation, prediction: Float[Array, "*observation"]
) -> Float[Array, "*observation"]:
    """Return the standard deviation of each entry's error, in the value's units.

    A robust law has that of an entry which fits perfectly: the one it takes for good.

    Raises:
        ValueError: the errors are not independent, and have no `covariance`.
    """
    shape, dtype = prediction.shape, prediction.dtype
    everything = jnp.ones(shape, bool)
    prediction = jnp.where(jnp.isfinite(prediction), prediction, 0)
    law = observation.law(prediction)
    gaussian = getattr(law, "gaussian", None)
    if gaussian is not None:
        law = gaussian(jnp.zeros(shape, dtype), everything)
    if law.independent:
        return 1 / jnp.abs(law.whiten(jnp.ones(shape, dtype), everything))
    covariance = getattr(law, "covariance", None)
    if covariance is None:
        raise ValueError(
            "quality control needs the standard deviation of each entry: independent "
            f"errors, or ones with a `covariance`; got {type(law).__name__}."
        )
    variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)  # of several blocks too
    return jnp.sqrt(variance).reshape(shape).astype(dtype)


def places(
    observation: Observation,
) -> tuple[Float[Array, "entry"], Float[Array, "entry"], Bool[Array, "entry"]]:
    """Return latitude and longitude in degrees, flat, and which count and are known.

    Raises:
        ValueError: the observation does not say where its entries are.
    """
    known = observation.coordinates or {}
    if missing := {"latitude", "longitude"} - set(known):
        raise ValueError(
            f"`observation` needs its coordinates, {sorted(missing)} is missing: "
            "Observation(..., coordinates={'latitude': ..., 'longitude': ...})."
        )
    latitude = known["latitude"].reshape(-1)
    longitude = known["longitude"].reshape(-1).astype(latitude.dtype)
    here = jnp.isfinite(latitude) & jnp.isfinite(longitude)
    counts = observation.mask.reshape(-1) & here
    return jnp.where(here, latitude, 0), jnp.where(here, longitude, 0), counts


def on_unit_sphere(
    latitude: Float[Array, "entry"], longitude: Float[Array, "entry"]
) -> Float[Array, "3 entry"]:
    """Return the Cartesian coordinates of places, degrees, on the unit sphere."""
    lat, lon = jnp.deg2rad(latitude), jnp.deg2rad(longitude)
    level = jnp.cos(lat)
    return jnp.stack([level * jnp.cos(lon), level * jnp.sin(lon), jnp.sin(lat)])


def labels(
    name: str, values: Int[Array | np.ndarray, "..."] | None, observation: Observation
) -> Int[Array, "entry"]:
    """Return whole numbers of the observation's shape, flat; zeros if left out.

    Raises:
        ValueError: they do not broadcast to the shape of the value.
    """
    shape = observation.value.shape
    values = jnp.zeros(shape, int) if values is None else jnp.asarray(values)
    return fit(name, values, shape).reshape(-1)


def fit(name: str, values: Array, shape: tuple[int, ...]) -> Array:
    """Broadcast to `shape`.

    Raises:
        ValueError: that is not possible.
    """
    try:
        return jnp.broadcast_to(values, shape)
    except ValueError:
        raise ValueError(
            f"`{name}` of shape {values.shape} does not broadcast to the observation's "
            f"shape {shape}."
        ) from None


def cells(
    grid: sphere.Grid, latitude: Float[Array, "entry"], longitude: Float[Array, "entry"]
) -> Int[Array, "entry"]:
    """Return the number, in C order, of the grid point whose cell a place lies in.

    Borders lie half way between rows and columns.
    """
    rows = jnp.asarray(grid.latitude, latitude.dtype)
    falling = grid.north_first
    rising = rows[::-1] if falling else rows
    row = jnp.searchsorted((rising[1:] + rising[:-1]) / 2, latitude)
    row = grid.n_latitude - 1 - row if falling else row
    step = 360 / grid.n_longitude
    column = jnp.round((longitude - grid.longitude_origin) / step).astype(row.dtype)
    return row * grid.n_longitude + column % grid.n_longitude
