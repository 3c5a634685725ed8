import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.observations._covariance import (
    check_covariance,
    log_determinant,
    masked_factor,
    whiten_by,
)


def matrices(blocks=3, size=4):
    factor = np.random.default_rng(0).normal(size=(blocks, size, size))
    return factor @ factor.swapaxes(1, 2) + 0.1 * np.eye(size)


def test_the_factor_is_that_of_what_is_kept_and_of_the_identity():
    covariance = matrices()
    keep = np.asarray([[1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
    factor = jax.jit(masked_factor, static_argnums=2)(
        jnp.asarray(covariance), jnp.asarray(keep), np.dtype(np.float64)
    )
    for one, matrix, kept in zip(factor, covariance, keep, strict=True):
        expected = np.eye(4)
        expected[np.ix_(kept, kept)] = matrix[np.ix_(kept, kept)]
        np.testing.assert_allclose(one, np.linalg.cholesky(expected), atol=1e-12)
    residual = jr.normal(jr.key(0), (3, 4))
    white = whiten_by(factor, residual)
    back = np.einsum("bij,bj->bi", factor, white)
    np.testing.assert_allclose(back, residual, rtol=1e-10)
    logarithms = [
        np.linalg.slogdet(m[np.ix_(k, k)])[1]
        for m, k in zip(covariance, keep, strict=True)
    ]
    np.testing.assert_allclose(log_determinant(factor), sum(logarithms), rtol=1e-10)


def test_units_do_not_make_a_matrix_singular():
    scale = np.asarray([1e-9, 1.0, 1e9, 1e3])
    covariance = matrices(1)[0] * np.outer(scale, scale)
    np.testing.assert_array_equal(check_covariance("c", covariance), covariance)
    traced = eqx.filter_jit(check_covariance)("c", jnp.asarray(covariance))
    np.testing.assert_array_equal(traced, covariance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_matrix_that_rounding_would_factorise_is_refused(dtype):
    point = np.arange(12)
    smooth = np.exp(-(((point[:, None] - point[None, :]) / 8) ** 2)).astype(dtype)
    with pytest.raises(eqx.EquinoxRuntimeError, match="smallest eigenvalue"):
        check_covariance("c", smooth)
    better = smooth + dtype(0.01) * np.eye(12, dtype=dtype)
    assert check_covariance("c", better).dtype == dtype


def test_wrong_use_is_reported():
    wrong = matrices()
    wrong[1] = np.diag([1.0, -2.0, 3.0, 1.0])
    with pytest.raises(
        eqx.EquinoxRuntimeError, match=r"block 1, the first of 1.*is -2"
    ):
        check_covariance("blocks", wrong)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`blocks` must be positive def"):
        eqx.filter_jit(check_covariance)("blocks", jnp.asarray(wrong))
    twins = np.asarray([[4.0, -2.0], [-2.0, 1.0]])
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"0 and 1 are duplicates.* -1"):
        check_covariance("c", twins)
    with pytest.raises(eqx.EquinoxRuntimeError, match="finite and symmetric"):
        check_covariance("c", np.full((2, 2), np.nan))
