"""Rows of latitude and their quadrature weights, to rounding at any size."""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

Kind = Literal["gauss-legendre", "equiangular", "cell-centred"]


class Rows(NamedTuple):
    """Rows from north to south, float64, read-only; mirror images to the last bit."""

    latitude: np.ndarray  # degrees
    colatitude: np.ndarray  # radians
    weight: np.ndarray  # of the integral over sin(latitude); they sum to 2


@lru_cache(maxsize=64)
def rows(kind: Kind, n: int) -> Rows:
    """Return the `n` rows of a kind of grid."""
    latitude, colatitude, weight = KINDS[kind](n)
    mirrored = Rows(
        np.concatenate([latitude, -latitude[: n // 2][::-1]]),
        np.concatenate([colatitude, np.pi - colatitude[: n // 2][::-1]]),
        np.concatenate([weight, weight[: n // 2][::-1]]),
    )
    for array in mirrored:
        array.setflags(write=False)
    return mirrored


def gauss_legendre(n: int) -> Rows:
    """Return the northern half of the Gauss-Legendre rows, the equator included.

    Newton's method in the colatitude. The recurrence runs over differences of
    successive degrees and in `1 - x = 2 sin(theta / 2)^2`: that keeps rows near the
    pole, where `x` itself cannot tell them apart, exact relative to their distance
    from it.

    Source: Gatteschi's start, as in Hale & Townsend (2013), SIAM J. Sci. Comput. 35,
    A652-A674; the recurrence is Reinsch's modification.
    """
    half = (n + 1) // 2
    theta = (4 * np.arange(1, half + 1) - 1) * np.pi / (4 * n + 2)
    theta += 1 / (8 * (n + 0.5) ** 2 * np.tan(theta))
    for _ in range(3):  # the start's error, below 2e-3 of theta, squares each time
        value, slope = _legendre_and_slope(n, theta)
        theta -= value / slope
    if n % 2:
        theta[-1] = np.pi / 2
    latitude = 90 - np.rad2deg(theta)
    return Rows(latitude, theta, 2 / _legendre_and_slope(n, theta)[1] ** 2)


def _legendre_and_slope(n: int, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `P_n(cos theta)` and its derivative in theta, `theta` not a pole."""
    gap = 2 * np.sin(theta / 2) ** 2
    value, change = np.ones_like(theta), np.zeros_like(theta)
    for l in range(n):
        change = (l * change - (2 * l + 1) * gap * value) / (l + 1)
        value = value + change
    return value, n * (change - gap * value) / np.sin(theta)


def equiangular(n: int) -> Rows:
    """Return the northern half of equal steps from pole to pole (Clenshaw-Curtis).

    The weights integrate the cosine interpolant. Its terms are written as `1 - cos =
    2 sin^2`, whose constant part sums in closed form: then all are positive, and no
    digit cancels in the small weights at the poles.
    """
    steps = n - 1
    k = np.arange(1, steps // 2 + 1)
    term = 4 / (4 * k**2 - 1)
    if even := steps % 2 == 0:
        term[-1] /= 2
    start = steps / (steps**2 - 1) if even else 1 / steps
    square = np.sin(np.pi * np.arange(steps) / steps) ** 2
    half = np.arange((n + 1) // 2)
    # Products of integers, reduced by the period, keep the angles exact.
    weight = start + np.array([square[j * k % steps] @ term for j in half])
    weight *= np.where(half == 0, 1, 2) / steps
    return Rows(90 * (steps - 2 * half) / steps, np.pi * half / steps, weight)


def cell_centred(n: int) -> Rows:
    """Return the northern half of the centres of equal cells (Fejer's first rule).

    Written in positive terms, as in `equiangular`.
    """
    k = np.arange(1, (n - 1) // 2 + 1)
    term = 4 / (4 * k**2 - 1)
    square = np.sin(np.pi * np.arange(2 * n) / (2 * n)) ** 2
    odd = 2 * np.arange((n + 1) // 2) + 1
    weight = 1 / (2 * k.size + 1) + np.array(
        [square[j * k % (2 * n)] @ term for j in odd]
    )
    return Rows(90 * (n - odd) / n, np.pi * odd / (2 * n), 2 / n * weight)


KINDS: dict[Kind, Callable[[int], Rows]] = {
    "gauss-legendre": gauss_legendre,
    "equiangular": equiangular,
    "cell-centred": cell_centred,
}
