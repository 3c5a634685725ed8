"""Quality control: which values are too far from what was expected to be believed.

Each check takes an observation and returns it without the entries that failed: they are
masked and counted as `rejected`. Shapes stay, so checks run under `jax.jit` and inside
a cycle; what they reject has no derivative.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from skyens import sphere
from skyens.observations._departures import (
    departures,
    labels,
    on_unit_sphere,
    places,
)
from skyens.observations._observation import Observation, wrap

_GAUSSIAN = 1.4826  # standard deviation over median absolute deviation, of a normal law


def range_check(
    observation: Observation,
    lowest: float | int | Float[Array, "..."],
    highest: float | int | Float[Array, "..."],
) -> Observation:
    """Return the observation without values outside of `[lowest, highest]`.

    The limits are in the value's units and broadcast to its shape.

    Raises:
        ValueError: both limits are numbers and no value lies between them.
    """
    numbers = isinstance(lowest, int | float) and isinstance(highest, int | float)
    if numbers and not lowest <= highest:
        raise ValueError(
            f"`lowest` must not be above `highest`, got {lowest} and {highest}."
        )
    value = observation.value
    limits = (jnp.asarray(limit, value.dtype) for limit in (lowest, highest))
    low, high = (jnp.broadcast_to(limit, value.shape) for limit in limits)
    return observation.reject((value < low) | (value > high))


def gross_error_check(
    observation: Observation,
    ensemble: PyTree[Any],
    *,
    limit: float | int | Float[Array, ""] = 5.0,
) -> Observation:
    """Return the observation without values that the ensemble holds for impossible.

    A value is rejected where it differs from the mean prediction by more than `limit`
    times `sqrt(spread^2 + error^2)`, its expected distance; also where a member's
    prediction is not finite, as nothing can be said of it then. The error of a robust
    law is that of its good values.

    Args:
        observation: what to check.
        ensemble: the background, any pytree with a leading member axis.
        limit: in standard deviations. Below 4, good values in rare weather go too.

    Source: Ingleby & Lorenc (1993), Quart. J. Roy. Meteor. Soc. 119, 1195-1225, whose
    Bayesian check becomes this one where errors are either small or boundless.

    Raises:
        ValueError: `limit` is a number not above 0, or the error is neither independent
            nor has it a `covariance`.
    """
    _positive("limit", limit)
    departure, spread, error = departures(observation, ensemble)
    allowed = jnp.asarray(limit, error.dtype) * jnp.sqrt(spread + error)
    return observation.reject(~(jnp.abs(departure) <= allowed))  # NaN too


def buddy_check(
    observation: Observation,
    ensemble: PyTree[Any],
    *,
    radius: float | int,
    limit: float | int | Float[Array, ""] = 4.0,
    neighbours: int = 8,
    fewest: int = 3,
    group: Int[Array | np.ndarray, "..."] | None = None,
    sphere_radius: float = 6.371e6,
) -> Observation:
    """Return the observation without values that their neighbours contradict.

    The weather of a rare day moves all departures from the background together; an
    error moves one. So each departure is compared with the median of its nearest
    neighbours', and rejected where it differs by more than `limit` times
    `sqrt(error^2 + scatter^2)`: its own expected error, and the robust scatter of the
    neighbours about their median (1.4826 times the median absolute deviation). An
    entry with fewer than `fewest` neighbours passes.

    Entries are done in blocks: memory holds `(block, entries)` at a time. What the
    ensemble alone refuses should have gone before, see `gross_error_check`.

    Args:
        observation: what to check; it needs `coordinates`.
        ensemble: the background, any pytree with a leading member axis.
        radius: of the neighbourhood, in metres along the great circle.
        limit: in standard deviations.
        neighbours: how many of the nearest to ask.
        fewest: how many there must be.
        group: whole numbers that broadcast to the value's shape: entries of different
            groups (variables, levels, times) are no neighbours.
        sphere_radius: of the sphere, in metres.

    Source: the buddy check of Dee et al. (2001), Quart. J. Roy. Meteor. Soc. 127,
    2457-2471, with a median and a scatter in place of an optimal interpolation.

    Raises:
        ValueError: a setting is not above 0, `fewest` exceeds `neighbours`, or the
            observation does not say where it is.
    """
    for name, setting in {"radius": radius, "limit": limit, "fewest": fewest}.items():
        _positive(name, setting)
    if fewest > neighbours:
        raise ValueError(
            f"`fewest` must not exceed `neighbours`, got {fewest} and {neighbours}."
        )
    latitude, longitude, counts = places(observation)
    kind = labels("group", group, observation)
    departure, _, error = departures(observation, ensemble)
    counts = counts & jnp.isfinite(departure.reshape(-1))
    flat = jnp.where(counts, departure.reshape(-1), 0)
    number = jnp.arange(flat.size)
    width = min(neighbours, flat.size)
    position = on_unit_sphere(latitude, longitude)
    period = None if observation.period is None else observation.period.reshape(-1)

    def contradicted(entry):
        # Chords order as arcs do, and cost a tenth.
        chord = jnp.sum((position - position[:, entry][:, None]) ** 2, axis=0)
        buddy = counts & (number != entry) & (kind == kind[entry][None])
        _, index = jax.lax.top_k(-jnp.where(buddy, chord, jnp.inf), width)
        distance = sphere.great_circle_distance(
            latitude[entry][None],
            longitude[entry][None],
            latitude[index],
            longitude[index],
        )
        near = buddy[index] & (distance * sphere_radius <= radius)
        # Departures of 179 and -179 degrees are near each other.
        apart = flat[index] - flat[entry][None]
        if period is not None:
            apart = wrap(apart, period[entry][None])
        middle = _median(apart, near)
        scatter = _GAUSSIAN * _median(jnp.abs(apart - middle[None]), near)
        allowed = jnp.sqrt(error.reshape(-1)[entry] + scatter**2)
        far = jnp.abs(middle) > jnp.asarray(limit, flat.dtype) * allowed
        return far & (jnp.sum(near) >= fewest)

    wrong = jax.lax.map(contradicted, number, batch_size=min(64, flat.size))
    return observation.reject((wrong & counts).reshape(observation.value.shape))


def _median(values: Float[Array, "entry"], mask) -> Float[Array, ""]:
    """Median of the values that `mask` keeps; 0 if there are none."""
    ordered = jnp.sort(jnp.where(mask, values, jnp.inf))
    count = jnp.sum(mask)
    middle = (ordered[jnp.maximum(count - 1, 0) // 2] + ordered[count // 2]) / 2
    # With all entries kept, `count // 2` never reaches the end.
    return jnp.where(count > 0, middle, 0)


def _positive(name: str, setting) -> None:
    if isinstance(setting, int | float) and not setting > 0:
        raise ValueError(f"`{name}` must be above 0, got {setting}.")
