import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from jaxtyping import Array

from skyens.diffusion import (
    DenoisingLoss,
    DiagonalGaussianDenoiser,
    LogUniformLevels,
    Preconditioned,
    White,
)
from skyens.training import TrainState, ema_model, make_step, scan_steps

SIZE = 3
VARIANCES = jnp.array([0.2, 1.0, 3.0])
inverse_variance = lambda sigma: 1 / sigma**2


class Gain(eqx.Module):
    """A linear denoiser, one factor for each entry."""

    gain: Array

    def __call__(self, x, sigma, *, condition=None):
        return self.gain.astype(x.dtype) * x


class Guess(eqx.Module):
    """A network that says the same whatever it sees, but for its condition."""

    value: Array

    def __call__(self, x, level, *, condition=None):
        told = jnp.zeros_like(x) if condition is None else condition
        return self.value.astype(x.dtype) + told


class One(eqx.Module):
    """Noise that is 1 everywhere."""

    def __call__(self, shape, dtype, *, key):
        return jnp.ones(shape, dtype)


class Fixed(eqx.Module):
    """A law of a single level."""

    level: float

    def __call__(self, uniform):
        return jnp.full_like(uniform, self.level)


class AtOneLevelTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_it_is_the_weighted_mean_square(self):
        gain, clean = np.array([0.5, 1.0, -1.0]), np.array([1.0, 2.0, 3.0])
        entries, sigma = np.array([1.0, 0.0, 3.0]), 0.7
        loss = DenoisingLoss(
            One(), weight=inverse_variance, entries=jnp.asarray(entries)
        )
        at = self.variant(lambda *args: loss.at(*args, key=jr.key(0)))
        value = at(Gain(jnp.asarray(gain)), jnp.asarray(clean), jnp.asarray(sigma))
        error = gain * (clean + sigma) - clean
        expected = np.average(error**2, weights=entries) / sigma**2
        chex.assert_trees_all_close(value, expected, rtol=1e-13)


def test_the_mean_over_draws_is_the_expected_error_of_the_denoiser():
    # The exact denoiser errs by v s^2 / (v + s^2), the variance of the posterior.
    prior = DiagonalGaussianDenoiser(jnp.zeros(SIZE), VARIANCES)
    batch = jnp.sqrt(VARIANCES)[None] * jr.normal(jr.key(0), (5000, SIZE))
    for sigma in (0.1, 2.0):
        loss = DenoisingLoss(levels=Fixed(sigma), weight=inverse_variance)
        value = jax.jit(lambda b: loss(prior, b, key=jr.key(1)))(batch)
        exact = np.mean(VARIANCES / (VARIANCES + sigma**2))
        # Squares of normals: a relative deviation of sqrt(2 / count) for each entry.
        np.testing.assert_allclose(value, exact, rtol=5 * np.sqrt(2 / 5000))


@pytest.mark.parametrize("levels", [None, LogUniformLevels(0.3, 1.5)])
def test_training_finds_the_expected_clean_state(levels):
    """The best factor on `x` alone, which is known for each law of levels."""
    loss = DenoisingLoss(levels=Fixed(0.8) if levels is None else levels, weight=flat)
    optimiser = optax.adam(optax.cosine_decay_schedule(0.1, 200))
    step = make_step(loss, optimiser, ema_decay=0.9)
    draw = jr.normal(jr.key(2), (200, 200, SIZE))
    state = TrainState.init(Gain(jnp.zeros(SIZE)), optimiser)
    batches = jnp.sqrt(VARIANCES)[None, None] * draw
    state, metrics = scan_steps(step, state, batches, key=jr.key(3))
    assert not metrics.failed.any()
    squares = 0.64 if levels is None else (1.5**2 - 0.3**2) / (2 * np.log(5))
    exact = VARIANCES / (VARIANCES + squares)
    chex.assert_trees_all_close(ema_model(state).gain, exact, atol=0.02)


def flat(sigma):
    return jnp.ones_like(sigma)


def test_gradients_agree_with_finite_differences():
    denoiser = Preconditioned(Guess(jnp.array([0.1, -0.2, 0.3])))
    batch = jr.normal(jr.key(4), (4, SIZE))
    loss = DenoisingLoss()

    def total(value):
        changed = eqx.tree_at(lambda d: d.network.value, denoiser, value)
        return loss(changed, batch, key=jr.key(5))

    chex.assert_numerical_grads(total, (denoiser.network.value,), order=1)


def test_the_preconditioned_loss_weighs_all_levels_alike():
    # With a silent network errors have variance 1 / weight at every level.
    denoiser = Preconditioned(Guess(jnp.zeros(SIZE)), 1.5)
    batch = 1.5 * jr.normal(jr.key(6), (5000, SIZE))
    for sigma in (0.002, 0.3, 1.0, 80.0):
        value = jax.jit(DenoisingLoss(levels=Fixed(sigma)))(
            denoiser, batch, key=jr.key(7)
        )
        np.testing.assert_allclose(value, 1, rtol=5 * np.sqrt(2 / 15_000))


def test_levels_are_spread_over_their_law_and_clipped_to_the_denoisers():
    batch = jnp.zeros((64, 1))
    heard = lambda x, sigma, *, condition=None: jnp.log(sigma) * jnp.ones_like(x)
    loss = DenoisingLoss(levels=LogUniformLevels(0.01, 100.0), weight=flat)
    value = loss(heard, batch, key=jr.key(8))
    # The mean square of log(sigma), uniform in [-4.6, 4.6], from 64 strata.
    np.testing.assert_allclose(value, np.log(100) ** 2 / 3, rtol=0.02)


def test_dropped_conditions_are_zeros_and_as_many_as_asked_for():
    size, empty = 4000, {}
    told = lambda x, sigma, *, condition=empty: (
        x
        + condition["fields"]
        + jnp.sum(condition["vector"])
        + condition["where"].astype(x.dtype)
    )
    condition = {
        "fields": jnp.ones((size, 2)),
        "vector": jnp.ones((size, 3)),
        "where": jnp.ones((size, 2), bool),
    }
    loss = DenoisingLoss(One(), Fixed(1.0), weight=flat, drop=0.2)
    value = loss(told, (jnp.zeros((size, 2)), condition), key=jr.key(9))
    # The error is 1 where dropped, 1 + 1 + 3 + 1 elsewhere.
    dropped = (36 - value) / 35
    assert abs(dropped - 0.2) < 5 * np.sqrt(0.2 * 0.8 / size)
    kept = DenoisingLoss(One(), Fixed(1.0), weight=flat)
    chex.assert_trees_all_close(
        kept(told, (jnp.zeros((size, 2)), condition), key=jr.key(9)), 36.0
    )


class Told(eqx.Module):
    """A network that is linear in its input and its condition, one number each."""

    told: Array
    seen: Array
    seen_when_told: Array

    def __call__(self, x, level, *, condition=None):
        told, there = jnp.zeros((2, *x.shape)) if condition is None else condition
        seen = self.seen * (1 - there) + self.seen_when_told * there
        return self.told * told + seen * x


def test_one_network_learns_to_do_with_and_without_its_condition():
    # The condition is the clean state itself, and a 1 that says that it is known.
    clean = jr.normal(jr.key(10), (200, 200, 1))
    condition = jnp.stack([clean, jnp.ones_like(clean)], axis=2)
    loss = DenoisingLoss(levels=Fixed(1.0), drop=0.5)
    optimiser = optax.adam(optax.cosine_decay_schedule(0.1, 200))
    step = make_step(loss, optimiser)
    denoiser = Preconditioned(Told(*jnp.zeros(3)))
    state = TrainState.init(denoiser, optimiser)
    state, _ = scan_steps(step, state, (clean, condition), key=jr.key(11))
    x, known = jnp.array([0.4]), jnp.array([[-1.5], [1.0]])
    chex.assert_trees_all_close(state.model(x, 1.0), x / 2, atol=0.02)
    told = state.model(x, 1.0, condition=known)
    chex.assert_trees_all_close(told, known[0], atol=0.02)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_narrow_states_give_losses_in_float32(dtype):
    denoiser = Preconditioned(Guess(jnp.ones(SIZE)))
    batch = jr.normal(jr.key(12), (6, SIZE), dtype)
    value = eqx.filter_jit(DenoisingLoss())(denoiser, batch, key=jr.key(0))
    assert value.dtype == jnp.float32
    assert jnp.isfinite(value)


def test_a_broken_sample_fails_the_update_alone():
    optimiser = optax.sgd(0.1)
    step = make_step(DenoisingLoss(weight=flat), optimiser)
    state = TrainState.init(Gain(jnp.zeros(SIZE)), optimiser)
    batch = jnp.ones((4, SIZE)).at[2, 1].set(jnp.nan)
    after, metrics = step(state, batch, key=jr.key(0))
    assert metrics.failed
    chex.assert_trees_all_equal(after.model, state.model)


def test_wrong_use_is_reported():
    error, key, batch = eqx.EquinoxRuntimeError, jr.key(0), jnp.ones((4, SIZE))
    gain = Gain(jnp.ones(SIZE))
    for drop in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"`drop` must lie in \[0, 1\), got"):
            DenoisingLoss(drop=drop)
    for entries in (jnp.zeros(3), -jnp.ones(3), jnp.array([1.0, jnp.nan])):
        with pytest.raises(error, match="`entries` must be finite and >= 0"):
            DenoisingLoss(entries=entries)
    with pytest.raises(ValueError, match="Gain has no `weight` of its own"):
        DenoisingLoss()(gain, batch, key=key)
    with pytest.raises(ValueError, match=r"`drop` is 0\.1, but the batch has no cond"):
        DenoisingLoss(weight=flat, drop=0.1)(gain, batch, key=key)
    with pytest.raises(ValueError, match="`key` must be a key"):
        DenoisingLoss(weight=flat)(gain, batch, key=None)
    for bad in ((batch, jnp.ones((3, 1))), jnp.ones((0, SIZE)), jnp.ones(())):
        with pytest.raises(ValueError, match="one leading axis of at least 1"):
            DenoisingLoss(weight=flat)(gain, bad, key=key)
    with pytest.raises(ValueError, match=r"`entries` of shape \(2,\) must be a number"):
        DenoisingLoss(weight=flat, entries=jnp.ones(2))(gain, batch, key=key)
    with pytest.raises(ValueError, match=r"`weight` of shape \(2,\) must be a number"):
        DenoisingLoss(weight=lambda s: jnp.ones(2))(gain, batch, key=key)
    assert isinstance(DenoisingLoss().noise, White)
