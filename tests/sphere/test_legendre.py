import numpy as np
import pytest
from scipy.special import sph_harm_y

from skyens import sphere
from skyens.sphere._legendre import (
    LARGEST_LMAX,
    analysis_tables,
    legendre,
    order_blocks,
    pole_slopes,
)


def square(lmax, blocks, tables):
    """Undo the layout: `P[m, l, j]`, to degree lmax + 1."""
    out = None
    for (first, end, start), (table, beyond) in zip(blocks, tables, strict=True):
        if out is None:
            out = np.zeros((lmax + 1, lmax + 2, table.shape[-1]))
        table = table.transpose(0, 2, 1, 3).reshape(end - first, -1, table.shape[-1])
        stop = min(2 * start + table.shape[1], lmax + 1)
        out[first:end, 2 * start : stop] = table[:, : stop - 2 * start]
        out[first:end, lmax + 1] = beyond
    assert out is not None
    return out


@pytest.mark.parametrize("lmax", [0, 1, 2, 7, 96, 180])
def test_values_are_those_of_scipy_in_one_block_and_in_four(lmax):
    theta = np.linspace(0.02, np.pi - 0.02, 17)
    blocks = order_blocks(lmax)
    assert len(blocks) == (4 if lmax >= 96 else 1)
    table = square(lmax, blocks, legendre(lmax, theta, blocks))
    for m in {0, min(1, lmax), lmax // 2, lmax - 1, lmax} - {-1}:
        l = np.arange(lmax + 2)[:, None]
        expected = np.where(l >= m, sph_harm_y(np.maximum(l, m), m, theta, 0.0).real, 0)
        np.testing.assert_allclose(table[m], expected, atol=2e-12)


def test_the_addition_theorem_holds_at_degree_1000_near_a_pole():
    theta = np.array([0.003, 0.1, 1.5])
    blocks = order_blocks(1000)
    table = square(1000, blocks, legendre(1000, theta, blocks))[:, 1000]
    total = table[0] ** 2 + 2 * np.sum(table[1:] ** 2, axis=0)
    np.testing.assert_allclose(total, 2001 / (4 * np.pi), rtol=1e-10)


@pytest.mark.slow
def test_the_addition_theorem_holds_at_the_largest_degree_we_allow():
    theta = np.array([0.0013, 0.05, 0.37, 1.5])  # near the seeds' smallest values too
    blocks = order_blocks(LARGEST_LMAX)
    orders = [t[:, 0, -1] for t, _ in legendre(LARGEST_LMAX, theta, blocks)]
    square = np.concatenate(orders) ** 2
    total = 2 * square.sum(0) - square[0]
    np.testing.assert_allclose(total, (2 * LARGEST_LMAX + 1) / (4 * np.pi), rtol=1e-9)


def test_slopes_at_the_poles_are_the_limits():
    theta = np.array([1e-6, np.pi - 1e-6])
    l = np.arange(1, 9)[:, None]
    values = sph_harm_y(l, 1, theta, 0.0).real / np.sin(theta)
    sign = (-1.0) ** (np.arange(1, 9) + 1)
    np.testing.assert_allclose(values[:, 0], pole_slopes(8)[1:], rtol=1e-9)
    np.testing.assert_allclose(values[:, 1], sign * pole_slopes(8)[1:], rtol=1e-9)


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("make", [sphere.equiangular, sphere.cell_centred])
@pytest.mark.parametrize("n", [8, 9])
def test_analysis_tables_invert_the_harmonics_at_the_largest_degree(make, n, vector):
    grid = make(n, 2 * n)
    lmax, half = grid.largest_lmax, (n + 1) // 2
    blocks = order_blocks(lmax)
    matrix = square(lmax, blocks, analysis_tables(grid, lmax, blocks, vector=vector))
    full = square(lmax, blocks, legendre(lmax, grid.colatitude, blocks))
    for m in range(lmax + 1):
        rows = full[m, : lmax + 1]
        if vector:  # what it integrates is the row over sin(theta), of the other parity
            rows = rows * np.sin(grid.colatitude)
        for l in range(m, lmax + 1 - vector):  # the sine adds a degree
            sign = (-1) ** (l + m)
            folded = rows[l, :half] + sign * rows[l, ::-1][:half]
            if n % 2:
                folded[-1] *= 0.5
            found = 2 * n * (matrix[m, :, :] * folded).sum(-1)
            expected = np.arange(lmax + 2) == l
            same = (
                np.arange(lmax + 2) - l
            ) % 2 == 0  # other degrees see the other fold
            np.testing.assert_allclose(
                found[same & (np.arange(lmax + 2) <= lmax)],
                expected[same & (np.arange(lmax + 2) <= lmax)],
                atol=1e-12,
            )
