import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens.sparse import compress, stlsq


def reference(phi, y, threshold):
    kept = np.ones(phi.shape[1], bool)
    while True:
        w = np.zeros(phi.shape[1])
        w[kept] = np.linalg.lstsq(phi[:, kept], y, rcond=None)[0]
        new = kept & (np.abs(w) >= threshold)
        if np.array_equal(new, kept):
            return w
        kept = new


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3, 2.5, 100.0])
def test_it_is_least_squares_and_thresholds_again_and_again(threshold):
    random = np.random.default_rng(1)
    phi = random.normal(size=(60, 8)) + random.normal(size=(60, 1))
    y = phi @ np.array([1, -2, 0.5, 3, 0.1, 0, 0, 0]) + random.normal(size=60)
    problem = compress(jnp.asarray(phi), jnp.asarray(y))
    solution = jax.jit(stlsq)(problem, threshold)
    expected = reference(phi, y, threshold)
    np.testing.assert_allclose(solution.mean, expected, atol=1e-10)
    assert np.array_equal(solution.support, expected != 0)


def test_thresholds_are_mapped_over():
    random = np.random.default_rng(1)
    phi = random.normal(size=(60, 8))
    y = phi @ np.array([1, -2, 0.5, 3, 0, 0, 0, 0])
    problem = compress(jnp.asarray(phi), jnp.asarray(y))
    many = jax.vmap(lambda threshold: stlsq(problem, threshold).support.sum())
    counts = many(jnp.array([0.1, 0.7, 1.5, 2.5]))
    assert counts.tolist() == [4, 3, 2, 1]
