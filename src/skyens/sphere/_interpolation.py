"""How fields are interpolated between rows and columns, and over the poles.

A method says how much neighbours count, by polynomials in the fraction of a cell, and
what lies beyond the first and last row. Rows are counted along the array; their
`places` rise with it: latitude or, if the north comes first, its negative.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from skyens.sphere._bands import Band, separable
from skyens.sphere._grid import Grid

Ghosts = Float[Array, "*batch beyond longitude"]


class Bilinear(eqx.Module):
    """Interpolate linearly in latitude and longitude, from the cell's four corners.

    Never above or below its neighbours; its error falls with the square of the
    spacing. Where a grid leaves out a pole, the value there is what the nearest row
    says of it: its mean or, of a vector's component, its zonal wavenumber 1.
    """

    vector: bool = eqx.field(default=False, static=True)  # a component, east or north

    def __call__(self, source: Grid, target: Grid):
        """Return the operator between grids for `Regridder`."""
        return Interpolation(self, source, target)

    def places(self, grid: Grid) -> np.ndarray:
        """Return where the rows lie, those beyond included: poles that are left out."""
        rows = _places(grid)
        if grid.kind == "equiangular":
            return rows
        return np.concatenate([[-90.0], rows, [90.0]])

    def beyond(
        self, grid: Grid, field: Float[Array, "*batch latitude longitude"]
    ) -> tuple[Ghosts, Ghosts]:
        """Return the rows before the first and after the last."""
        if grid.kind == "equiangular":
            return field[..., :0, :], field[..., :0, :]
        return self._pole(field[..., :1, :]), self._pole(field[..., -1:, :])

    def polynomials(self, places: np.ndarray) -> np.ndarray:
        """Return the weights of both ends of each cell, `(cell, end, power)`."""
        return np.broadcast_to([[1.0, -1], [0, 1]], (places.size - 1, 2, 2))

    def _pole(self, row):
        if not self.vector:
            return jnp.broadcast_to(row.mean(-1, keepdims=True), row.shape)
        # A vector at the pole has components that turn once with the longitude.
        n = row.shape[-1]
        turn = 2 * np.pi * np.arange(n) / n
        wave = jnp.asarray(np.stack([np.cos(turn), np.sin(turn)]), row.dtype)
        scale = 0 if n == 1 else 1 / n if n == 2 else 2 / n
        size = scale * jnp.matmul(row, wave.T, precision="highest")
        return jnp.matmul(size, wave, precision="highest")


class Bicubic(eqx.Module):
    """Interpolate by cubics whose slopes are central differences, from 4 by 4 points.

    Smooth across cells (the slope is continuous), exact for parabolas, its error falls
    with the third power of the spacing; it may overshoot. Rows go on over the poles on
    the opposite meridian, where a vector's component changes sign.

    Source: Keys (1981), IEEE Trans. Acoust. Speech Signal Process. 29, 1153-1160 (equal
    steps); slopes at unequal ones by the parabola through three points.
    """

    vector: bool = eqx.field(default=False, static=True)  # a component, east or north

    def __call__(self, source: Grid, target: Grid):
        """Return the operator between grids for `Regridder`."""
        return Interpolation(self, source, target)

    def places(self, grid: Grid) -> np.ndarray:
        """Return where the rows lie, with one or two beyond each pole."""
        rows = _places(grid)
        mirrored = -180 - rows
        first = mirrored[1:2] if grid.kind == "equiangular" else mirrored[1::-1]
        return np.concatenate([first, rows, -first[::-1]])

    def beyond(
        self, grid: Grid, field: Float[Array, "*batch latitude longitude"]
    ) -> tuple[Ghosts, Ghosts]:
        """Return the rows before the first and after the last."""
        pole = int(grid.kind == "equiangular")
        first = field[..., pole:2, :]
        last = field[..., grid.n_latitude - 2 : grid.n_latitude - pole, :]
        return self._turned(first[..., ::-1, :]), self._turned(last[..., ::-1, :])

    def polynomials(self, places: np.ndarray) -> np.ndarray:
        """Return the weights of inner cells' four points, `(cell, point, power)`."""
        before, width, after = (
            np.diff(places)[i : places.size - 3 + i] for i in range(3)
        )
        zero = np.zeros_like(width)
        # The parabola's slope at both ends of the cell, times its width.
        low = width**2 / (before * (before + width))
        high = before / (before + width)
        start = np.stack([-low, low - high, high, zero], -1)
        low = after / (width + after)
        high = width**2 / (after * (width + after))
        end = np.stack([zero, -low, low - high, high], -1)
        left, right = np.array([0.0, 1, 0, 0]), np.array([0.0, 0, 1, 0])
        return np.stack(
            [
                np.broadcast_to(left, start.shape),
                start,
                3 * (right - left) - 2 * start - end,
                2 * (left - right) + start + end,
            ],
            axis=-1,
        )

    def _turned(self, rows):
        """Return `rows` seen from the opposite meridian."""
        n = rows.shape[-1]
        if n % 2 == 0:
            turned = jnp.roll(rows, n // 2, -1)
        else:  # the opposite meridian runs midway between columns
            weights = evaluate(self.polynomials(np.arange(4.0))[0].T, 0.5)
            turned = jnp.zeros_like(rows)
            for k, weight in enumerate(weights.tolist()):
                turned += weight * jnp.roll(rows, -(n // 2) - k + 1, -1)
        return -turned if self.vector else turned


class Interpolation(eqx.Module):
    """Fields from one grid to another, rows and columns apart."""

    method: Bilinear | Bicubic
    source: Grid = eqx.field(static=True)
    crosses: bool = eqx.field(static=True)  # whether rows beyond the poles are needed
    rows: Band
    columns: Band

    def __init__(self, method: Bilinear | Bicubic, source: Grid, target: Grid):
        """Find the neighbours and weights of the rows and columns of `target`."""
        self.method, self.source = method, source
        places, n = method.places(source), source.n_latitude
        edges, wanted = inner_places(places, method), _places(target, like=source)
        cell = np.clip(np.searchsorted(edges, wanted, "right") - 1, 0, edges.size - 2)
        fraction = _settle((wanted - edges[cell]) / np.diff(edges)[cell])
        pieces = np.moveaxis(method.polynomials(places), -1, 0)
        weights = _clear(evaluate(pieces[:, cell], fraction[:, None]))
        neighbour = cell[:, None] + np.arange(weights.shape[1])
        beyond = (places.size - n) // 2
        inside = (neighbour >= beyond) & (neighbour < n + beyond)
        self.crosses = bool(np.any(~inside & (weights != 0)))
        if not self.crosses:
            neighbour, weights = neighbour - beyond, np.where(inside, weights, 0)
            places = places[beyond : beyond + n]
        self.rows = _band(neighbour, weights, places.size)

        step = 360 / source.n_longitude
        x = _settle((target.longitude - source.longitude_origin) / step)
        fraction = x - np.floor(x)
        weights = _clear(evaluate(column_polynomials(method).T, fraction[:, None]))
        reach = np.arange(weights.shape[1]) - weights.shape[1] // 2 + 1
        neighbour = (np.floor(x).astype(int)[:, None] + reach) % source.n_longitude
        self.columns = _band(neighbour, weights, source.n_longitude)

    def __call__(
        self, field: Float[Array, "*batch latitude longitude"]
    ) -> Float[Array, "*batch rows columns"]:
        """Return `field` on the target grid."""
        if self.crosses:
            before, after = self.method.beyond(self.source, field)
            field = jnp.concatenate([before, field, after], axis=-2)
        return separable(self.rows, self.columns, field)


def column_polynomials(method: Bilinear | Bicubic) -> np.ndarray:
    """Return the weights between two columns, `(column, power)`."""
    columns = np.arange(4.0)
    return method.polynomials(columns)[1 - _outer(method)]


def evaluate(coefficients, fraction):
    """Return the polynomial with these `coefficients`, power 0 first, at `fraction`."""
    *lower, value = coefficients
    for coefficient in reversed(lower):
        value = value * fraction + coefficient
    return value


def inner_places(places: np.ndarray, method: Bilinear | Bicubic) -> np.ndarray:
    """Return the ends of the cells that have polynomials."""
    outer = _outer(method)
    return places[outer : places.size - outer]


def _outer(method: Bilinear | Bicubic) -> int:
    return int(isinstance(method, Bicubic))


def _places(grid: Grid, like: Grid | None = None) -> np.ndarray:
    north_first = grid.north_first if like is None else like.north_first
    return -grid.latitude if north_first else np.asarray(grid.latitude)


def _settle(x: np.ndarray) -> np.ndarray:
    """Rows and columns that coincide but for rounding do coincide."""
    return np.where(np.abs(x - np.round(x)) < 1e-9, np.round(x), x)


def _clear(weights: np.ndarray) -> np.ndarray:
    """Weights that are 0 but for rounding are 0: a NaN there is out of reach."""
    return np.where(np.abs(weights) < 1e-14, 0, weights)


def _band(neighbour: np.ndarray, weights: np.ndarray, size: int) -> Band:
    output = np.repeat(np.arange(len(neighbour)), neighbour.shape[1])
    shape = (len(neighbour), size)
    return Band(output, neighbour.ravel(), weights.ravel(), shape)
