"""Filters on a disc: the bases of learnable convolutions on the sphere."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class HarmonicFilters:
    """Waves along the two axes of a disc under a window: smooth and orientable.

    `cos^2(pi r / 2) * a_i(x) * a_j(y)` on the unit disc, `x` to the east and `y` to the
    north, where `a_0 = 1`, `a_1(x) = sin(pi x)`, `a_2(x) = cos(pi x)`, `a_3(x) =
    sin(2 pi x)`, and so on. Filter `i * n_north + j`; the first is the window alone.

    Source: the Morlet-like basis of Bonev et al. (2025), arXiv:2507.12144.
    """

    n_east: int = 3
    n_north: int = 3

    def __post_init__(self):
        """Check the sizes.

        Raises:
            ValueError: fewer than one wave along an axis.
        """
        if self.n_east < 1 or self.n_north < 1:
            raise ValueError(
                "`n_east` and `n_north` must be at least 1, got "
                f"{self.n_east} and {self.n_north}."
            )

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the values at points of the disc, `(filter, *points)`, 0 outside."""
        r = np.minimum(np.hypot(x, y), 1)
        east, north = _waves(self.n_east, x), _waves(self.n_north, y)
        values = np.cos(np.pi / 2 * r) ** 2 * east[:, None] * north[None]
        return values.reshape(-1, *np.shape(x))


@dataclass(frozen=True)
class HatFilters:
    """Piecewise linear hats in radius and azimuth: local and never negative.

    A cone at the centre, then `rings - 1` rings at radii `1 / rings`, `2 / rings`, ...,
    each of `sectors` hats around, the first one to the east, then counter-clockwise.
    Up to the last ring they sum to 1. One sector makes all filters isotropic.

    Source: Ocampo, Price & McEwen (2022), arXiv:2209.13603, with the hats of
    torch-harmonics.
    """

    rings: int = 2
    sectors: int = 4

    def __post_init__(self):
        """Check the sizes.

        Raises:
            ValueError: fewer than one ring or sector.
        """
        if self.rings < 1 or self.sectors < 1:
            raise ValueError(
                "`rings` and `sectors` must be at least 1, got "
                f"{self.rings} and {self.sectors}."
            )

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the values at points of the disc, `(filter, *points)`, 0 outside."""
        shape = (-1,) + (1,) * np.ndim(x)
        ring, sector = np.arange(self.rings), np.arange(self.sectors)
        radial = _hat(np.hypot(x, y) * self.rings - ring.reshape(shape))
        if self.sectors == 1:
            return radial
        turn = np.arctan2(y, x) * self.sectors / (2 * np.pi) - sector.reshape(shape)
        # The nearest way around the circle.
        around = _hat((turn + self.sectors / 2) % self.sectors - self.sectors / 2)
        rings = radial[1:, None] * around[None]
        return np.concatenate([radial[:1], rings.reshape(-1, *np.shape(x))])


def _waves(count: int, x: np.ndarray) -> np.ndarray:
    order = np.arange(count).reshape((-1,) + (1,) * np.ndim(x))
    phase = np.pi * ((order + 1) // 2) * x
    return np.where(order % 2 == 1, np.sin(phase), np.cos(phase))


def _hat(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)
