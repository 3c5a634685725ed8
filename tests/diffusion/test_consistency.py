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
    EDM,
    ConsistencyLoss,
    Denoiser,
    DiagonalGaussianDenoiser,
    Euler,
    Method,
    Preconditioned,
    Renoise,
    sample,
)
from skyens.training import TrainState, make_step, scan_steps

SIZE = 3
VARIANCES = np.array([0.2, 1.0, 3.0])
TEACHER = DiagonalGaussianDenoiser(jnp.zeros(SIZE), jnp.asarray(VARIANCES))
SCHEDULE = EDM()


class Flow(eqx.Module):
    """Where the flow of independent Gaussians ends: exact for the right spreads."""

    log_std: Array

    def __call__(self, x, sigma, *, condition=None):
        ratio = jnp.asarray(sigma, x.dtype) / jnp.exp(self.log_std).astype(x.dtype)
        return x / jnp.sqrt(1 + ratio**2)


EXACT = Flow(jnp.asarray(np.log(VARIANCES) / 2))
CLEAN, Z = np.array([1.0, 2.0, 3.0]), np.array([0.3, -0.8, 1.1])


class Fixed(eqx.Module):
    """Noise that is always the same."""

    def __call__(self, shape, dtype, *, key):
        return jnp.asarray(Z, dtype)


@jax.jit
def between(loss, model, high, low):
    return loss.between(model, jnp.asarray(CLEAN), high, low, key=jr.key(0))


def pseudo_huber(error, c):
    return np.sqrt(np.mean(error**2) + c**2) - c


def test_without_teacher_it_compares_the_same_noise_at_two_levels():
    model, loss = Flow(jnp.zeros(SIZE)), ConsistencyLoss(SCHEDULE, noise=Fixed())
    at = lambda sigma: (CLEAN + sigma * Z) / np.sqrt(1 + sigma**2)
    for high, low in ((2.0, 1.5), (0.002, 0.0), (80.0, 40.0)):
        value = between(loss, model, jnp.asarray(high), jnp.asarray(low))
        expected = pseudo_huber(at(high) - at(low), 0.03)
        chex.assert_trees_all_close(value, expected, rtol=1e-9)


def test_with_a_teacher_the_exact_model_errs_by_the_step_of_heun():
    loss = ConsistencyLoss(SCHEDULE, teacher=TEACHER, noise=Fixed(), scale=10.0)
    steps = np.array([0.2, 0.1])
    values = [between(loss, EXACT, jnp.asarray(1.0), 1 - jnp.asarray(h)) for h in steps]
    # One step is wrong by h^3, and small distances are quadratic.
    np.testing.assert_allclose(np.log2(values[0] / values[1]), 6, atol=0.4)
    # Into 0 the step is one of Euler's, and ends at the denoised state.
    into_zero = between(loss, EXACT, jnp.asarray(0.5), jnp.asarray(0.0))
    shrink = VARIANCES / (VARIANCES + 0.25)
    error = (np.sqrt(shrink) - shrink) * (CLEAN + 0.5 * Z)
    chex.assert_trees_all_close(into_zero, pseudo_huber(error, 10.0), rtol=1e-9)
    assert between(loss, TEACHER, jnp.asarray(1.0), jnp.asarray(0.9)) > values[1] * 1e3


def test_the_target_is_not_moved():
    class Linear(eqx.Module):
        factor: Array

        def __call__(self, x, sigma, *, condition=None):
            return self.factor * x

    loss = ConsistencyLoss(SCHEDULE, noise=Fixed(), scale=1e3)
    high, low = jnp.asarray(2.0), jnp.asarray(1.0)
    slope = jax.grad(lambda m: between(loss, m, high, low))(Linear(jnp.asarray(0.5)))
    noisy, less_noisy = CLEAN + 2 * Z, CLEAN + Z
    # Of mean(error^2) / (2 scale), with `0.5 * less_noisy` held fixed.
    expected = np.mean(0.5 * (noisy - less_noisy) * noisy) / 1e3
    chex.assert_trees_all_close(slope.factor, expected, rtol=1e-4)


@pytest.mark.parametrize("teacher", [TEACHER, None], ids=["teacher", "data"])
def test_training_finds_the_flow(teacher):
    loss = ConsistencyLoss(EDM(0.02, 20.0), 60, teacher=teacher, scale=1.0)
    optimiser = optax.adam(optax.cosine_decay_schedule(0.05, 200))
    step = make_step(loss, optimiser)
    std = jnp.asarray(np.sqrt(VARIANCES))[None, None]
    batches = std * jr.normal(jr.key(1), (200, 120, SIZE))
    state = TrainState.init(Flow(jnp.zeros(SIZE)), optimiser)
    state, metrics = scan_steps(step, state, batches, key=jr.key(2))
    assert not metrics.failed.any()
    # Data alone are exact only for infinitely many levels.
    tolerance = 0.02 if teacher else 0.1
    chex.assert_trees_all_close(state.model.log_std, EXACT.log_std, atol=tolerance)


def test_one_step_of_either_method_is_one_evaluation():
    assert isinstance(Renoise(), Method)
    assert isinstance(EXACT, Denoiser)
    draw = lambda method: sample(
        EXACT, SCHEDULE, (SIZE,), key=jr.key(3), method=method, steps=1
    )
    chex.assert_trees_all_close(draw(Renoise()), draw(Euler()), rtol=1e-12)


def test_a_few_steps_of_the_exact_model_draw_the_exact_law():
    draw = lambda key: sample(
        EXACT, SCHEDULE, (SIZE,), key=key, method=Renoise(), steps=3
    )
    samples = jax.jit(jax.vmap(draw))(jr.split(jr.key(4), 4000))
    variance = np.asarray(samples).var(axis=0)
    np.testing.assert_allclose(variance, VARIANCES, rtol=5 * np.sqrt(2 / 4000))
    assert (abs(samples.mean(axis=0)) < 5 * np.sqrt(VARIANCES / 4000)).all()


def test_conditions_reach_model_and_teacher():
    heard = []

    def listen(x, sigma, *, condition=None):
        heard.append(condition)
        return x * condition

    loss = ConsistencyLoss(SCHEDULE, 3, teacher=listen)
    batch = jnp.ones((4, SIZE)), jnp.ones((4, 1))
    assert jnp.isfinite(loss(listen, batch, key=jr.key(0)))
    assert len(heard) == 4  # twice the teacher, twice the model
    assert all(condition.shape == (1,) for condition in heard)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_narrow_states_give_losses_and_finite_gradients_in_float32(dtype):
    network = lambda x, level, *, condition=None: jnp.zeros_like(x)
    loss = ConsistencyLoss(SCHEDULE, 6, teacher=Preconditioned(network))
    batch = jr.normal(jr.key(5), (12, SIZE), dtype)
    model = Flow(jnp.zeros(SIZE, jnp.float32))
    value, slope = eqx.filter_value_and_grad(lambda m: loss(m, batch, key=jr.key(0)))(
        model
    )
    assert value.dtype == jnp.float32
    chex.assert_tree_all_finite((value, slope))


def test_wrong_use_is_reported(given_levels):
    with pytest.raises(ValueError, match="`steps` must be at least 1, got 0"):
        ConsistencyLoss(SCHEDULE, 0)
    teacher = Preconditioned(lambda x, level, *, condition=None: x, sigma_max=20.0)
    with pytest.raises(eqx.EquinoxRuntimeError, match="the first is 80"):
        ConsistencyLoss(SCHEDULE, teacher=teacher)
    with pytest.raises(eqx.EquinoxRuntimeError, match="must be finite, decrease"):
        ConsistencyLoss(given_levels(jnp.array([1.0, 2.0, 0.0])), 2)
    for scale in (0.0, -1.0, jnp.nan):
        with pytest.raises(eqx.EquinoxRuntimeError, match="`scale` must be positive"):
            ConsistencyLoss(SCHEDULE, scale=scale)
    loss = ConsistencyLoss(SCHEDULE, entries=jnp.ones(2))
    with pytest.raises(ValueError, match="`key` must be a key"):
        loss(EXACT, jnp.ones((2, SIZE)), key=None)
    with pytest.raises(ValueError, match=r"`entries` of shape \(2,\) must be a number"):
        loss(EXACT, jnp.ones((2, SIZE)), key=jr.key(0))
    with pytest.raises(ValueError, match="one leading axis of at least 1"):
        loss(EXACT, jnp.ones((0, SIZE)), key=jr.key(0))
