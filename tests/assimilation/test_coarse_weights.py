import jax.numpy as jnp
import numpy as np
import pytest

from skyens import sphere
from skyens.assimilation import CoarseWeights, Plane, Sphere


def apply(between, field):
    corners = jnp.asarray(field).reshape(-1)[between.index]
    return np.sum(np.asarray(corners * between.weight), -1).reshape(between.shape)


@pytest.mark.parametrize("north_first", [False, True])
@pytest.mark.parametrize("make", [sphere.equiangular, sphere.cell_centred])
def test_on_the_sphere_it_is_bilinear_interpolation(make, north_first):
    coarse, fine = make(7, 12, north_first=north_first), sphere.gauss_legendre(20, 40)
    field = np.random.default_rng(0).normal(size=coarse.shape)
    actual = apply(CoarseWeights(coarse, fine), field)
    rows, columns = np.meshgrid(fine.latitude, fine.longitude, indexing="ij")
    expected = sphere.interpolate(
        coarse,
        jnp.asarray(field),
        jnp.asarray(rows.ravel()),
        jnp.asarray(columns.ravel()),
    ).reshape(fine.shape)
    # Beyond the last row, the pole is reached in another way.
    inner = np.abs(fine.latitude) <= np.abs(coarse.latitude).max()
    np.testing.assert_allclose(actual[inner], expected[inner], atol=1e-12)


def test_over_the_pole_it_is_exact_for_a_wave_through_it():
    # cos(latitude) cos(longitude) is a straight line's cosine over the pole.
    coarse = sphere.cell_centred(36, 72)
    wave = lambda grid: (
        np.cos(np.deg2rad(grid.latitude))[:, None]
        * np.cos(np.deg2rad(grid.longitude))[None, :]
    )
    fine = sphere.equiangular(181, 90)
    error = apply(CoarseWeights(coarse, fine), wave(coarse)) - wave(fine)
    assert np.abs(error).max() < np.deg2rad(5.0) ** 2 / 4


def test_on_a_plane_it_is_bilinear_periodic_or_constant_beyond():
    coarse = Plane(np.arange(0.0, 8.0, 2.0), np.arange(0.0, 9.0, 3.0), period=8.0)
    fine = Plane(np.asarray([0.0, 1.0, 7.0]), np.asarray([-1.0, 1.5, 8.0]), period=8.0)
    field = np.arange(12.0).reshape(3, 4)
    expected = [[0, 0.5, 1.5], [2, 2.5, 3.5], [8, 8.5, 9.5]]
    np.testing.assert_allclose(apply(CoarseWeights(coarse, fine), field), expected)
    point = Plane(np.asarray([7.0]), np.asarray([1.5]), period=8.0, scattered=True)
    np.testing.assert_allclose(apply(CoarseWeights(coarse, point), field), [3.5])


def test_wrong_use_is_reported():
    line = Plane(np.arange(4.0))
    with pytest.raises(ValueError, match="its points have no cells"):
        CoarseWeights(Sphere((np.zeros(2), np.zeros(2))), sphere.equiangular(5, 8))
    with pytest.raises(ValueError, match="the same geometry"):
        CoarseWeights(line, sphere.equiangular(5, 8))
