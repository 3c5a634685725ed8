import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens.diffusion import Denoiser, EnsembleDenoiser

LEVELS = np.array([0.05, 0.5, 3.0, 80.0])


def mixture(members, bandwidth, shrinkage):
    """Return centres and the covariance that they share, in NumPy."""
    mean, covariance = members.mean(0), np.cov(members.T)
    size = len(mean)
    variance = np.trace(covariance) / size
    kernel = (1 - shrinkage) * covariance + shrinkage * variance * np.eye(size)
    centres = mean + np.sqrt(1 - bandwidth**2) * (members - mean)
    return centres, bandwidth**2 * kernel


def exact(members, bandwidth, shrinkage, x, sigma):
    centres, kernel = mixture(members, bandwidth, shrinkage)
    total = kernel + sigma**2 * np.eye(x.size)
    solved = np.linalg.solve(total, (x - centres).T).T
    logits = -((x - centres) * solved).sum(1) / 2
    weights = np.exp(logits - logits.max())
    return (weights / weights.sum()) @ (centres + solved @ kernel)


denoise = eqx.filter_jit(
    lambda members, bandwidth, shrinkage, x, sigma: jax.vmap(
        EnsembleDenoiser(members, bandwidth, shrinkage)
    )(x, sigma)
)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    bandwidth=st.floats(0.05, 1.0),
    shrinkage=st.floats(0.0, 1.0),
    few=st.booleans(),
)
def test_it_is_the_denoiser_of_the_mixture(seed, bandwidth, shrinkage, few):
    rng = np.random.default_rng(seed)
    # Fewer members than entries, and more.
    members = 2 + rng.normal(size=(3 if few else 7, 4)) * [1, 3, 0.2, 1]
    x = 2 + np.sqrt(1 + LEVELS**2)[:, None] * rng.normal(size=(4, 4))
    args = jnp.asarray(bandwidth), jnp.asarray(shrinkage), jnp.asarray(x)
    clean = denoise(jnp.asarray(members), *args, jnp.asarray(LEVELS))
    for one, noisy, sigma in zip(np.asarray(clean), x, LEVELS, strict=True):
        expected = exact(members, bandwidth, shrinkage, noisy, sigma)
        scale = np.abs(noisy).max() / min(sigma, 1) ** 2
        chex.assert_trees_all_close(one, expected, atol=1e-11 * scale)


def test_samples_have_the_mixtures_moments_about_each_member():
    members = np.random.default_rng(0).normal(size=(5, 3)) * [1, 2, 0.5]
    prior = EnsembleDenoiser(jnp.asarray(members), 0.6, 0.3)
    draw = lambda key: prior.sample(key=key)
    samples = np.asarray(jax.jit(jax.vmap(draw))(jr.split(jr.key(0), 20_000)))
    centres, kernel = mixture(members, 0.6, 0.3)
    chance = 5 * np.sqrt(np.diag(kernel) / 20_000)
    assert (np.abs(samples.mean(0) - centres) < chance).all()
    variances = np.diag(kernel)
    chance = 5 * np.sqrt((np.outer(variances, variances) + kernel**2) / 20_000)
    for member in range(5):
        assert (np.abs(np.cov(samples[:, member].T) - kernel) < chance).all()
    # Members apart from each other draw apart from each other.
    across = np.corrcoef(samples[:, 0, 0], samples[:, 1, 0])[0, 1]
    assert abs(across) < 5 / 20_000**0.5


def test_any_shape_and_float32():
    members = np.random.default_rng(1).normal(size=(6, 2, 3))
    prior = EnsembleDenoiser(jnp.asarray(members, jnp.float32), 0.5, 0.1)
    assert isinstance(prior, Denoiser)
    x = jnp.asarray(members[0] + 0.3, jnp.float32)
    clean = jax.jit(lambda x: prior(x, 0.4))(x)
    expected = exact(members.reshape(6, 6), 0.5, 0.1, np.ravel(members[0] + 0.3), 0.4)
    assert clean.dtype == jnp.float32
    chex.assert_trees_all_close(clean.ravel(), expected.astype(np.float32), atol=1e-5)
    assert prior.sample(key=jr.key(0)).dtype == jnp.float32


def test_equal_members_are_a_point_with_finite_gradients():
    members = jnp.ones((4, 3))
    total = lambda members: EnsembleDenoiser(members, 0.5)(jnp.zeros(3), 0.7).sum()
    chex.assert_trees_all_close(total(members), 3.0, rtol=1e-14)
    chex.assert_tree_all_finite(jax.jit(jax.grad(total))(members))
    still = EnsembleDenoiser(members)
    chex.assert_trees_all_close(still(jnp.zeros(3), 0.0), jnp.ones(3), atol=1e-14)


def test_gradients_are_those_of_differences():
    members = jnp.asarray(np.random.default_rng(2).normal(size=(5, 3)))
    x = jnp.asarray([0.3, -0.2, 1.0])

    def total(members, bandwidth, shrinkage, x):
        return jnp.sum(EnsembleDenoiser(members, bandwidth, shrinkage)(x, 0.5) ** 2)

    at = members, jnp.asarray(0.4), jnp.asarray(0.2), x
    direction = jax.tree.map(
        lambda a: jnp.cos(jnp.arange(1.0, a.size + 1)).reshape(a.shape), at
    )
    slope = jax.jit(lambda at: jax.jvp(total, at, direction)[1])(at)
    step = lambda e: total(*jax.tree.map(lambda a, d: a + e * d, at, direction))
    chex.assert_trees_all_close(slope, (step(1e-6) - step(-1e-6)) / 2e-6, rtol=1e-6)
    reverse = jax.grad(total, argnums=(0, 1, 2, 3))(*at)
    along = jax.tree.map(lambda g, d: jnp.sum(g * d), reverse, direction)
    chex.assert_trees_all_close(sum(along), slope, rtol=1e-10)


def test_wrong_use_is_reported():
    members = jnp.asarray(np.random.default_rng(3).normal(size=(4, 3)))
    with pytest.raises(ValueError, match="at least 2, got 1"):
        EnsembleDenoiser(members[:1])
    for wrong in ((0.0, 0.0), (1.5, 0.0), (1.0, -0.1), (jnp.nan, 0.0)):
        with pytest.raises(eqx.EquinoxRuntimeError, match="`bandwidth` must lie"):
            EnsembleDenoiser(members, *wrong)
    with pytest.raises(ValueError, match=r"members' shape \(3,\), got \(2,\)"):
        EnsembleDenoiser(members)(jnp.zeros(2), 1.0)
    with pytest.raises(ValueError, match="no `condition`"):
        EnsembleDenoiser(members)(jnp.zeros(3), 1.0, condition=1)
