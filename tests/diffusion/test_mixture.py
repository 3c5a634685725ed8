import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats
from scipy.special import logsumexp, softmax

from skyens.diffusion import Denoiser, GaussianDenoiser, GaussianMixtureDenoiser
from skyens.observations import Dense, Diagonal, Linear, Observation

SHAPE, SIZE = (2, 2), 4


def mixture(seed):
    """Return means, covariances and weights of three random components."""
    rng = np.random.default_rng(seed)
    means = rng.normal(scale=2, size=(3, *SHAPE))
    factors = rng.normal(size=(3, SIZE, SIZE)) / 2
    covariances = factors @ factors.transpose(0, 2, 1) + 0.1 * np.eye(SIZE)
    return means, covariances, rng.uniform(0.2, 1, 3)


def log_parts(x, sigma, means, covariances, weights):
    """Return the log of weight times density of each component, by scipy."""
    noise = sigma**2 * np.eye(SIZE)
    densities = [
        stats.multivariate_normal(mean.ravel(), covariance + noise).logpdf(x.ravel())
        for mean, covariance in zip(means, covariances, strict=True)
    ]
    return np.log(weights / weights.sum()) + np.array(densities)


def exact(x, sigma, means, covariances, weights):
    """Return the expected clean state by dense solves."""
    noise = sigma**2 * np.eye(SIZE)
    clean = [
        mean + (c @ np.linalg.solve(c + noise, (x - mean).ravel())).reshape(SHAPE)
        for mean, c in zip(means, covariances, strict=True)
    ]
    chances = softmax(log_parts(x, sigma, means, covariances, weights))
    return np.tensordot(chances, np.stack(clean), 1)


def dense(means, covariances, weights):
    means, covariances, weights = map(jnp.asarray, (means, covariances, weights))
    return GaussianMixtureDenoiser(means, covariances=covariances, weights=weights)


class GaussianMixtureDenoiserTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_matches_the_dense_formula(self):
        law, x = mixture(0), np.random.default_rng(1).normal(size=SHAPE)
        denoiser = dense(*law)
        assert isinstance(denoiser, Denoiser)
        denoise = self.variant(GaussianMixtureDenoiser.__call__)
        for sigma in (0.01, 0.5, 3.0, 100.0):
            clean = denoise(denoiser, jnp.asarray(x), jnp.asarray(sigma))
            chex.assert_trees_all_close(clean, exact(x, sigma, *law), rtol=1e-9)


@eqx.filter_jit
def clean_and_density(denoiser, x, sigma):
    return denoiser(x, sigma), denoiser.log_prob(x, sigma)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**31), sigma=st.floats(0, 50))
def test_clean_state_and_density_are_exact_at_any_level(seed, sigma):
    law, x = mixture(seed), np.random.default_rng(seed + 1).normal(size=SHAPE)
    clean, density = clean_and_density(dense(*law), jnp.asarray(x), jnp.asarray(sigma))
    np.testing.assert_allclose(clean, exact(x, sigma, *law), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(density, logsumexp(log_parts(x, sigma, *law)), rtol=1e-8)


@pytest.mark.parametrize("variances", [0.3, np.array([0.3, 0.1, 1.0]), None])
def test_independent_entries_are_diagonal_covariances(variances):
    means, _, weights = mixture(2)
    if variances is None:
        variances = np.random.default_rng(3).uniform(0.1, 1, means.shape)
    spread = np.broadcast_to(
        np.reshape(variances, (*np.shape(variances)[:1], 1, 1))
        if np.ndim(variances) == 1
        else variances,
        means.shape,
    )
    covariances = np.stack([np.diag(one.ravel()) for one in spread])
    denoiser = GaussianMixtureDenoiser(
        jnp.asarray(means), jnp.asarray(variances), weights=jnp.asarray(weights)
    )
    other = dense(means, covariances, weights)
    x = jnp.ones(SHAPE)
    for sigma in (0.0, 0.7):
        at = (x, jnp.asarray(sigma))
        found, expected = (
            clean_and_density(denoiser, *at),
            clean_and_density(other, *at),
        )
        chex.assert_trees_all_close(found, expected, rtol=1e-10)
    chex.assert_trees_all_close(denoiser.moments(), other.moments(), rtol=1e-10)


def test_one_component_is_a_gaussian():
    means, covariances, _ = mixture(3)
    mean, covariance = jnp.asarray(means[0]), jnp.asarray(covariances[0])
    denoiser = GaussianMixtureDenoiser(mean[None], covariances=covariance[None])
    x = jnp.ones(SHAPE)
    expected = GaussianDenoiser(mean, covariance)(x, 0.4)
    chex.assert_trees_all_close(denoiser(x, 0.4), expected, rtol=1e-12)


def test_the_denoised_state_follows_the_score():
    denoiser, sigma = dense(*mixture(4)), 0.6
    x = jr.normal(jr.key(0), SHAPE)
    score = jax.grad(denoiser.log_prob)(x, sigma)
    # Tweedie's formula.
    chex.assert_trees_all_close(x + sigma**2 * score, denoiser(x, sigma), rtol=1e-9)


def conditioned(law, matrix, noise, value):
    """Return weights, means, covariances and log-evidence given the values."""
    parts = []
    for mean, c, weight in zip(*law, strict=True):
        total = matrix @ c @ matrix.T + noise
        gain = np.linalg.solve(total, matrix @ c).T
        predicted = matrix @ mean.ravel()
        fit = stats.multivariate_normal(predicted, total).logpdf(value)
        moved = mean + (gain @ (value - predicted)).reshape(SHAPE)
        parts.append(
            (np.log(weight / law[2].sum()) + fit, moved, c - gain @ matrix @ c)
        )
    logs, means, covariances = (np.stack(part) for part in zip(*parts, strict=True))
    return softmax(logs), means, covariances, logsumexp(logs)


@pytest.mark.parametrize("correlated", [True, False])
def test_posterior_and_evidence_of_a_linear_observation_are_exact(correlated):
    law, rng = mixture(5), np.random.default_rng(6)
    matrix, value = rng.normal(size=(3, SIZE)), rng.normal(size=3)
    noise = np.diag([0.1, 0.2, 0.3]) + (0.05 if correlated else 0)
    error = Dense(noise) if correlated else Diagonal(np.sqrt(np.diag(noise)))
    hidden = np.where([True, False, True], value, np.nan)
    look = lambda state: Linear(matrix)(state.ravel())
    observation = Observation(hidden, look, error)
    seen = np.array([0, 2])  # the oracle has no masks
    exact = conditioned(law, matrix[seen], noise[np.ix_(seen, seen)], value[seen])
    posterior = dense(*law).posterior(observation)
    chex.assert_trees_all_close(posterior.weights, exact[0], rtol=1e-9)
    chex.assert_trees_all_close(posterior.means, exact[1], rtol=1e-9)
    assert isinstance(posterior.components, GaussianDenoiser)
    covariances = posterior.components.covariance
    chex.assert_trees_all_close(covariances, exact[2], atol=1e-12)
    found = dense(*law).log_evidence(observation)
    chex.assert_trees_all_close(found, exact[3], rtol=1e-10)


def test_samples_have_the_mixtures_moments():
    denoiser = dense(*mixture(7))
    draw = lambda key: denoiser.sample(key=key)
    samples = np.asarray(jax.jit(jax.vmap(draw))(jr.split(jr.key(0), 20_000)))
    mean, covariance = map(np.asarray, denoiser.moments())
    gap = samples.mean(0).ravel() - mean.ravel()
    statistic = 20_000 * gap @ np.linalg.solve(covariance, gap)
    assert statistic < stats.chi2(SIZE).ppf(0.9999)
    flat = samples.reshape(-1, SIZE)
    products = (flat - mean.ravel())[:, :, None] * (flat - mean.ravel())[:, None]
    chance = products.std(0) / 20_000**0.5
    assert (np.abs(products.mean(0) - covariance) < 4.5 * chance).all()


def test_samples_of_independent_entries_have_their_spread():
    means, variances = jnp.array([[-3.0, 0.0], [3.0, 0.0]]), jnp.array([0.04, 0.25])
    denoiser = GaussianMixtureDenoiser(means, variances)
    draw = lambda key: denoiser.sample(key=key)
    samples = np.asarray(jax.jit(jax.vmap(draw))(jr.split(jr.key(1), 4000)))
    right = samples[:, 0] > 0
    assert abs(right.mean() - 0.5) < 4 * 0.5 / 4000**0.5
    for side, std in ((~right, 0.2), (right, 0.5)):
        assert stats.kstest(samples[side, 1] / std, "norm").pvalue > 1e-4


def test_gradients_in_everything_match_finite_differences():
    means, covariances, weights = map(jnp.asarray, mixture(8))
    covariances = covariances.at[0].set(0.5 * jnp.eye(SIZE))  # repeated eigenvalues
    x = jnp.ones(SHAPE)

    def total(means, covariances, weights, sigma):
        symmetric = (covariances + covariances.swapaxes(1, 2)) / 2
        denoiser = GaussianMixtureDenoiser(
            means, covariances=symmetric, weights=weights
        )
        return jnp.sum(denoiser(x, sigma) ** 2) + denoiser.log_prob(x, sigma)

    at = (means, covariances, weights, jnp.asarray(0.7))
    total = jax.jit(total)
    slopes = jax.grad(total, argnums=(0, 1, 2, 3))(*at)
    for index, (value, slope) in enumerate(zip(at, slopes, strict=True)):
        change = jr.normal(jr.key(index), value.shape)
        moved = lambda h: total(
            *(a + h * change if i == index else a for i, a in enumerate(at))
        )
        finite = (moved(1e-5) - moved(-1e-5)) / 2e-5
        np.testing.assert_allclose(jnp.sum(slope * change), finite, rtol=1e-6)


def test_points_without_variance_stay_finite():
    means = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
    denoiser = GaussianMixtureDenoiser(means, 0.0)
    x = jnp.array([0.9, 0.1])
    both = lambda x, sigma: (denoiser(x, sigma), denoiser.log_prob(x, sigma))
    for sigma in (0.0, 1e-12, 0.1):
        clean, slopes = both(x, sigma)[0], jax.jacobian(both)(x, sigma)
        chex.assert_trees_all_close(clean, means[0])
        chex.assert_tree_all_finite(slopes)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_results_keep_the_dtype_of_the_state(dtype):
    clean, density = clean_and_density(
        dense(*mixture(9)), jnp.ones(SHAPE, dtype), jnp.asarray(0.5)
    )
    assert clean.dtype == density.dtype == dtype
    single = dense(*(part.astype(np.float32) for part in mixture(9)))
    draw = single.sample(key=jr.key(0))
    assert draw.dtype == jnp.float32
    observation = Observation(np.zeros(2), lambda x: x[0], Diagonal(0.1))
    assert single.posterior(observation).means.dtype == jnp.float32


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_float32_follows_float64(scale):
    means, covariances, weights = mixture(10)
    law, x = (scale * means, covariances, weights), scale * means[1] + 0.3
    wide = dense(*law)
    narrow = dense(*(part.astype(np.float32) for part in law))
    for sigma in (0.01, 1.0, 30.0):
        expected = wide(jnp.asarray(x), sigma)
        found = narrow(jnp.asarray(x, jnp.float32), sigma)
        # Rounding of the state is all there is, times the chances' own slope.
        error = np.abs(np.asarray(found, np.float64) - expected).max()
        assert error < 1e-4 * scale


def test_wrong_use_is_reported():
    means, error = jnp.zeros((3, 2)), eqx.EquinoxRuntimeError
    with pytest.raises(ValueError, match="exactly one of"):
        GaussianMixtureDenoiser(means)
    with pytest.raises(ValueError, match="exactly one of"):
        GaussianMixtureDenoiser(means, 1.0, covariances=jnp.ones((3, 2, 2)))
    with pytest.raises(ValueError, match=r"`weights` must be \(3,\).*got \(2,\)"):
        GaussianMixtureDenoiser(means, 1.0, weights=jnp.ones(2))
    with pytest.raises(ValueError, match=r"`variances` must be .*got \(2,\)"):
        GaussianMixtureDenoiser(means, jnp.ones(2))
    with pytest.raises(ValueError, match="must have 3 components"):
        GaussianMixtureDenoiser(means, covariances=jnp.ones((2, 2, 2)))
    with pytest.raises(ValueError, match=r"`covariance` must be \(2, 2\)"):
        GaussianMixtureDenoiser(means, covariances=jnp.ones((3, 3, 3)))
    with pytest.raises(ValueError, match="at least 1 component"):
        GaussianMixtureDenoiser(jnp.zeros((0, 2)), 1.0)
    with pytest.raises(error, match="`variances` must be >= 0"):
        GaussianMixtureDenoiser(means, -1.0)
    for bad in (0.0, -1.0, jnp.nan, jnp.inf):
        with pytest.raises(error, match="`weights` must be positive"):
            GaussianMixtureDenoiser(means, 1.0, weights=jnp.array([1.0, 1.0, bad]))
    denoiser = GaussianMixtureDenoiser(means, 1.0)
    for call in (lambda x: denoiser(x, 1.0), denoiser.log_prob):
        with pytest.raises(ValueError, match=r"mean's shape \(2,\), got \(3,\)"):
            call(jnp.zeros(3))
    with pytest.raises(ValueError, match="takes no `condition`"):
        denoiser(means[0], 1.0, condition=means)
