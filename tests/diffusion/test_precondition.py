import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens.diffusion import EDM, Denoiser, Preconditioned, White, sample
from skyens.training import trainable

SHAPE = (2, 3, 4)
X = jr.normal(jr.key(0), SHAPE)


def nothing(x, level, *, condition=None):
    return jnp.zeros_like(x)


def told(x, level, *, condition=None):
    """Return the level everywhere: what the network is told."""
    return jnp.full_like(x, level)


class Ideal(eqx.Module):
    """The network whose denoiser is that of N(0, spread^2 I), or of one known state."""

    clean: jax.Array | None = None

    def __call__(self, x, level, *, condition=None):
        if self.clean is None:
            return jnp.zeros_like(x)  # all is in the skip connection
        # With x = (clean + s n) / total, solve D = clean for F, by hand.
        sigma, total = jnp.exp(4 * level), jnp.sqrt(jnp.exp(8 * level) + 0.25)
        return (self.clean - 0.25 / total * x) * total / (0.5 * sigma)


class PreconditionedTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_a_silent_network_leaves_the_gaussian_denoiser(self):
        denoiser = Preconditioned(nothing, 0.5)
        assert isinstance(denoiser, Denoiser)
        clean = self.variant(lambda x, s: denoiser(x, s))(X, 0.8)
        chex.assert_trees_all_close(clean, 0.25 / (0.25 + 0.64) * X, rtol=1e-14)


@settings(deadline=None, max_examples=30)
@given(sigma=st.floats(0.002, 80), spread=st.floats(0.1, 10), seed=st.integers(0, 99))
def test_inputs_and_targets_have_unit_variance_and_errors_are_of_order_one(
    sigma, spread, seed
):
    clean, noise = np.random.default_rng(seed).normal(size=(2, 4))
    clean = spread * clean
    seen = []

    def network(x, level, *, condition=None):
        seen.append((x, level))
        return jnp.zeros_like(x)

    denoiser = Preconditioned(network, spread)
    guess = denoiser(jnp.asarray(clean + sigma * noise), sigma)
    (x, level), total = seen[0], np.hypot(sigma, spread)
    chex.assert_trees_all_close(x, (clean + sigma * noise) / total, rtol=1e-12)
    chex.assert_trees_all_close(level, jnp.asarray(np.log(sigma) / 4), atol=1e-13)
    # The network's own target, Karras et al. (2022), equation 8, has variance 1.
    target = (clean - spread**2 / total**2 * (clean + sigma * noise)) / (
        sigma * spread / total
    )
    unit = (sigma * clean / spread - spread * noise) / total
    chex.assert_trees_all_close(target, unit, rtol=1e-6, atol=1e-6)
    error = np.sqrt(denoiser.weight(sigma)) * (guess - clean)
    chex.assert_trees_all_close(error, -unit, rtol=1e-9, atol=1e-9)


def test_an_ideal_network_knows_the_clean_state_at_every_level():
    denoiser = Preconditioned(Ideal(jnp.full(SHAPE, 0.3)), 0.5)
    levels = jnp.geomspace(0.002, 80, 5)
    clean = jax.jit(jax.vmap(denoiser, (None, 0)))(X, levels)
    chex.assert_trees_all_close(clean, jnp.full((5, *SHAPE), 0.3), atol=1e-11)


def test_each_channel_may_have_its_own_spread():
    spread = jnp.array([0.1, 3.0])[:, None, None]
    both = Preconditioned(told, spread)(X, 0.7)
    for channel in range(2):
        one = Preconditioned(told, spread[channel, 0, 0])(X[channel], 0.7)
        chex.assert_trees_all_close(both[channel], one, rtol=1e-14)
    assert Preconditioned(told, spread).weight(0.7).shape == (2, 1, 1)


def test_without_noise_the_state_is_returned_and_gradients_are_finite():
    denoiser = Preconditioned(told)
    chex.assert_trees_all_equal(denoiser(X, 0.0), X)
    slope = jax.grad(lambda s: denoiser(X, s).sum())(0.0)
    # dD/ds = F at 0, the level being that of sigma_min.
    chex.assert_trees_all_close(slope, X.size * np.log(0.002) / 4, rtol=1e-12)


def test_outside_of_its_range_the_network_is_told_the_nearer_end():
    heard = lambda sigma: (
        Preconditioned(told, 1.0, sigma_min=0.1, sigma_max=10.0)(
            jnp.zeros(SHAPE), sigma
        )
        * jnp.sqrt(1 + 1 / jnp.asarray(sigma) ** 2)
    )
    for sigma, told_of in ((0.01, 0.1), (0.1, 0.1), (3.0, 3.0), (500.0, 10.0)):
        expected = jnp.full(SHAPE, np.log(told_of) / 4)
        chex.assert_trees_all_close(heard(sigma), expected, rtol=1e-10)


def test_the_condition_reaches_the_network():
    network = lambda x, level, *, condition: condition * jnp.ones_like(x)
    denoiser = Preconditioned(network)
    pair = [denoiser(X, 1.0, condition=jnp.asarray(c)) for c in (0.0, 2.0)]
    chex.assert_trees_all_close(pair[1] - pair[0], jnp.full(SHAPE, 2**0.5), rtol=1e-14)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_results_keep_the_dtype_of_the_state(dtype):
    denoiser = Preconditioned(told, jnp.full((2, 1, 1), 0.5))
    clean = eqx.filter_jit(denoiser)(X.astype(dtype), jnp.asarray(0.3))
    assert clean.dtype == dtype
    exact = denoiser(X.astype(dtype).astype(float), 0.3)
    eps = float(jnp.finfo(dtype).eps)
    chex.assert_trees_all_close(clean.astype(float), exact, atol=10 * eps)


def test_samples_of_a_silent_network_are_those_of_its_gaussian():
    denoiser, schedule = Preconditioned(nothing, 0.5), EDM()
    draw = lambda key: sample(denoiser, schedule, (3,), key=key, steps=100)
    keys = jr.split(jr.key(1), 200)
    samples = jax.jit(jax.vmap(draw))(keys)
    starts = jax.vmap(lambda key: White()((3,), key=jr.split(key)[0]))(keys)
    # The flow from 80 to 0 shrinks the start by 0.5 / sqrt(80^2 + 0.25).
    flow = 80 * starts * 0.5 / np.hypot(80, 0.5)
    chex.assert_trees_all_close(samples, flow, atol=0.02)


def test_only_the_network_is_trained():
    denoiser = Preconditioned(eqx.nn.Linear(2, 2, key=jr.key(0)))
    chosen = eqx.filter(denoiser, trainable(denoiser))
    assert len(jax.tree.leaves(chosen)) == 2
    assert jax.tree.leaves(chosen.network)


def test_wrong_use_is_reported():
    error = eqx.EquinoxRuntimeError
    for sigmas in ((0.0, 1.0), (2.0, 1.0), (0.1, jnp.inf), (jnp.nan, 1.0)):
        with pytest.raises(error, match="0 < `sigma_min` < `sigma_max` < inf"):
            Preconditioned(nothing, sigma_min=sigmas[0], sigma_max=sigmas[1])
    for spread in (0.0, -1.0, jnp.nan):
        with pytest.raises(error, match="`sigma_data` must be positive and finite"):
            Preconditioned(nothing, spread)
    with pytest.raises(ValueError, match=r"`sigma_data` of shape \(3, 1, 1\) must"):
        Preconditioned(nothing, jnp.ones((3, 1, 1)))(X, 1.0)
    with pytest.raises(ValueError, match=r"`sigma_data` of shape \(4,\) must be a"):
        Preconditioned(nothing, jnp.ones(4))(X, 1.0)
    shorter = lambda x, level, *, condition=None: x[:1]
    with pytest.raises(ValueError, match=r"given float64\(2, 3, 4\) and returned"):
        Preconditioned(shorter)(X, 1.0)
