"""Latitude-longitude grids: where the points are and how much sphere each weighs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import jax
import numpy as np

Kind = Literal["gauss-legendre", "equiangular", "cell-centred"]


@jax.tree_util.register_static
@dataclass(frozen=True)
class Grid:
    """A global grid of latitude rows and equally spaced longitudes; static, hashable.

    Make one with `gauss_legendre`, `equiangular`, `cell_centred` or
    `Grid.from_coordinates`. Fields on it are `(..., latitude, longitude)`. Rows run
    from south to north unless `north_first`; longitude runs east from
    `longitude_origin` (degrees).
    """

    kind: Kind
    n_latitude: int
    n_longitude: int
    north_first: bool = False
    longitude_origin: float = 0.0

    def __post_init__(self):
        """Check the sizes.

        Raises:
            ValueError: fewer than two latitudes or one longitude, or an unknown kind.
        """
        if self.kind not in _COLATITUDES:
            known = ", ".join(_COLATITUDES)
            raise ValueError(f"`kind` must be one of {known}, got {self.kind!r}.")
        if self.n_latitude < 2:
            raise ValueError(f"`n_latitude` must be at least 2, got {self.n_latitude}.")
        if self.n_longitude < 1:
            raise ValueError(
                f"`n_longitude` must be at least 1, got {self.n_longitude}."
            )

    @classmethod
    def from_coordinates(cls, latitude, longitude, *, tolerance: float = 1e-2):
        """Recognise the grid that has these coordinates.

        Longitudes may start anywhere and may jump by 360 degrees once (0 to 180, then
        -180 to 0), as long as they run east in equal steps around the full circle.

        Args:
            latitude: degrees, `(n_latitude,)`, either way.
            longitude: degrees east, `(n_longitude,)`.
            tolerance: largest distance allowed from the grid's own latitudes and
                longitudes, as a fraction of the mean spacing.

        Raises:
            ValueError: the coordinates belong to no known grid; the message says how
                far from the nearest, or what is wrong with the longitudes.
        """
        latitude = _as_vector("latitude", latitude)
        longitude = _as_vector("longitude", longitude)
        origin = _longitude_origin(longitude, tolerance)
        n = latitude.size
        if n < 2:
            raise ValueError(f"`latitude` needs at least 2 values, got {n}.")
        steps = np.diff(latitude)
        if not (np.all(steps > 0) or np.all(steps < 0)):
            raise ValueError(
                "`latitude` must rise or fall strictly from row to row; it does not "
                f"at row {int(np.argmax(np.sign(steps) != np.sign(steps[0]))) + 1}."
            )
        candidates = [
            cls(kind, n, longitude.size, bool(steps[0] < 0), origin)
            for kind in _COLATITUDES
        ]
        distances = [np.max(np.abs(grid.latitude - latitude)) for grid in candidates]
        best = int(np.argmin(distances))
        if distances[best] > tolerance * 180 / n:
            raise ValueError(
                f"`latitude` ({n} values from {latitude[0]:g} to {latitude[-1]:g}) is "
                f"no known grid: the nearest, {candidates[best].kind}, differs by up "
                f"to {distances[best]:.3g} degrees (allowed: {tolerance * 180 / n:.2g})"
                ". Interpolate to a known grid first, or raise `tolerance`."
            )
        return candidates[best]

    @property
    def shape(self) -> tuple[int, int]:
        """`(n_latitude, n_longitude)`."""
        return self.n_latitude, self.n_longitude

    @property
    def latitude(self) -> np.ndarray:
        """Latitudes in degrees, `(n_latitude,)`, float64."""
        latitude = 90 - np.rad2deg(
            _colatitude_and_weight(self.kind, self.n_latitude)[0]
        )
        return latitude if self.north_first else latitude[::-1]

    @property
    def longitude(self) -> np.ndarray:
        """Longitudes in degrees east, `(n_longitude,)`, float64."""
        step = np.arange(self.n_longitude) * (360 / self.n_longitude)
        return self.longitude_origin + step

    @property
    def colatitude(self) -> np.ndarray:
        """Angle from the north pole in radians, `(n_latitude,)`, float64."""
        colatitude = _colatitude_and_weight(self.kind, self.n_latitude)[0]
        return colatitude if self.north_first else colatitude[::-1]

    @property
    def weights(self) -> np.ndarray:
        """Quadrature weights by row, in steradian: `sum(weights) * n_longitude = 4 pi`.

        Exact for band-limited fields: to degree `2 n_latitude - 1` on Gauss-Legendre
        rows, `n_latitude - 1` on the others (Clenshaw-Curtis with poles, Fejer's first
        rule cell-centred).
        """
        weight = _colatitude_and_weight(self.kind, self.n_latitude)[1]
        weight = weight * (2 * np.pi / self.n_longitude)
        return weight if self.north_first else weight[::-1]

    @property
    def largest_lmax(self) -> int:
        """Largest degree for which this grid can tell all harmonics apart."""
        rows = self.n_latitude - (2 if self.kind == "equiangular" else 1)
        return min(rows, (self.n_longitude - 1) // 2)

    def check(self, field, name: str = "field") -> None:
        """Check that the last two axes of `field` are this grid's.

        Raises:
            ValueError: they are not.
        """
        if tuple(field.shape[-2:]) != self.shape:
            raise ValueError(
                f"`{name}` of shape {tuple(field.shape)} does not lie on this "
                f"{self.kind} grid: its last two axes must be (latitude, longitude) = "
                f"{self.shape}."
            )


def gauss_legendre(
    n_latitude: int,
    n_longitude: int,
    *,
    north_first: bool = False,
    longitude_origin: float = 0.0,
) -> Grid:
    """Return the grid whose latitudes are Gauss-Legendre nodes (no poles)."""
    return Grid(
        "gauss-legendre", n_latitude, n_longitude, north_first, longitude_origin
    )


def equiangular(
    n_latitude: int,
    n_longitude: int,
    *,
    north_first: bool = False,
    longitude_origin: float = 0.0,
) -> Grid:
    """Return the grid of equal latitude steps that includes both poles (ERA5's)."""
    return Grid("equiangular", n_latitude, n_longitude, north_first, longitude_origin)


def cell_centred(
    n_latitude: int,
    n_longitude: int,
    *,
    north_first: bool = False,
    longitude_origin: float = 0.0,
) -> Grid:
    """Return the grid of equal latitude cells seen at their centres (no poles)."""
    return Grid("cell-centred", n_latitude, n_longitude, north_first, longitude_origin)


def _gauss_legendre(n: int) -> tuple[np.ndarray, np.ndarray]:
    node, weight = np.polynomial.legendre.leggauss(n)
    return np.arccos(node[::-1]), weight[::-1]


def _equiangular(n: int) -> tuple[np.ndarray, np.ndarray]:
    # Clenshaw-Curtis: integrate the cosine interpolant; its ends count half.
    theta = np.pi * np.arange(n) / (n - 1)
    end = np.where((np.arange(n) == 0) | (np.arange(n) == n - 1), 0.5, 1.0)
    k = np.arange(0, n, 2)
    scale = np.where(k == 0, 1.0, 2.0) * np.where(k == n - 1, 0.5, 1.0)
    integral = 2 / (1 - k**2.0)
    return theta, 2 / (n - 1) * end * (
        np.cos(np.outer(theta, k)) @ (scale * integral / 2)
    )


def _cell_centred(n: int) -> tuple[np.ndarray, np.ndarray]:
    # Fejer's first rule.
    theta = np.pi * (np.arange(n) + 0.5) / n
    k = np.arange(0, n, 2)
    scale = np.where(k == 0, 1.0, 2.0)
    integral = 2 / (1 - k**2.0)
    return theta, np.cos(np.outer(theta, k)) @ (scale * integral) / n


_COLATITUDES: dict[Kind, Callable[[int], tuple[np.ndarray, np.ndarray]]] = {
    "gauss-legendre": _gauss_legendre,
    "equiangular": _equiangular,
    "cell-centred": _cell_centred,
}


@lru_cache(maxsize=64)
def _colatitude_and_weight(kind: Kind, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Colatitudes from north to south, and weights that sum to 2."""
    theta, weight = _COLATITUDES[kind](n)
    theta.setflags(write=False)
    weight.setflags(write=False)
    return theta, weight


def _as_vector(name: str, values) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"`{name}` must have one axis, got shape {values.shape}.")
    if bad := int(np.sum(~np.isfinite(values))):
        raise ValueError(f"`{name}` has {bad} values that are not finite.")
    if name == "latitude" and np.max(np.abs(values)) > 90 + 1e-6:
        raise ValueError(
            f"`latitude` must lie in [-90, 90] degrees, got {values.min():g} to "
            f"{values.max():g}; are the arguments swapped, or in radians?"
        )
    return values


def _longitude_origin(longitude: np.ndarray, tolerance: float) -> float:
    n = longitude.size
    step = 360 / n
    gaps = np.mod(np.diff(longitude), 360)
    if n > 1 and np.isclose(np.mod(longitude[-1] - longitude[0], 360), 0, atol=1e-6):
        raise ValueError(
            f"`longitude` repeats its first value at the end ({longitude[0]:g} and "
            f"{longitude[-1]:g} degrees): drop the wrap column."
        )
    if np.any(np.abs(gaps - step) > tolerance * step):
        if n > 1 and np.all(np.abs(gaps - (360 - step)) <= tolerance * step):
            raise ValueError("`longitude` runs west; reverse it so that it runs east.")
        raise ValueError(
            f"`longitude` must cover the circle in {n} equal steps of {step:g} degrees "
            f"to the east; its steps are {gaps.min():g} to {gaps.max():g} degrees."
        )
    return float(longitude[0])
