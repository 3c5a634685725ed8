"""Latitude-longitude grids: where the points are and how much sphere each weighs."""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from skyens.sphere._coordinates import recognise_columns, recognise_rows
from skyens.sphere._quadrature import KINDS, Kind, rows


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
            ValueError: fewer than two latitudes or one longitude, an unknown kind, or
                an origin that is not finite.
        """
        if self.kind not in KINDS:
            known = ", ".join(KINDS)
            raise ValueError(f"`kind` must be one of {known}, got {self.kind!r}.")
        if self.n_latitude < 2:
            raise ValueError(f"`n_latitude` must be at least 2, got {self.n_latitude}.")
        if self.n_longitude < 1:
            raise ValueError(
                f"`n_longitude` must be at least 1, got {self.n_longitude}."
            )
        if not np.isfinite(self.longitude_origin):
            raise ValueError(
                f"`longitude_origin` must be finite, got {self.longitude_origin}."
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
        kind, north_first = recognise_rows(latitude, tolerance)
        n_longitude, origin = recognise_columns(longitude, tolerance)
        return cls(kind, len(latitude), n_longitude, north_first, origin)

    @property
    def shape(self) -> tuple[int, int]:
        """`(n_latitude, n_longitude)`."""
        return self.n_latitude, self.n_longitude

    @property
    def latitude(self) -> np.ndarray:
        """Latitudes in degrees, `(n_latitude,)`, float64."""
        return self._ordered(rows(self.kind, self.n_latitude).latitude)

    @property
    def longitude(self) -> np.ndarray:
        """Longitudes in degrees east, `(n_longitude,)`, float64."""
        return (
            self.longitude_origin + np.arange(self.n_longitude) * 360 / self.n_longitude
        )

    @property
    def latitude_edges(self) -> np.ndarray:
        """Edges of the cells in degrees, `(n_latitude + 1,)`, in the rows' order.

        Midway between rows; the outermost cells end at the poles.
        """
        latitude = rows(self.kind, self.n_latitude).latitude
        middle = (latitude[:-1] + latitude[1:]) / 2
        return self._ordered(np.concatenate([[90.0], middle, [-90.0]]))

    @property
    def longitude_edges(self) -> np.ndarray:
        """Edges of the cells in degrees east, `(n_longitude + 1,)`, midway."""
        halves = 2 * np.arange(self.n_longitude + 1) - 1
        return self.longitude_origin + halves * 180 / self.n_longitude

    @property
    def colatitude(self) -> np.ndarray:
        """Angle from the north pole in radians, `(n_latitude,)`, float64."""
        return self._ordered(rows(self.kind, self.n_latitude).colatitude)

    @property
    def weights(self) -> np.ndarray:
        """Quadrature weights by row, in steradian: `sum(weights) * n_longitude = 4 pi`.

        Exact for band-limited fields: to degree `2 n_latitude - 1` on Gauss-Legendre
        rows, `n_latitude - 1` on the others (Clenshaw-Curtis with poles, Fejer's first
        rule cell-centred).
        """
        weight = self._ordered(rows(self.kind, self.n_latitude).weight)
        return weight * (2 * np.pi / self.n_longitude)

    @property
    def cell_areas(self) -> np.ndarray:
        """Area of one cell of each row, in steradian: `sum * n_longitude = 4 pi`.

        Between `latitude_edges` and `longitude_edges`: what a cell mean stands for.
        For integrals of smooth fields `weights` are the better choice, by far.
        """
        edges = self.latitude_edges
        areas = band_heights(np.minimum(edges[:-1], edges[1:]), np.abs(np.diff(edges)))
        return areas * (2 * np.pi / self.n_longitude)

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

    def check_finite(self, field, name: str = "field"):
        """Return `field`, once its known values are found finite; a check to call once.

        Under tracing nothing is checked, and NaN propagates.

        Raises:
            ValueError: `field` does not lie on this grid.
            EquinoxRuntimeError: values are not finite; it says how many, and where the
                first stands.
        """
        self.check(field, name)
        if isinstance(field, Tracer) or bool(np.all(finite := np.isfinite(field))):
            return field
        first = tuple(np.argwhere(~np.asarray(finite))[0].tolist())
        message = (
            f"`{name}` must be finite: {int(np.sum(~finite))} of {field.size} values "
            f"are not, the first, at {first} (latitude "
            f"{self.latitude[first[-2]]:g}, longitude {self.longitude[first[-1]]:g}), "
            f"is {field[first]}."
        )
        return eqx.error_if(jnp.asarray(field), np.asarray(True), message)

    def _ordered(self, from_north: np.ndarray) -> np.ndarray:
        return from_north if self.north_first else from_north[::-1]


def band_heights(south: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Return `sin(south + width) - sin(south)`, degrees in, exact for small bands.

    Times `2 pi` the area of the band; near a pole the difference itself would lose
    the digits that it is made of.
    """
    middle = np.deg2rad(90 - np.abs(south + width / 2))
    return 2 * np.sin(middle) * np.sin(np.deg2rad(width) / 2)


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
