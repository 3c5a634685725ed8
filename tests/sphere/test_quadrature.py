from decimal import Decimal, getcontext

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings, strategies as st

from skyens.sphere._quadrature import KINDS, rows


def cosine(angle: Decimal) -> Decimal:
    term = total = Decimal(1)
    for k in range(2, 200, 2):
        term *= -angle * angle / (k * (k - 1))
        total += term
    return total


def legendre_and_slope(n: int, theta: Decimal) -> tuple[Decimal, Decimal]:
    """`P_n(cos theta)` and its derivative in theta, to 40 digits."""
    x = cosine(theta)
    before, value = Decimal(1), x
    for l in range(1, n):
        before, value = value, ((2 * l + 1) * x * value - l * before) / (l + 1)
    return value, n * (x * value - before) / (1 - x * x).sqrt()


@pytest.mark.parametrize("n", [2, 7, 64, 721])
def test_gauss_legendre_rows_and_weights_are_exact_beside_forty_digits(n):
    getcontext().prec = 45
    found = rows("gauss-legendre", n)
    for i in {0, n // 8, n // 2 - 1}:
        start = Decimal(float(found.colatitude[i]))
        value, slope = legendre_and_slope(n, start)
        error = value / slope  # Newton's step: its square is beyond float64
        _, slope = legendre_and_slope(n, start - error)
        # Relative to the distance from the pole, not to that from the equator.
        assert abs(error / start) < 1e-15
        assert abs(Decimal(float(found.weight[i])) * slope**2 / 2 - 1) < 5e-14


@pytest.mark.parametrize("n", [2, 3, 10, 33, 64, 200])
def test_gauss_legendre_rows_are_scipys(n):
    node, weight = scipy.special.roots_legendre(n)
    found = rows("gauss-legendre", n)
    np.testing.assert_allclose(np.cos(found.colatitude), node[::-1], atol=5e-16)
    np.testing.assert_allclose(
        np.sin(np.deg2rad(found.latitude)), node[::-1], atol=5e-16
    )
    np.testing.assert_allclose(found.weight, weight[::-1], atol=5e-16)


@pytest.mark.parametrize("n", [5, 64, 721, 2000])
def test_gauss_legendre_integrates_the_square_of_the_highest_degree(n):
    found = rows("gauss-legendre", n)
    square = scipy.special.eval_legendre(n - 1, np.cos(found.colatitude)) ** 2
    # SciPy's polynomial is good to n roundings.
    np.testing.assert_allclose(found.weight @ square, 2 / (2 * n - 1), rtol=4e-16 * n)


@pytest.mark.parametrize("n", [2, 3, 4, 61, 64])
def test_equal_steps_integrate_every_cosine_that_they_carry(n):
    for kind in ("equiangular", "cell-centred"):
        found = rows(kind, n)
        for k in range(n):
            exact = 2 / (1 - k**2) if k % 2 == 0 else 0
            sum_ = found.weight @ np.cos(k * found.colatitude)
            np.testing.assert_allclose(sum_, exact, atol=1e-14)


@pytest.mark.parametrize("n", [2, 3, 720, 721])
def test_the_pole_weighs_what_closed_form_says(n):
    # Clenshaw-Curtis: 1 / (N^2 - 1) for an even number N of steps, 1 / N^2 else.
    steps = n - 1
    exact = 1 / (steps**2 - 1 if steps % 2 == 0 else steps**2)
    np.testing.assert_allclose(rows("equiangular", n).weight[0], exact, rtol=4e-16)


@settings(deadline=None, max_examples=60)
@given(kind=st.sampled_from(list(KINDS)), n=st.integers(2, 400))
def test_rows_fall_strictly_mirror_each_other_and_weigh_two(kind, n):
    found = rows(kind, n)
    assert found.latitude.size == found.colatitude.size == found.weight.size == n
    assert (np.diff(found.latitude) < 0).all()
    assert (found.weight > 0).all()
    np.testing.assert_array_equal(found.latitude, -found.latitude[::-1])
    np.testing.assert_array_equal(found.weight, found.weight[::-1])
    np.testing.assert_allclose(
        np.deg2rad(90 - found.latitude), found.colatitude, atol=1e-15
    )
    np.testing.assert_allclose(found.weight.sum(), 2, rtol=3e-15)


def test_rows_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        rows("equiangular", 5).latitude[0] = 0
