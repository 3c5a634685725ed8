"""Associated Legendre functions on half a sphere, in float64 NumPy.

Everything here is `P[m, s, r, j]`: order `m` within a block, degree `l = 2 r + s`, and
row `j` of the half of the latitudes that comes first. The other half follows from
`P_lm(pi - theta) = (-1)^(l + m) P_lm(theta)`.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from skyens.sphere._grid import Grid, gauss_legendre

# Where the sectoral seeds sin(theta)^m underflow while higher degrees still matter.
LARGEST_LMAX = 1900


def order_blocks(lmax: int) -> tuple[tuple[int, int, int], ...]:
    """Split the orders into `(first, last + 1, first r)`, to skip degrees below them.

    Four blocks hold 5/8 of a square table, more of them save little; small tables
    are faster in one piece.
    """
    size = lmax + 1
    blocks = 1 if size <= 96 else 4
    edges = [size * b // blocks for b in range(blocks + 1)]
    return tuple((a, b, a // 2) for a, b in itertools.pairwise(edges))


def legendre(
    lmax: int, colatitude: np.ndarray, blocks: tuple[tuple[int, int, int], ...]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield each block's `P[m, s, r, j]` and, beside it, degree `lmax + 1`: `[m, j]`.

    `Y_lm = P_lm(theta) exp(i m lambda)`, orthonormal on the unit sphere with the
    Condon-Shortley phase; zero where `l < m`, and where the padding of `r` goes beyond
    `lmax`. A block's `r` starts at its own first. Recurrence upwards in degree,
    vectorised over orders and rows; good to about 1e-11 at lmax 1,000.

    Source: Holmes & Featherstone (2002), J. Geodesy 76, 279-299, eq. 11-13.
    """
    x, y = np.cos(colatitude), np.sin(colatitude)
    rows, half = colatitude.size, (lmax + 2) // 2
    sectoral = np.full(rows, np.sqrt(1 / (4 * np.pi)))
    for first, end, start in blocks:
        table = np.zeros((end - first, 2, half - start, rows))
        previous, before = np.zeros((2, end - first, rows))
        m = np.arange(first, end)[:, None]
        for l in range(first, lmax + 2):
            active = min(l, end) - first  # orders below l
            o = m[:active]
            a = np.sqrt((4 * l**2 - 1) / (l**2 - o**2))
            b = np.sqrt(((l - 1) ** 2 - o**2) / (4 * (l - 1) ** 2 - 1))
            degree = np.zeros((end - first, rows))
            degree[:active] = a * (x * previous[:active] - b * before[:active])
            if l < end:
                if l > 0:
                    sectoral = -np.sqrt((2 * l + 1) / (2 * l)) * y * sectoral
                degree[l - first] = sectoral
            if l <= lmax:
                table[:, l % 2, l // 2 - start] = degree
            previous, before = degree, previous
        yield table, previous


def analysis_tables(
    grid: Grid, lmax: int, blocks: tuple[tuple[int, int, int], ...], *, vector: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the blocks of the matrix that takes folded rows to degrees.

    For grids whose own quadrature is not exact to `2 lmax`: each order's row function
    is interpolated trigonometrically to Gaussian latitudes, with the parity that a
    smooth field gives it across the poles, and integrated there. For the components of
    a `vector` that parity is the other one, and what is integrated is the row over
    `sin(theta)`. Shapes are those of `legendre`.
    """
    n, half = grid.n_latitude, (grid.n_latitude + 1) // 2
    # Enough Gaussian rows to integrate interpolant times harmonic exactly.
    fine = gauss_legendre(n + 2 + n % 2, 1, north_first=True)
    fine_half = fine.n_latitude // 2
    theta = fine.colatitude[:fine_half]
    # Both hemispheres; 2 pi from the zonal integral is the sum over longitudes.
    weight = 2 * fine.weights[:fine_half] / grid.n_longitude
    weight = weight / np.sin(theta) if vector else weight
    colatitude = grid.colatitude
    carry = []
    for odd in (False, True):
        full = _resampling(colatitude, theta, odd ^ vector, grid.kind == "equiangular")
        sides = full[:, :half], full[:, ::-1][:, :half]
        # Rows of either parity about the equator come in as sums and differences.
        carry.append([0.5 * (sides[0] + sign * sides[1]) for sign in (1, -1)])
    for (first, end, _), (table, last) in zip(
        blocks, legendre(lmax, theta, blocks), strict=True
    ):
        matrix = np.empty((*table.shape[:3], half))
        beyond = np.empty((end - first, half))
        table *= weight
        for odd in (0, 1):
            orders = slice((first + odd) % 2, None, 2)  # of this parity
            for s in (0, 1):
                matrix[orders, s] = table[orders, s] @ carry[odd][(odd + s) % 2]
            beyond[orders] = (last[orders] * weight) @ carry[odd][(odd + lmax + 1) % 2]
        yield matrix, beyond


def pole_slopes(lmax: int) -> np.ndarray:
    """Return `d P_l1 / d theta` at the north pole by degree, `(lmax + 1,)`.

    It is also the limit of `P_l1 / sin(theta)`; at the south pole that limit is
    `(-1)^(l + 1)` times this, and the derivative `(-1)^l`.
    """
    l = np.arange(lmax + 1)
    return -np.sqrt((2 * l + 1) / (4 * np.pi) * l * (l + 1)) / 2


def _resampling(points: np.ndarray, target: np.ndarray, odd: bool, poles: bool):
    """Return the matrix that carries a row function from equal steps to `target`.

    The function of colatitude is the even (cosine) or `odd` (sine) trigonometric
    interpolant of its values at `points`: the parity that a smooth field's
    zonal wavenumber gives it across the pole.
    """
    n = points.size
    if poles:
        k = np.arange(1, n - 1) if odd else np.arange(n)
        basis = (np.sin if odd else np.cos)(np.outer(points, k))
        # The discrete sine and cosine transforms are their own inverses up to scale.
        end = np.where((np.arange(n) == 0) | (np.arange(n) == n - 1), 0.5, 1.0)
        scale = np.ones(k.size) if odd else end
        inverse = 2 / (n - 1) * scale[:, None] * basis.T * end
    else:
        k = np.arange(1, n + 1) if odd else np.arange(n)
        basis = (np.sin if odd else np.cos)(np.outer(points, k))
        half = (k == n) if odd else (k == 0)
        inverse = 2 / n * np.where(half, 0.5, 1.0)[:, None] * basis.T
    return (np.sin if odd else np.cos)(np.outer(target, k)) @ inverse
