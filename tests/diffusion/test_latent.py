import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jaxtyping import Array

from skyens.diffusion import EDM, Coder, GaussianDenoiser, LatentSpace, guide, sample
from skyens.nn import Normaliser
from skyens.observations import Diagonal, Linear, Observation
from skyens.training import trainable

CHANNELS, ROWS, COLUMNS = 2, 2, 3
LATENT = CHANNELS * ROWS * COLUMNS
FIELD = 20


class Orthogonal(eqx.Module):
    """Principal components as an autoencoder: exact in the subspace they span."""

    basis: Array

    def encode(self, field):
        latent = self.basis.astype(field.dtype).T @ field
        return latent.reshape(CHANNELS, ROWS, COLUMNS)

    def decode(self, latent):
        return self.basis.astype(latent.dtype) @ latent.ravel()


class Nothing(eqx.Module):
    """An autoencoder that leaves fields as they are."""

    def encode(self, field):
        return field

    def decode(self, latent):
        return latent


def coder():
    rng = np.random.default_rng(0)
    return Orthogonal(jnp.asarray(np.linalg.qr(rng.normal(size=(FIELD, LATENT)))[0]))


def fields(size):
    """Return fields whose latents are far from mean 0 and variance 1."""
    rng = np.random.default_rng(1)
    offset = np.repeat([5.0, -2.0], ROWS * COLUMNS)
    scale = np.repeat([10.0, 0.1], ROWS * COLUMNS)
    latents = offset + scale * rng.normal(size=(size, LATENT))
    return jnp.asarray(latents) @ coder().basis.T


class LatentSpaceTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_fitted_latents_have_mean_0_and_variance_1_by_channel(self):
        assert isinstance(coder(), Coder)
        some = fields(50)
        space = self.variant(LatentSpace.fit)(coder(), some)
        assert space.mean.shape == space.std.shape == (CHANNELS, 1, 1)
        latents = np.asarray(jax.vmap(space.encode)(some))
        chex.assert_trees_all_close(latents.mean((0, 2, 3)), np.zeros(2), atol=1e-12)
        chex.assert_trees_all_close(latents.std((0, 2, 3)), np.ones(2), rtol=1e-12)
        decoded = jax.vmap(space.decode)(jnp.asarray(latents))
        chex.assert_trees_all_close(decoded, some, rtol=1e-10, atol=1e-10)


def test_a_posterior_in_latents_is_the_posterior_of_fields():
    space = LatentSpace.fit(coder(), fields(50))
    rng = np.random.default_rng(2)
    matrix, std = rng.normal(size=(5, FIELD)), rng.uniform(0.5, 1, 5)
    value = rng.normal(size=5)
    observation = Observation(
        jnp.asarray(value), Linear(jnp.asarray(matrix)), Diagonal(jnp.asarray(std))
    )
    shape = (CHANNELS, ROWS, COLUMNS)
    prior = GaussianDenoiser(jnp.zeros(shape), jnp.eye(LATENT))
    posterior = guide(prior, observation.pullback(space.decode))
    # In noise without bounds the denoised state is the posterior mean.
    found = jax.jit(lambda x: space.decode(posterior(x, 1e6)))(jnp.zeros(shape))

    # The oracle knows fields alone: N(B mean, B diag(std^2) B^T), matrices in NumPy.
    basis = np.asarray(coder().basis)
    each = lambda table: np.repeat(np.ravel(table), ROWS * COLUMNS)
    covariance = basis @ np.diag(each(space.std) ** 2) @ basis.T
    mean = basis @ each(space.mean)
    total = matrix @ covariance @ matrix.T + np.diag(std**2)
    gain = np.linalg.solve(total, matrix @ covariance).T
    expected = mean + gain @ (value - matrix @ mean)
    chex.assert_trees_all_close(found, expected, rtol=1e-6, atol=1e-6)


def test_decoded_samples_have_the_moments_of_the_fields():
    space = LatentSpace.fit(coder(), fields(50))
    shape = (CHANNELS, ROWS, COLUMNS)
    prior = GaussianDenoiser(jnp.zeros(shape), jnp.eye(LATENT))
    draw = lambda key: space.decode(sample(prior, EDM(), shape, key=key))
    samples = np.asarray(jax.jit(jax.vmap(draw))(jr.split(jr.key(3), 2000)))
    basis = np.asarray(coder().basis)
    latents = samples @ basis
    std = np.repeat(np.ravel(space.std), ROWS * COLUMNS)
    mean = np.repeat(np.ravel(space.mean), ROWS * COLUMNS)
    # 18 steps of the sampler leave about a percent of the spread.
    np.testing.assert_allclose(latents.std(axis=0), std, rtol=0.1)
    np.testing.assert_array_less(abs(latents.mean(axis=0) - mean), 0.12 * std)


def test_the_space_is_never_trained():
    space = LatentSpace.fit(coder(), fields(5))
    assert not any(jax.tree.leaves(trainable(space)))


def test_results_keep_float32():
    space = LatentSpace.fit(coder(), fields(5))
    latent = eqx.filter_jit(space.encode)(jnp.ones(FIELD, jnp.float32))
    field = eqx.filter_jit(space.decode)(latent)
    assert latent.dtype == field.dtype == jnp.float32


def test_without_an_autoencoder_it_is_a_normaliser():
    mean, std = jnp.array([3.0, -1.0]), jnp.array([2.0, 0.5])
    wide = lambda table: table[:, None, None]
    space = LatentSpace(Nothing(), wide(mean), wide(std))
    field = jr.normal(jr.key(4), (2, 3, 4))
    expected = Normaliser(mean, std)(field)
    chex.assert_trees_all_close(space.encode(field), expected, rtol=1e-12)


def test_wrong_use_is_reported():
    error, one = eqx.EquinoxRuntimeError, jnp.ones((2, 1, 1))
    with pytest.raises(ValueError, match=r"`std` must have the shape of `mean`, \(2,"):
        LatentSpace(Nothing(), one, jnp.ones(2))
    with pytest.raises(error, match="`mean` must be finite"):
        LatentSpace(Nothing(), one * jnp.nan, one)
    for std in (0 * one, -one, jnp.nan * one):
        with pytest.raises(error, match="`std` must be positive and finite"):
            LatentSpace(Nothing(), one, std)
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        LatentSpace.fit(Nothing(), one[None])
    with pytest.raises(error, match="`std` must be positive and finite"):
        LatentSpace.fit(Nothing(), jnp.ones((3, 2, 1, 1)))
    with pytest.raises(ValueError, match="it encodes to a number"):
        LatentSpace.fit(Nothing(), jnp.arange(3.0))
    with pytest.raises(ValueError, match=r"`mean` of shape \(2, 1, 1\) must be a numb"):
        LatentSpace(Nothing(), one, one).encode(jnp.ones((3, 4, 4)))
