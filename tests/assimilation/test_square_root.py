import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens.assimilation._square_root import inverse_root

root = jax.jit(inverse_root)


def matrices(condition, size=6, batch=3, rank=None, seed=0):
    generator = np.random.default_rng(seed)
    basis = np.linalg.qr(generator.normal(size=(batch, size, size)))[0]
    eigenvalue = np.geomspace(1, condition, size)
    if rank is not None:
        eigenvalue[: size - rank] = 1.0
    return np.einsum("bij,j,bkj->bik", basis, eigenvalue, basis)


def exact(matrix):
    eigenvalue, vectors = np.linalg.eigh(matrix)
    return np.einsum("bij,bj,bkj->bik", vectors, eigenvalue**-0.5, vectors)


@pytest.mark.parametrize("condition", [1.0, 3.0, 1e3, 1e6])
def test_it_is_the_inverse_root_to_rounding(condition):
    matrix = matrices(condition)
    np.testing.assert_allclose(
        root(matrix), exact(matrix), atol=1e-15 * condition + 2e-14
    )
    single = root(matrix.astype(np.float32))
    assert single.dtype == jnp.float32
    if condition < 1e4:
        np.testing.assert_allclose(single, exact(matrix), atol=1e-4)


def test_the_identity_stays_and_the_hopeless_is_finite():
    identity = jnp.broadcast_to(jnp.eye(4), (2, 4, 4))
    np.testing.assert_array_equal(root(identity), identity)
    worst = matrices(1e12).astype(np.float32)
    assert np.all(np.isfinite(root(worst)))


def test_a_nan_stays_in_its_own_matrix():
    matrix = matrices(50.0)
    matrix[1] = np.nan
    result = np.asarray(root(matrix))
    assert np.isnan(result[1]).any()
    np.testing.assert_allclose(result[::2], exact(matrix[::2]), atol=1e-13)


@pytest.mark.parametrize("rank", [None, 2, 0])
def test_derivatives_are_right_where_eigenvalues_repeat(rank):
    matrix = jnp.asarray(matrices(20.0, rank=rank))
    way = np.random.default_rng(1).normal(size=matrix.shape)
    way = jnp.asarray(way + way.swapaxes(-1, -2))
    _, slope = jax.jvp(inverse_root, (matrix,), (way,))
    h = 1e-3
    at = lambda t: np.asarray(root(matrix + t * way))
    expected = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    np.testing.assert_allclose(slope, expected, atol=1e-8)
