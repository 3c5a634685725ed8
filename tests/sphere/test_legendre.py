import numpy as np
from scipy.special import sph_harm_y

from skyens.sphere._legendre import legendre, legendre_gradients


def test_values_and_derivatives_match_scipy_to_high_degree():
    theta = np.linspace(0.02, np.pi - 0.02, 17)
    table = legendre(180, theta)
    quotient, derivative = legendre_gradients(table)
    for l, m in [(0, 0), (1, 1), (2, 0), (60, 59), (180, 3), (180, 90), (180, 180)]:
        value, jacobian = sph_harm_y(l, m, theta, 0.0, diff_n=1)
        scale = max(l, 1)
        np.testing.assert_allclose(table[m, l], value.real, atol=1e-12)
        np.testing.assert_allclose(
            derivative[m, l], jacobian[..., 0].real, atol=1e-11 * scale
        )
        np.testing.assert_allclose(
            quotient[m, l] * np.sin(theta), m * value.real, atol=1e-11 * scale
        )


def test_the_addition_theorem_holds_at_degree_1000_near_a_pole():
    theta = np.array([0.003, 0.1, 1.5])
    table = legendre(1000, theta)[:, 1000]
    total = table[0] ** 2 + 2 * np.sum(table[1:] ** 2, axis=0)
    np.testing.assert_allclose(total, 2001 / (4 * np.pi), rtol=1e-10)
