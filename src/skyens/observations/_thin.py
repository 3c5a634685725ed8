"""Thinning: of values that say the same, keep one."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from skyens import sphere
from skyens.observations._departures import (
    cells,
    fit,
    labels,
    on_unit_sphere,
    places,
)
from skyens.observations._observation import Observation


def thin(
    observation: Observation,
    *,
    radius: float | int,
    priority: Float[Array | np.ndarray, "..."] | None = None,
    group: Int[Array | np.ndarray, "..."] | None = None,
    sphere_radius: float = 6.371e6,
) -> Observation:
    """Return the observation with no two entries closer than `radius`.

    The entry of highest priority is kept and rejects those about it, then the next of
    those that are left, and so on: what is kept is at least `radius` apart, and nothing
    is rejected without something better in reach. Entries with no place are left alone.
    One entry is looked at after the other, in the time of entries squared.

    Args:
        observation: what to thin; it needs `coordinates`.
        radius: in metres along the great circle.
        priority: of the entries, broadcasts to the value's shape; higher is better,
            and where equal the first comes first. NaN comes last.
        group: whole numbers that broadcast to the value's shape: entries of different
            groups (variables, levels, times) do not thin each other.
        sphere_radius: of the sphere, in metres.

    Raises:
        ValueError: `radius` is not above 0, or the observation does not say where it
            is, or an argument does not broadcast.
    """
    if not radius > 0:
        raise ValueError(f"`radius` must be above 0, got {radius}.")
    latitude, longitude, counts = places(observation)
    kind = labels("group", group, observation)
    order = _best_first(observation, priority, counts)
    position = on_unit_sphere(latitude, longitude)
    # Chords grow with arcs, and cost a tenth.
    reach = 2 * np.sin(min(radius / sphere_radius, np.pi) / 2).item()

    def visit(kept, entry):
        chord = jnp.sum((position - position[:, entry][:, None]) ** 2, axis=0)
        near = (chord < reach**2) & (kind == kind[entry][None])
        keep = counts[entry] & ~jnp.any(kept & near)
        return kept.at[entry].set(keep), None

    kept, _ = jax.lax.scan(visit, jnp.zeros_like(counts), order)
    return observation.reject((counts & ~kept).reshape(observation.value.shape))


def reject_duplicates(
    observation: Observation,
    *,
    tolerance: float | int = 100.0,
    priority: Float[Array | np.ndarray, "..."] | None = None,
    group: Int[Array | np.ndarray, "..."] | None = None,
    sphere_radius: float = 6.371e6,
) -> Observation:
    """Return the observation with one entry of those that stand at one place.

    Two reports of one station must not count as two measurements. Places nearer than
    `tolerance`, in metres, are one; the rest is as for `thin`. With `priority` the time
    of the reports, the latest is kept.

    Raises:
        ValueError: as for `thin`.
    """
    return thin(
        observation,
        radius=tolerance,
        priority=priority,
        group=group,
        sphere_radius=sphere_radius,
    )


def thin_to_grid(
    observation: Observation,
    grid: sphere.Grid,
    *,
    priority: Float[Array | np.ndarray, "..."] | None = None,
    group: Int[Array | np.ndarray, "..."] | None = None,
) -> Observation:
    """Return the observation with the best entry in each cell of `grid`.

    Faster than `thin`, but two entries on either side of a border may be close. The
    other arguments are those of `thin`.

    Raises:
        ValueError: the observation does not say where it is, or an argument does not
            broadcast.
    """
    latitude, longitude, counts = places(observation)
    kind = labels("group", group, observation)
    rank = jnp.argsort(_best_first(observation, priority, counts))
    cell = cells(grid, latitude, longitude)
    number = jnp.where(counts, cell, -1)  # what does not count has a cell of its own
    # By group, cell and rank: the first of each run is the best of its cell.
    order = jnp.lexsort((rank, number, kind))
    changes = lambda x: x[order][1:] != x[order][:-1]
    first = jnp.concatenate([jnp.ones(1, bool), changes(kind) | changes(number)])
    kept = jnp.zeros_like(counts).at[order].set(first)
    return observation.reject((counts & ~kept).reshape(observation.value.shape))


def _best_first(
    observation: Observation,
    priority: Float[Array | np.ndarray, "..."] | None,
    counts: Bool[Array, "entry"],
) -> Int[Array, "entry"]:
    """Numbers of the entries by falling priority; those that do not count last."""
    shape = observation.value.shape
    if priority is None:
        priority = jnp.zeros(shape, observation.value.dtype)
    best = fit("priority", jnp.asarray(priority), shape).reshape(-1)
    best = jnp.where(counts & ~jnp.isnan(best), best, -jnp.inf)
    return jnp.argsort(-best, stable=True)
