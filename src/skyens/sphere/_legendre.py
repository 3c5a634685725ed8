"""Associated Legendre functions and their derivatives, in float64 NumPy."""

import numpy as np


def legendre(lmax: int, colatitude: np.ndarray) -> np.ndarray:
    """Return `P[m, l, j]`, orthonormal on the unit sphere with Condon-Shortley phase.

    `Y_lm = P_lm(theta) exp(i m lambda)`; zero where `l < m`. Recurrence upwards in
    degree, vectorised over order and colatitude; good to about 1e-11 at
    lmax 1,000; far beyond, the sectoral seeds underflow near the poles.

    Source: Holmes & Featherstone (2002), J. Geodesy 76, 279-299.
    """
    size = lmax + 1
    x, y = np.cos(colatitude), np.sin(colatitude)
    table = np.zeros((size, size, x.size))
    table[0, 0] = np.sqrt(1 / (4 * np.pi))
    for m in range(1, size):
        table[m, m] = -np.sqrt((2 * m + 1) / (2 * m)) * y * table[m - 1, m - 1]
    for m in range(lmax):
        table[m, m + 1] = np.sqrt(2 * m + 3) * x * table[m, m]
    for l in range(2, size):
        m = np.arange(l - 1)[:, None]
        a = np.sqrt((4 * l**2 - 1) / (l**2 - m**2))
        b = np.sqrt(((l - 1) ** 2 - m**2) / (4 * (l - 1) ** 2 - 1))
        previous, before = table[: l - 1, l - 1], table[: l - 1, l - 2]
        table[: l - 1, l] = a * (x * previous - b * before)
    return table


def legendre_gradients(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `m P_lm / sin(theta)` and `d P_lm / d theta`, each `[m, l, j]`.

    From neighbouring orders, never dividing by `sin(theta)`, so the poles are right.

    Source: DLMF 14.10.1-5 with the normalisation of `legendre`.
    """
    size = table.shape[0]
    m, l = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    # Orders m - 1 and m + 1 of the same degree; P_{l,-1} = -P_{l,1}.
    below = np.concatenate([-table[1:2] if size > 1 else table[:1] * 0, table[:-1]])
    above = np.concatenate([table[1:], np.zeros_like(table[:1])])
    down = np.sqrt(np.maximum((l + m) * (l - m + 1), 0))[..., None]
    up = np.sqrt(np.maximum((l - m) * (l + m + 1), 0))[..., None]
    inside = (l >= m)[..., None]
    derivative = np.where(inside, 0.5 * (up * above - down * below), 0)
    # Orders m - 1 and m + 1 of the degree below.
    lower = lambda t: np.concatenate([np.zeros_like(t[:, :1]), t[:, :-1]], axis=1)
    norm = 0.5 * np.sqrt((2 * l + 1) / np.maximum(2 * l - 1, 1))
    down = np.sqrt(np.maximum((l + m) * (l + m - 1), 0))
    up = np.sqrt(np.maximum((l - m) * (l - m - 1), 0))
    quotient = -norm[..., None] * (
        down[..., None] * lower(below) + up[..., None] * lower(above)
    )
    return np.where(inside & (m > 0)[..., None], quotient, 0), derivative


def resampling(kind_points: np.ndarray, target: np.ndarray, odd: bool, poles: bool):
    """Return the matrix that carries a row function from equal steps to `target`.

    The function of colatitude is the even (cosine) or `odd` (sine) trigonometric
    interpolant of its values at `kind_points`: the parity that a smooth field's
    zonal wavenumber gives it across the pole.
    """
    n = kind_points.size
    if poles:
        k = np.arange(1, n - 1) if odd else np.arange(n)
        basis = (np.sin if odd else np.cos)(np.outer(kind_points, k))
        # The discrete sine and cosine transforms are their own inverses up to scale.
        end = np.where((np.arange(n) == 0) | (np.arange(n) == n - 1), 0.5, 1.0)
        scale = np.ones(k.size) if odd else end
        inverse = 2 / (n - 1) * scale[:, None] * basis.T * end
    else:
        k = np.arange(1, n + 1) if odd else np.arange(n)
        basis = (np.sin if odd else np.cos)(np.outer(kind_points, k))
        half = (k == n) if odd else (k == 0)
        inverse = 2 / n * np.where(half, 0.5, 1.0)[:, None] * basis.T
    return (np.sin if odd else np.cos)(np.outer(target, k)) @ inverse
