"""Superobbing: many noisy values near each other make one good one."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from skyens import sphere
from skyens.observations._departures import (
    cells,
    error_std,
    labels,
    on_unit_sphere,
    places,
)
from skyens.observations._errors import Diagonal
from skyens.observations._observation import Observation
from skyens.observations._precision import wide


class _Averaged(eqx.Module):
    """An operator seen through weighted means over its entries."""

    operator: Callable
    weight: Float[Array, "entry"] = eqx.field(metadata={"trainable": False})
    slot: Int[Array, "entry"]
    width: int = eqx.field(static=True)

    def __call__(self, state: Any) -> Float[Array, "{self.width}"]:
        """Return the mean prediction of each slot, 0 where there is none."""
        return self.mean(self.operator(state).reshape(-1))

    def mean(self, values: Float[Array, "entry"]) -> Float[Array, "{self.width}"]:
        # Double where: a masked entry may be NaN, which no weight of 0 would stop.
        kept = jnp.where(self.weight > 0, values, 0)
        weighted = kept * self.weight.astype(values.dtype)
        return jax.ops.segment_sum(weighted, self.slot, self.width)


def superob(
    observation: Observation,
    grid: sphere.Grid,
    *,
    width: int | None = None,
    correlation: float | int | Float[Array, ""] = 0.0,
    group: Int[Array | np.ndarray, "..."] | None = None,
) -> Observation:
    """Return one value for all entries in a cell of `grid`: their best linear mean.

    Values, predictions and coordinates are averaged alike, with weights of one over
    the error variance, so innovations are averaged exactly whatever the operator. The
    error shrinks to `sqrt((1 - c) sum (w s)^2 + c (sum w s)^2)`, with weights `w`,
    errors `s` and the `correlation` c of errors in one cell: with 0, n alike values
    make an error smaller by `sqrt(n)`; what they share, the grid box that none of them
    sees, is a correlation.

    The result has a static `width`; slots that no cell needs are masked. What was
    rejected is gone: count it before.

    Args:
        observation: with independent errors and `coordinates`. A robust law becomes
            the Gaussian one of its good values: check the values first. An error that
            depends on what is predicted is taken at the values.
        grid: whose cells to average in; borders lie half way between its points.
        width: of the result. As many slots as entries when left out.
        correlation: of the errors of two entries in one cell, in [0, 1].
        group: whole numbers that broadcast to the value's shape: entries of different
            groups (variables, levels, times) are never averaged.

    Raises:
        ValueError: the errors are not independent, the values have a period, `width`
            is below 1, or the observation does not say where it is.
        EquinoxRuntimeError: more cells are occupied than `width`, or `correlation` lies
            outside [0, 1].
    """
    latitude, longitude, counts = places(observation)
    if not observation.error.independent:
        raise ValueError(
            "`superob` needs independent errors, got "
            f"{type(observation.error).__name__}."
        )
    if observation.period is not None:
        raise ValueError(
            "`superob` knows no mean of values with a period, wind directions say: "
            "average components."
        )
    width = counts.size if width is None else width
    if width < 1:
        raise ValueError(f"`width` must be at least 1, got {width}.")
    dtype = wide(observation.value.dtype)
    value = jnp.where(counts, observation.value.reshape(-1), 0).astype(dtype)
    std = error_std(observation, value.reshape(observation.value.shape)).reshape(-1)
    rho = jnp.asarray(correlation, dtype)
    rho = eqx.error_if(rho, ~((rho >= 0) & (rho <= 1)), "`correlation`: 0 to 1.")

    kind = labels("group", group, observation)
    slot, needed = _slots(cells(grid, latitude, longitude), kind, counts)
    message = f"`width` is {width}, more cells are occupied."
    slot = eqx.error_if(slot, needed > width, message)
    slot = jnp.where(counts, slot, width)  # segment_sum drops what lies beyond
    add = lambda x: jax.ops.segment_sum(jnp.where(counts, x, 0), slot, width)
    total = add(std**-2)
    filled = total > 0
    each = jnp.where(filled, total, 1)[jnp.minimum(slot, width - 1)]
    averaged = _Averaged(
        observation.operator, jnp.where(counts, std**-2 / each, 0), slot, width
    )
    share = averaged.weight * std
    variance = (1 - rho) * add(share**2) + rho * add(share) ** 2
    coordinates = _middle(averaged, latitude, longitude, filled)
    for name, values in (observation.coordinates or {}).items():
        if name not in coordinates:
            mean = averaged.mean(values.reshape(-1))
            coordinates[name] = jnp.where(filled, mean, jnp.nan)
    return Observation(
        jnp.where(filled, averaged.mean(value), jnp.nan),
        averaged,
        Diagonal(jnp.sqrt(jnp.where(filled, variance, 1))),
        filled,
        coordinates,
    )


def _slots(cell, kind, counts):
    """Number the occupied cells of each group; return each entry's, and how many."""
    order = jnp.lexsort((cell, kind, ~counts))
    changes = lambda x: (x[order][1:] != x[order][:-1]).astype(int)
    new = jnp.maximum(changes(cell), changes(kind))
    rank = jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(new)])
    needed = jnp.max(jnp.where(counts[order], rank + 1, 0))
    return jnp.zeros_like(rank).at[order].set(rank), needed


def _middle(averaged, latitude, longitude, filled):
    """Mean place of the entries of each slot, on the sphere; NaN where empty."""
    x, y, z = map(averaged.mean, on_unit_sphere(latitude, longitude))
    north = jnp.rad2deg(jnp.arctan2(z, jnp.sqrt(x**2 + y**2)))
    east = jnp.rad2deg(jnp.arctan2(y, x)) % 360
    missing = lambda angle: jnp.where(filled, angle, jnp.nan)
    return {"latitude": missing(north), "longitude": missing(east)}
