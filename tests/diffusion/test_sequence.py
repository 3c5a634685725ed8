import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jaxtyping import Array

from skyens.diffusion import (
    EDM,
    DenoisingLoss,
    GaussianDenoiser,
    LatentSpace,
    Preconditioned,
    SequenceForecast,
    time_features,
)
from skyens.dynamics import rollout
from skyens.training import trainable

CHANNELS, FRAMES, HOURS = 2, 2, 6
MEMORY = 0.8  # of an autoregressive process, from one frame to the next
SCHEDULE = EDM(0.01, 40.0)


class Scaled(eqx.Module):
    """An autoencoder that is one factor."""

    factor: Array

    def encode(self, field):
        return field * self.factor.astype(field.dtype)

    def decode(self, latent):
        return latent / self.factor.astype(latent.dtype)


class NextFrames(eqx.Module):
    """The exact denoiser of the next frames of an autoregressive process.

    Each channel relaxes to a mean that follows the hour of the day at the start.
    """

    shift: Array

    def __call__(self, x, sigma, *, condition=None):
        assert condition is not None
        centre = self.shift.astype(x.dtype) * condition.vector[0]
        means = [MEMORY**n * condition.fields + centre for n in (1, 2)]
        covariance = np.kron(
            (1 - MEMORY**2) * np.array([[1, MEMORY], [MEMORY, 1 + MEMORY**2]]),
            np.eye(CHANNELS),
        )
        denoiser = GaussianDenoiser(
            jnp.concatenate(means), jnp.asarray(covariance, x.dtype)
        )
        return denoiser(x, sigma)


def forecast(shift=0.0, frames=FRAMES, hours=HOURS, steps=60):
    space = LatentSpace(
        Scaled(jnp.asarray(0.1)), jnp.full(CHANNELS, 3.0), jnp.full(CHANNELS, 0.5)
    )
    return SequenceForecast(
        NextFrames(jnp.asarray(shift)),
        space,
        SCHEDULE,
        frames=frames,
        hours=hours,
        steps=steps,
    )


START = jnp.array([45.0, 10.0])  # latents (0.1 x - 3) / 0.5 of 3 and -4


def test_a_rollout_is_the_process_it_was_drawn_from():
    step = forecast()
    state = step.start(START, 5)
    run = lambda key: rollout(step, state, 2, key=key, reduce=lambda s: s["frames"])
    latents = np.asarray(jax.jit(jax.vmap(run))(jr.split(jr.key(0), 1000)))
    latents = latents.reshape(1000, 2 * FRAMES, CHANNELS)
    lead = np.arange(1, 5)
    mean = MEMORY ** lead[:, None] * np.array([3.0, -4.0])
    variance = 1 - MEMORY ** (2 * lead)
    chance = 5 / np.sqrt(1000)
    # The start of the sampler, pure noise, is off by mean * std / sigma_max.
    np.testing.assert_allclose(latents.mean(0), mean, atol=chance + 4 / 40)
    expected = np.broadcast_to(variance[:, None], (4, CHANNELS))
    np.testing.assert_allclose(latents.var(0), expected, rtol=chance * 2**0.5 + 0.05)
    first, later = latents[:, 1, 0], latents[:, 2, 0]  # across the two draws
    slope = np.cov(first, later)[0, 1] / first.var(ddof=1)
    assert abs(slope - MEMORY) < chance


def test_the_hour_goes_on_and_reaches_the_denoiser():
    step = forecast(shift=1.0)
    run = lambda hour: rollout(step, step.start(START, hour), 2, key=jr.key(1))
    states = jax.jit(jax.vmap(run))(jnp.array([0, 12]))
    np.testing.assert_array_equal(states["hour"], [[12, 24], [24, 36]])
    # The same noise, at noon instead of midnight: opposite phases of the day.
    change = states["frames"][0, 0] - states["frames"][1, 0]
    chex.assert_trees_all_close(change, jnp.full((FRAMES, CHANNELS), 2.0), atol=0.05)


def test_fields_are_decoded_and_the_start_is_the_field():
    step = forecast()
    state = step.start(START, 7)
    assert state["frames"].shape == (FRAMES, CHANNELS)
    assert state["hour"] == 7
    expected = jnp.broadcast_to(START[None], (FRAMES, CHANNELS))
    chex.assert_trees_all_close(step.fields(state), expected, rtol=1e-12)


def test_float32_fields_give_float32_forecasts():
    step = forecast()
    state = step.start(START.astype(jnp.float32), 7)
    after = jax.jit(lambda key: step(state, key=key))(jr.key(2))
    assert step.fields(after).dtype == jnp.float32
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)


@settings(deadline=None, max_examples=25)
@given(first=st.lists(st.integers(0, 95), min_size=3, max_size=3))
def test_examples_are_frames_of_the_record_and_what_came_before(first):
    latents = jnp.arange(120.0)[:, None, None] + jnp.array([0.0, 0.5])[None, :, None]
    clean, condition = forecast(hours=12).examples(latents, 100, jnp.asarray(first))
    assert condition.fields is not None
    start = np.asarray(first)[:, None]
    expected = start + np.array([[12, 12.5, 24, 24.5]])
    chex.assert_trees_all_close(clean[..., 0], expected)
    chex.assert_trees_all_close(condition.fields[..., 0], start + np.array([[0, 0.5]]))
    hours = time_features(100 + jnp.asarray(first))
    chex.assert_trees_all_close(condition.vector, hours)


def test_a_record_may_be_as_coarse_as_the_frames():
    latents = jnp.arange(10.0)[:, None]
    step, first = forecast(), np.array([0, 7])
    clean, condition = step.examples(latents, 100, first, spacing=6)
    np.testing.assert_array_equal(clean, [[1, 2], [8, 9]])
    hours = time_features(jnp.array([100, 142]))
    chex.assert_trees_all_close(condition.vector, hours)


def test_examples_are_what_a_loss_takes_and_a_forecast_repeats():
    step = forecast()
    latents = jr.normal(jr.key(3), (40, CHANNELS), jnp.float32)
    heard = []

    def network(x, level, *, condition=None):
        heard.append(jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), condition))
        return jnp.zeros_like(x)

    batch = step.examples(latents, 5, np.arange(4))
    loss = DenoisingLoss(drop=0.1)(Preconditioned(network), batch, key=jr.key(0))
    assert jnp.isfinite(loss)
    again = eqx.tree_at(lambda s: s.denoiser, step, Preconditioned(network))
    again(step.start(START.astype(jnp.float32), 5), key=jr.key(0))
    assert heard[0] == heard[-1]


def test_time_features_turn_with_the_day_and_the_year():
    days = np.array(["1800-01-01", "1979-03-21", "2024-06-30", "2031-12-31"])
    moments = days.astype("datetime64[h]") + np.array([0, 6, 12, 23])
    since = (moments - np.datetime64("1800-01-01", "h")).astype(int)
    found = np.asarray(jax.jit(time_features)(jnp.asarray(since)))
    day = 2 * np.pi * np.array([0, 6, 12, 23]) / 24
    np.testing.assert_allclose(found[:, 0], np.cos(day), atol=1e-12)
    np.testing.assert_allclose(found[:, 1], np.sin(day), atol=1e-12)
    # The calendar's day of the year is off by up to two days of the Julian year's.
    start = moments.astype("datetime64[Y]").astype("datetime64[h]")
    year = 2 * np.pi * (moments - start).astype(int) / 8766
    assert np.hypot(
        *(found[:, 2:] - np.stack([np.cos(year), np.sin(year)], 1)).T
    ).max() < (2.1 * 2 * np.pi / 365)


def test_only_the_denoiser_is_trained():
    step = forecast()
    chosen = eqx.filter(step, trainable(step))
    assert len(jax.tree.leaves(chosen)) == 1
    assert len(jax.tree.leaves(chosen.denoiser)) == 1


def test_wrong_use_is_reported():
    for name in ("frames", "hours", "steps"):
        with pytest.raises(ValueError, match=f"counts must be .* {{'{name}': 0}}"):
            forecast(**{name: 0})
    step, record = forecast(), jnp.zeros((20, CHANNELS))
    state = step.start(START, 0)
    with pytest.raises(ValueError, match="`key` must be a key"):
        step(state, key=None)
    with pytest.raises(ValueError, match="takes no `forcing`"):
        step(state, jnp.ones(2), key=jr.key(0))
    with pytest.raises(ValueError, match="a multiple of `spacing`, got 4"):
        step.examples(record, 0, np.array([0]), spacing=4)
    for first in (-1, 8):
        with pytest.raises(eqx.EquinoxRuntimeError, match=r"must lie in \[0, 7\]"):
            step.examples(record, 0, np.array([first]))
