import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from skyens.observations import Dense, Diagonal, Error
from skyens.observations._errors import solve, unchecked

SIZE = 5


def covariance(seed=0, size=SIZE):
    factor = np.random.default_rng(seed).normal(size=(size, size))
    return factor @ factor.T + 0.1 * np.eye(size)


def both(seed):
    """The two laws, each with the covariance matrix it stands for."""
    std = np.random.default_rng(seed).uniform(0.1, 2, SIZE)
    full = covariance(seed)
    return [(Diagonal(std), np.diag(std**2)), (Dense(full), full)]


seeds = st.integers(0, 2**31)
masks = st.lists(st.booleans(), min_size=SIZE, max_size=SIZE).map(np.asarray)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, mask=masks)
def test_log_prob_is_the_normal_density_of_what_the_mask_keeps(seed, mask):
    residual = np.random.default_rng(seed + 1).normal(size=SIZE)
    for error, matrix in both(seed):
        kept = matrix[np.ix_(mask, mask)]
        expected = (
            stats.multivariate_normal(np.zeros(mask.sum()), kept).logpdf(residual[mask])
            if mask.any()
            else 0.0
        )
        actual = error.log_prob(jnp.asarray(residual), jnp.asarray(mask))
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, mask=masks)
def test_whitened_squares_are_those_of_the_inverse_covariance(seed, mask):
    residual = np.random.default_rng(seed + 1).normal(size=SIZE)
    for error, matrix in both(seed):
        kept, left = matrix[np.ix_(mask, mask)], residual[mask]
        white = error.whiten(jnp.asarray(residual), jnp.asarray(mask))
        expected = left @ np.linalg.solve(kept, left)
        np.testing.assert_allclose(white @ white, expected, rtol=1e-8, atol=1e-12)
        np.testing.assert_array_equal(np.asarray(white)[~mask], 0)


def test_a_masked_residual_may_be_nan_and_has_no_gradient():
    residual = jnp.asarray([1.0, jnp.nan, -2.0, jnp.inf, 0.5])
    mask = jnp.isfinite(residual)
    for error, _ in both(3):
        gradient = jax.grad(lambda r, error=error: error.log_prob(r, mask))(residual)
        np.testing.assert_array_equal(gradient[~mask], 0)
        assert np.all(gradient[mask] != 0)
        chex.assert_tree_all_finite(error.whiten(residual, mask))


def test_samples_have_the_covariance():
    for error, matrix in both(4):
        zero = jnp.zeros(SIZE)
        keys = jr.split(jr.key(0), 20_000)
        samples = jax.vmap(lambda key, error=error: error.sample(zero, key=key))(keys)
        scale = np.sqrt(np.diag(matrix))
        # A sample covariance of n draws is off by about scale^2 * sqrt(2 / n) = 0.01.
        off = (np.cov(samples.T) - matrix) / np.outer(scale, scale)
        assert np.abs(off).max() < 0.05


def test_values_of_any_shape_and_one_number_for_all():
    residual = jr.normal(jr.key(0), (2, 3))
    mask = jnp.ones((2, 3), bool)
    chex.assert_trees_all_close(
        Diagonal(0.5).whiten(residual, mask), 2 * residual, rtol=1e-15
    )
    chex.assert_trees_all_equal(
        Diagonal(2).whiten(residual, mask), Diagonal(2.0).whiten(residual, mask)
    )
    full = covariance(size=6)
    flat = Dense(full).whiten(residual.reshape(-1), mask.reshape(-1))
    chex.assert_trees_all_equal(Dense(full).whiten(residual, mask).reshape(-1), flat)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_dtype_is_that_of_the_residual(dtype):
    residual = jnp.ones(SIZE, dtype)
    mask = jnp.ones(SIZE, bool)
    for error, _ in both(5):
        sample = error.sample(residual, key=jr.key(0))
        assert sample.dtype == dtype
    assert Diagonal(1.0).whiten(residual, mask).dtype == dtype
    assert Diagonal(1.0).log_prob(residual, mask).dtype == dtype


class ErrorsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_they_meet_the_contract_and_compile(self):
        residual, mask = jr.normal(jr.key(1), (SIZE,)), jnp.arange(SIZE) != 2
        for error, matrix in both(6):
            assert isinstance(error, Error)
            whiten = self.variant(lambda error, r, m: error.whiten(r, m))
            white = whiten(error, residual, mask)
            kept = np.asarray(mask)
            inverse = np.linalg.inv(matrix[np.ix_(kept, kept)])
            left = np.asarray(residual)[kept]
            np.testing.assert_allclose(white @ white, left @ inverse @ left, rtol=1e-8)
        assert [error.independent for error, _ in both(6)] == [True, False]


@settings(deadline=None, max_examples=30)
@given(seed=seeds, mask=masks)
def test_solve_is_the_inverse_of_what_the_mask_keeps(seed, mask):
    residual = np.random.default_rng(seed + 1).normal(size=SIZE)
    for error, matrix in both(seed):
        solution = solve(error, jnp.asarray(residual), jnp.asarray(mask))
        expected = np.zeros(SIZE)
        expected[mask] = np.linalg.solve(matrix[np.ix_(mask, mask)], residual[mask])
        scale = np.abs(expected).max(initial=1)
        np.testing.assert_allclose(solution, expected, rtol=1e-8, atol=1e-9 * scale)


def test_an_unchecked_law_lets_nan_pass_and_the_constructor_does_not():
    law = unchecked(jnp.asarray([2.0, jnp.nan, jnp.inf]))
    mask = jnp.asarray([True, False, True])
    np.testing.assert_array_equal(law.whiten(jnp.ones(3), mask), [0.5, 0.0, 0.0])
    slope = jax.grad(lambda law: law.log_prob(jnp.ones(3), mask))(law).std
    assert slope[1] == 0
    assert np.isnan(law.whiten(jnp.ones(3), jnp.ones(3, bool))[1])


def test_gradient_in_std_is_the_derivative_of_the_density():
    residual, mask = jnp.asarray([1.5, -0.5]), jnp.ones(2, bool)
    slope = jax.grad(lambda error: error.log_prob(residual, mask))(Diagonal(0.8)).std
    # d/ds sum(-r^2 / (2 s^2) - log s)
    np.testing.assert_allclose(slope, 2.5 / 0.8**3 - 2 / 0.8, rtol=1e-12)


def test_wrong_use_is_reported():
    with pytest.raises(eqx.EquinoxRuntimeError, match="`std` must be finite and above"):
        Diagonal(np.asarray([1.0, 0.0]))
    with pytest.raises(eqx.EquinoxRuntimeError, match="`std` must be finite and above"):
        Diagonal(float("nan"))
    with pytest.raises(eqx.EquinoxRuntimeError, match="`std` must be finite and above"):
        eqx.filter_jit(Diagonal)(jnp.asarray(-1.0))
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"smallest eigenvalue .* is -1"):
        Dense(np.asarray([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(eqx.EquinoxRuntimeError, match="finite and symmetric: 2 of 4"):
        Dense(np.asarray([[1.0, 0.5], [0.4, 1.0]]))
    with pytest.raises(eqx.EquinoxRuntimeError, match="must be positive definite"):
        eqx.filter_jit(Dense)(jnp.asarray([[1.0, 2.0], [2.0, 1.0]]))
    twice = np.asarray([[1.0, 2, 2], [2, 5, 5], [2, 5, 5]])
    with pytest.raises(eqx.EquinoxRuntimeError, match="entries 1 and 2 are duplicates"):
        Dense(twice)
    with pytest.raises(eqx.EquinoxRuntimeError, match="must be positive definite"):
        eqx.filter_jit(Dense)(jnp.asarray(twice))
    with pytest.raises(eqx.EquinoxRuntimeError, match="smallest variance is 0"):
        Dense(np.diag([1.0, 0.0]))
    residual, mask = jnp.ones(3), jnp.ones(3, bool)
    with pytest.raises(ValueError, match=r"\(2,\) does not broadcast .* \(3,\)"):
        Diagonal(np.ones(2)).whiten(residual, mask)
    with pytest.raises(ValueError, match=r"\(2, 2\) does not fit .* 3 entries"):
        Dense(np.eye(2)).whiten(residual, mask)
