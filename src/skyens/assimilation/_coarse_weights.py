"""Weights of an analysis on few points, interpolated to many."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from skyens import sphere
from skyens.assimilation._geometry import Geometry, Plane, Sphere, as_geometry


class CoarseWeights(eqx.Module):
    """From the weights of a local filter on a coarse grid to those of a fine one.

    Weights vary over the localisation's length, states over the grid's: computed on a
    grid of a few times the spacing and interpolated, they cost that many times squared
    less, for nearly the same analysis as long as the coarse spacing stays below half
    the length.

    `LETKF(Localisation(coarse, ...), interpolate=CoarseWeights(coarse, fine))`.
    Interpolation is bilinear, over the poles of a sphere and across the seam of what is
    periodic; beyond the ends of an open axis the last weights go on. All weights of the
    coarse grid are held at once: points * members^2, times vertical places.

    Source: Yang et al. (2009), Quart. J. Roy. Meteor. Soc. 135, 251-262.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    coarse: tuple[int, ...] = eqx.field(static=True)
    index: Int[Array, "point corner"]
    weight: Float[Array, "point corner"] = eqx.field(metadata={"trainable": False})

    def __init__(
        self,
        coarse: sphere.Grid | Geometry,
        fine: sphere.Grid | Geometry,
    ):
        """Find the corners around each point of `fine`, which may be scattered.

        Raises:
            ValueError: `coarse` is no grid, or one of another geometry.
        """
        coarse, fine = as_geometry(coarse, None), as_geometry(fine, None)
        if coarse.axes is None:
            raise ValueError("`coarse` must be a grid: its points have no cells.")
        if type(coarse) is not type(fine) or coarse.names != fine.names:
            raise ValueError("`coarse` and `fine` must lie in the same geometry.")
        axes = [np.asarray(axis, float) for axis in coarse.axes]
        y, x = np.asarray(fine.points, float)
        if isinstance(coarse, Sphere):
            corners = _over_poles(axes, y, x)
        else:
            assert isinstance(coarse, Plane)
            period_y, period = coarse.periods
            rows = (
                _ends(axes[0], y, period_y) if len(axes) == 2 else [(0 * y, 1 + 0 * y)]
            )
            columns = _ends(axes[-1], x, period)
            corners = [(i, j, a * b) for i, a in rows for j, b in columns]
        size = axes[-1].size
        number = [i * size + j for i, j, _ in corners]
        self.index = jnp.asarray(np.stack(number, -1).astype(np.int32))
        self.weight = jnp.asarray(np.stack([w for *_, w in corners], -1))
        self.shape, self.coarse = fine.shape, coarse.shape


def _ends(axis, x, period):
    """Return the two neighbours of each `x` on an axis, and their weights."""
    order = np.argsort(axis, kind="stable")
    places = axis[order]
    if period is not None:
        x = places[0] + np.mod(x - places[0], period)
        places = np.append(places, places[0] + period)
        order = np.append(order, order[0])
    if places.size == 1:
        return [(0 * x.astype(int), 1 + 0 * x)]
    cell = np.clip(np.searchsorted(places, x, "right") - 1, 0, places.size - 2)
    fraction = np.clip((x - places[cell]) / (places[cell + 1] - places[cell]), 0, 1)
    return [(order[cell], 1 - fraction), (order[cell + 1], fraction)]


def _over_poles(axes, latitude, longitude):
    """Return the corners on a sphere: a row goes on beyond the pole, half a turn on."""
    rows, columns = axes
    first, last = np.argmin(rows), np.argmax(rows)
    places = np.concatenate([[-180 - rows[first]], rows, [180 - rows[last]]])
    number = np.concatenate([[first], np.arange(rows.size), [last]])
    turned = np.zeros(places.size, bool)
    turned[[0, -1]] = True
    # A row at the pole itself needs no other beyond it.
    order = np.argsort(places, kind="stable")
    if places[order[1]] - places[order[0]] < 1e-9:
        order = order[1:]
    if places[order[-1]] - places[order[-2]] < 1e-9:
        order = order[:-1]
    corners = []
    for end, weight in _ends(places[order], latitude, None):
        row = order[end]
        beyond = turned[row]
        for column, share in _ends(columns, longitude + 180.0 * beyond, 360.0):
            corners.append((number[row], column, weight * share))
    return corners
