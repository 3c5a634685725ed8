import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens.diffusion import (
    Denoiser,
    DiagonalGaussianDenoiser,
    GaussianDenoiser,
    LowRankGaussianDenoiser,
)


def random_covariance(seed, size, dtype=jnp.float64, smallest=0.05):
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]
    variances = np.geomspace(smallest, 3, size)
    covariance = (basis * variances) @ basis.T
    return jnp.asarray((covariance + covariance.T) / 2, dtype)


def exact(mean, covariance, x, sigma):
    """Return the posterior mean by a dense solve in float64."""
    mean, covariance, x = (np.asarray(a, np.float64) for a in (mean, covariance, x))
    total = covariance + float(sigma) ** 2 * np.eye(mean.size)
    moved = covariance @ np.linalg.solve(total, (x - mean).ravel())
    return mean + moved.reshape(mean.shape)


class GaussianDenoiserTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_matches_the_dense_posterior_mean(self):
        mean, x = jr.normal(jr.key(0), (2, 3, 2))
        covariance = random_covariance(0, 6)
        denoiser = GaussianDenoiser(mean, covariance)
        assert isinstance(denoiser, Denoiser)
        denoise = self.variant(GaussianDenoiser.__call__)
        for sigma in (1e-3, 0.1, 1.0, 10.0, 1e3):
            noisy = mean + sigma * x
            expected = exact(mean, covariance, noisy, sigma)
            chex.assert_trees_all_close(
                denoise(denoiser, noisy, jnp.asarray(sigma)), expected, rtol=1e-10
            )


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**31), exponent=st.floats(-12, 12))
def test_any_noise_level_is_stable_in_float32(seed, exponent):
    sigma = np.float32(10.0**exponent)
    mean, noise = jr.normal(jr.key(seed), (2, 5), jnp.float32)
    covariance = random_covariance(seed, 5, jnp.float32)
    x = mean + sigma * noise
    clean = GaussianDenoiser(mean, covariance)(x, jnp.asarray(sigma))
    assert clean.dtype == jnp.float32
    # x itself carries a rounding error of eps * |x|, of which at most
    # v / (v + sigma^2) <= sqrt(v) / (2 sigma) reaches the clean state.
    atol = 1e-6 * (np.abs(mean).max() + 10 * np.abs(noise).max())
    chex.assert_trees_all_close(clean, exact(mean, covariance, x, sigma), atol=atol)


def test_no_noise_returns_the_state_and_endless_noise_the_mean():
    mean, x = jr.normal(jr.key(1), (2, 4))
    denoiser = GaussianDenoiser(mean, random_covariance(1, 4))
    chex.assert_trees_all_close(denoiser(x, 0.0), x, atol=1e-14)
    chex.assert_trees_all_close(denoiser(x, 1e12), mean, atol=1e-14)


def test_no_variance_stays_at_the_mean_with_and_without_noise():
    mean, x = jr.normal(jr.key(2), (2, 3))
    for denoiser in (
        GaussianDenoiser(mean, jnp.zeros((3, 3))),
        DiagonalGaussianDenoiser(mean, jnp.zeros(3)),
        LowRankGaussianDenoiser(mean, jnp.eye(3)[:, :1], jnp.zeros(1)),
    ):
        both = lambda sigma, denoiser=denoiser: (
            denoiser(x, sigma),
            jax.grad(lambda x: denoiser(x, sigma).sum())(x),
        )
        clean, slope = jax.jit(jax.vmap(both))(jnp.array([0.0, 1.0]))
        chex.assert_trees_all_equal(clean, jnp.stack([mean, mean]))
        chex.assert_trees_all_equal(slope, jnp.zeros((2, 3)))


@jax.jit
def dense_and_low_rank(mean, basis, variances, remainder, x, sigma):
    kept, outside = (basis * variances[None]) @ basis.T, jnp.eye(5) - basis @ basis.T
    covariance = kept + remainder * outside
    dense = GaussianDenoiser(mean, (covariance + covariance.T) / 2)
    low_rank = LowRankGaussianDenoiser(mean, basis, variances, remainder)
    return dense(x, sigma), low_rank(x, sigma)


@pytest.mark.parametrize("rank", [0, 2, 5])
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31), sigma=st.floats(1e-3, 1e3))
def test_low_rank_agrees_with_dense(rank, seed, sigma):
    rng = np.random.default_rng(seed)
    mean, basis = rng.normal(size=5), np.linalg.qr(rng.normal(size=(5, 5)))[0][:, :rank]
    variances, x = rng.uniform(0.1, 3, rank), mean + sigma * rng.normal(size=5)
    at = map(jnp.asarray, (mean, basis, variances, 0.2, x, sigma))
    chex.assert_trees_all_close(*dense_and_low_rank(*at), atol=1e-11)


def test_diagonal_is_one_gaussian_per_entry():
    mean, x = jr.normal(jr.key(4), (2, 2, 3))
    variances = jr.uniform(jr.key(5), (2, 3), minval=0.1)
    clean = DiagonalGaussianDenoiser(mean, variances)(x, 0.6)
    expected = exact(mean, np.diag(variances.ravel()), x, 0.6)
    chex.assert_trees_all_close(clean, expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_results_keep_the_dtype_of_the_state(dtype):
    mean = jnp.zeros((2, 2))
    for denoiser in (
        GaussianDenoiser(mean, jnp.eye(4)),
        DiagonalGaussianDenoiser(mean, jnp.ones((2, 2))),
        LowRankGaussianDenoiser(mean, jnp.eye(4)[:, :2], jnp.ones(2), 1.0),
    ):
        clean = eqx.filter_jit(denoiser)(jnp.ones((2, 2), dtype), jnp.asarray(1.0))
        assert clean.dtype == dtype
        chex.assert_trees_all_close(clean, jnp.full((2, 2), 0.5, dtype))


def test_the_jacobian_is_the_posterior_covariance_over_sigma_squared():
    covariance, sigma = random_covariance(3, 4), 0.7
    denoiser = GaussianDenoiser(jnp.zeros(4), covariance)
    expected = np.linalg.inv(np.linalg.inv(covariance) + np.eye(4) / sigma**2)
    for jacobian in (jax.jacfwd, jax.jacrev):
        slope = jacobian(lambda x: denoiser(x, sigma))(jnp.ones(4))
        chex.assert_trees_all_close(slope * sigma**2, expected, rtol=1e-10)


X = jnp.array([0.3, -1.0, 2.0])


def squared(mean, covariance, sigma):
    symmetric = (covariance + covariance.T) / 2
    return jnp.sum(GaussianDenoiser(mean, symmetric)(X, sigma) ** 2)


def squared_by_solving(mean, covariance, sigma):
    symmetric = (covariance + covariance.T) / 2
    total = symmetric + sigma**2 * jnp.eye(3)
    return jnp.sum((mean + symmetric @ jnp.linalg.solve(total, X - mean)) ** 2)


@jax.jit
def first_and_second_derivatives(mean, covariance, sigma):
    return [
        order(function, argnums=(0, 1, 2))(mean, covariance, sigma)
        for function in (squared, squared_by_solving)
        for order in (jax.grad, jax.hessian)
    ]


@pytest.mark.parametrize(
    "spectrum", [[1.0, 1.0, 1.0], [2.0, 0.3, 0.3], [1.0, 0.0, 0.0]]
)
def test_gradients_in_the_covariance_are_right_at_repeated_eigenvalues(spectrum):
    at = (jnp.array([0.5, 0.0, -0.5]), jnp.diag(jnp.array(spectrum)), jnp.asarray(0.8))
    first, second, expected_first, expected_second = first_and_second_derivatives(*at)
    chex.assert_trees_all_close(first, expected_first, atol=1e-11)
    chex.assert_trees_all_close(second, expected_second, atol=1e-11)


def test_float32_jacobians_do_not_cancel_in_strong_noise():
    denoiser = GaussianDenoiser(jnp.zeros(3), random_covariance(6, 3))
    slope = jax.jit(jax.jacrev(lambda x: denoiser(x, 1e4)))(jnp.ones(3, jnp.float32))
    expected = np.asarray(denoiser.covariance) / 1e8  # up to a relative 3e-8
    chex.assert_trees_all_close(slope, expected.astype(np.float32), rtol=1e-5)


def test_wrong_use_is_reported():
    mean, error = jnp.zeros(3), eqx.EquinoxRuntimeError
    with pytest.raises(ValueError, match=r"`covariance` must be \(3, 3\).*got \(4,"):
        GaussianDenoiser(mean, jnp.eye(4))
    with pytest.raises(error, match="finite and symmetric"):
        GaussianDenoiser(mean, jnp.eye(3).at[0, 1].set(0.1))
    with pytest.raises(error, match="finite and symmetric"):
        GaussianDenoiser(mean, jnp.eye(3).at[0, 0].set(jnp.nan))
    with pytest.raises(error, match="negative eigenvalue"):
        GaussianDenoiser(mean, jnp.diag(jnp.array([1.0, 1.0, -0.1])))
    with pytest.raises(ValueError, match=r"mean's shape \(3,\), got \(2,\)"):
        DiagonalGaussianDenoiser(mean, jnp.ones(2))
    with pytest.raises(error, match="`variances` must be >= 0"):
        DiagonalGaussianDenoiser(mean, -jnp.ones(3))
    with pytest.raises(ValueError, match=r"`basis` must be \(3, 2\).*got \(3, 1\)"):
        LowRankGaussianDenoiser(mean, jnp.ones((3, 1)), jnp.ones(2))
    with pytest.raises(error, match="must be orthonormal"):
        LowRankGaussianDenoiser(mean, jnp.ones((3, 1)), jnp.ones(1))
    with pytest.raises(error, match="`remainder` must be >= 0"):
        LowRankGaussianDenoiser(mean, jnp.eye(3)[:, :1], jnp.ones(1), -1.0)
    denoiser = GaussianDenoiser(mean, jnp.eye(3))
    with pytest.raises(ValueError, match=r"`x` must have the mean's shape \(3,\)"):
        denoiser(jnp.zeros(2), 1.0)
    with pytest.raises(ValueError, match="takes no `condition`"):
        denoiser(mean, 1.0, condition=mean)
