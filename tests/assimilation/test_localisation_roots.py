import jax.numpy as jnp
import numpy as np
import pytest

from skyens import sphere
from skyens.assimilation import gaspari_cohn, localisation_roots, sphere_roots


def line(size, length):
    gap = np.abs(np.arange(size)[:, None] - np.arange(size))
    return np.asarray(gaspari_cohn(jnp.asarray(np.minimum(gap, size - gap) / length)))


def test_all_modes_give_the_correlation_back_and_fewer_explain_their_share():
    matrix = line(30, 4.0)
    roots, explained = localisation_roots(matrix, 1.0)
    assert explained == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(roots.T @ roots, matrix, atol=1e-12)
    roots, explained = localisation_roots(matrix, 0.9)
    # The eigenvalues of a circulant matrix are the Fourier transform of its row.
    power = np.sort(np.fft.fft(matrix[0]).real)[::-1]
    shares = np.cumsum(power) / power.sum()
    assert explained == pytest.approx(shares[len(roots) - 1], abs=1e-12)
    assert explained >= 0.9 > shares[len(roots) - 2]
    np.testing.assert_allclose(np.sum(roots**2, axis=0), 1, rtol=1e-12)
    single, _ = localisation_roots(matrix.astype(np.float32), 0.9)
    assert single.dtype == jnp.float32


def test_roots_on_the_sphere_are_gaspari_cohn_in_great_circle_distance():
    sht = sphere.SphericalHarmonics(sphere.gauss_legendre(12, 24), lmax=11)
    length, radius = 4e6, 6.371e6
    roots, explained = sphere_roots(sht, length, 0.98, radius=radius)
    assert 0.98 <= explained <= 1
    assert roots.shape[1:] == (12, 24)
    assert round(len(roots) ** 0.5) ** 2 == len(roots)
    np.testing.assert_allclose(np.sum(roots**2, axis=0), 1, rtol=1e-12)
    latitude, longitude = (
        jnp.asarray(x)
        for x in np.meshgrid(sht.grid.latitude, sht.grid.longitude, indexing="ij")
    )
    everywhere = jnp.full_like(latitude, latitude[4, 3])
    there = jnp.full_like(longitude, longitude[4, 3])
    angle = sphere.great_circle_distance(latitude, longitude, everywhere, there)
    expected = gaspari_cohn(angle * radius / length)
    actual = np.tensordot(roots[:, 4, 3], roots, 1)
    np.testing.assert_allclose(actual, expected, atol=0.03)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match=r"`share` must lie in \(0, 1\], got 0"):
        localisation_roots(np.eye(3), 0.0)
    with pytest.raises(ValueError, match="ones on its diagonal"):
        localisation_roots(2 * np.eye(3))
    with pytest.raises(ValueError, match="symmetric"):
        localisation_roots(np.triu(np.ones((3, 3))))
    sht = sphere.SphericalHarmonics(sphere.gauss_legendre(6, 12), lmax=5)
    with pytest.raises(ValueError, match="degrees up to 5 explain 0"):
        sphere_roots(sht, 1e6)
    with pytest.raises(ValueError, match="`share` must lie"):
        sphere_roots(sht, 1e6, 2.0)
    with pytest.raises(ValueError, match="`length` must be above 0"):
        sphere_roots(sht, 0.0)
