"""A learned step: a small stochastic SFNO, trained on worlds the physics makes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from skyens import dynamics, nn, scores, sphere, training
from skyens.demo._world import MEMORY_HOURS, STEP_HOURS, Analyses, _value, physics
from skyens.dynamics import Purpose, StochasticStep, run_key

CHANNELS = nn.Channels(["geopotential_height"], ["m"])
WORLDS, WORLD_STEPS = 60, 8
# Sizes of the perturbations the worlds start from, m. The broad ones, below degree 6
# and in every other world, teach the step not to drift where no analysis has been.
WORLD_SPREAD, BROAD_SPREAD, BROAD_LMAX = 15.0, 80.0, 5
BATCH, ENSEMBLE = 4, 2
UPDATES = 48  # per epoch
ROLLOUT = 3  # steps in the second half of the epochs
ALPHA = 0.95  # almost fair
LEARNING_RATE = 3e-3
EMA_DECAY = 0.98


def make_worlds(
    step: StochasticStep, analyses: Analyses, *, key: Key[Array, ""]
) -> Float[Array, "world time latitude longitude"]:
    """Return worlds that the physics and its errors make of perturbed analyses.

    They start from the ten analyses of the first time alone; no verification time is
    ever seen. Each world counts twice: seen from the other hemisphere it obeys the same
    equations, if not quite the same noise.
    """
    model = physics(analyses.grid)
    start = jnp.asarray(analyses.height[np.arange(WORLDS) % 10, 0])
    power = jnp.asarray(sphere.matern_spectrum(model.sht.lmax, 0.15), start.dtype)
    field = sphere.GaussianRandomField(model.sht, power)
    few = jnp.where(jnp.arange(power.size) <= BROAD_LMAX, 1, 0).astype(power.dtype)
    broad = sphere.GaussianRandomField(model.sht, few)
    sizes = WORLD_SPREAD * jnp.linspace(0.2, 1.5, WORLDS, dtype=start.dtype)
    broads = BROAD_SPREAD * jnp.linspace(0, 1, WORLDS, dtype=start.dtype)
    broads = jnp.where(jnp.arange(WORLDS) % 2 == 1, broads[::-1], 0)

    def world(start, size, broad_size, key):
        perturb, offset, noise, run = jr.split(key, 4)
        pattern = model.height(field.coefficients(perturb))
        value = start + size * pattern / jnp.std(pattern)
        pattern = broad.sample(offset)
        value = value + broad_size * pattern / jnp.std(pattern)
        state = step.start(value, key=noise)
        path = dynamics.rollout(step, state, WORLD_STEPS, key=run, reduce=_value)
        return jnp.concatenate([value[None], path])

    keys = jr.split(key, WORLDS)
    make = eqx.filter_jit(jax.vmap(world))
    blocks = np.split(np.arange(WORLDS), 6)
    worlds = jnp.concatenate(
        [
            make(start[block], sizes[block], broads[block], keys[block])
            for block in training.progress(blocks, description="make worlds")
        ]
    )
    return jnp.concatenate([worlds, worlds[..., ::-1, :]])


def build_step(grid: dict, width: int, blocks: int, lmax: int, noise_channels: int):
    """Return the untrained step of these hyperparameters, for checkpoints to fill."""
    network = nn.SFNO(
        sphere.Grid(**grid),
        1,
        1,
        width=width,
        blocks=blocks,
        lmax=lmax,
        noise_channels=noise_channels,
        key=jr.key(0),
    )
    power = jnp.asarray(sphere.matern_spectrum(lmax, 0.2), jnp.result_type(float))
    field = sphere.GaussianRandomField(network.inner, power)
    # Half of the noise lasts as the physics' errors do; half is new at each step, for
    # what the network itself gets wrong.
    memory = float(np.exp(-STEP_HOURS / MEMORY_HOURS))
    processes = [
        sphere.AutoregressiveField(field, memory if i % 2 == 0 else 0.0)
        for i in range(noise_channels)
    ]
    one = jnp.ones(1, jnp.float32)  # as the worlds are
    rows = jnp.ones((1, network.sht.grid.n_latitude), one.dtype)
    return nn.NeuralStep(
        network,
        nn.Normaliser(0 * one, one),
        one,
        processes,
        bounds=nn.Normaliser(0 * rows, rows),
    )


def hyperparameters(grid: sphere.Grid) -> dict[str, Any]:
    """Return what `build_step` takes."""
    sizes = dict(width=24, blocks=3, lmax=27, noise_channels=4)
    return {"grid": dataclasses.asdict(grid), **sizes}


def make_optimiser(epochs: int) -> optax.GradientTransformation:
    """Return Adam with clipped gradients and a rate that falls to 0 over all epochs."""
    schedule = optax.cosine_decay_schedule(LEARNING_RATE, max(epochs * UPDATES, 1))
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))


def initial_training(
    worlds: Float[Array, "world time latitude longitude"],
    grid: sphere.Grid,
    epochs: int,
    *,
    key: Key[Array, ""],
) -> training.TrainState:
    """Return the state before the first update: scaled to the worlds, weights drawn."""
    step = build_step(**hyperparameters(grid))
    network = nn.SFNO(
        grid,
        1,
        1,
        **{k: v for k, v in hyperparameters(grid).items() if k != "grid"},
        key=key,
    )
    normaliser = nn.Normaliser(worlds.mean()[None], worlds.std()[None])
    change = jnp.std(worlds[:, 1:] - worlds[:, :-1])[None]
    row = lambda statistic: statistic(worlds, axis=(0, 1, 3))[None]
    bounds = nn.Normaliser(row(jnp.mean), row(jnp.std))
    step = eqx.tree_at(
        lambda step: (step.network, step.normaliser, step.change, step.bounds),
        step,
        (network, normaliser, change, bounds),
    )
    return training.TrainState.init(step, make_optimiser(epochs))


def make_loss(grid: sphere.Grid) -> Callable:
    """Return the almost fair CRPS of a few members over a short rollout."""
    area = jnp.asarray(grid.weights / grid.weights.mean())[None, None, :, None]

    def loss(step, batch, *, key):
        truth = batch[:, 1:]

        def members(start, key):
            keys = jr.split(key, ENSEMBLE)
            one = lambda key: dynamics.rollout(
                step,
                step.start(start[None], key=key),
                truth.shape[1],
                key=key,
                reduce=_value,
            )
            return jax.vmap(one)(keys)[:, :, 0]

        ensemble = jax.vmap(members)(batch[:, 0], jr.split(key, len(batch)))
        crps = scores.crps(ensemble, truth, alpha=ALPHA, axis=1) / step.change[0]
        return jnp.mean(crps * area.astype(crps.dtype))

    return loss


def sample_windows(
    worlds: Float[Array, "world time latitude longitude"],
    steps: int,
    *,
    key: Key[Array, ""],
) -> Float[Array, "update batch window latitude longitude"]:
    """Return an epoch's windows of `steps` steps, each turned by a random longitude.

    The physics knows no longitude, so a turned world is another world.
    """
    count = UPDATES * BATCH
    which, when, turn = jr.split(key, 3)
    world = jr.randint(which, (count,), 0, worlds.shape[0])
    first = jr.randint(when, (count,), 0, worlds.shape[1] - steps)
    turns = jr.randint(turn, (count,), 0, worlds.shape[-1])

    def window(world, first, turn):
        path = jax.lax.dynamic_slice_in_dim(worlds[world], first, steps + 1)
        return jnp.roll(path, turn, axis=-1)

    windows = jax.vmap(window)(world, first, turns)
    return windows.reshape(UPDATES, BATCH, *windows.shape[1:])


def train(
    step: StochasticStep,
    analyses: Analyses,
    epochs: int,
    checkpoint: Path,
    *,
    key: Key[Array, ""],
    signature: dict[str, Any],
) -> tuple[nn.NeuralStep, dict[str, Any]]:
    """Return the trained step and what to say of its training.

    The first half of the epochs trains single steps, the second half short rollouts.
    After each epoch the state goes to `checkpoint`; a run with the same `signature`
    goes on from there, or reuses it when complete.
    """
    grid = analyses.grid
    key = run_key(key, Purpose.TRAIN, start=analyses.time[0])
    world_key, network_key, batch_key, loss_key = jr.split(key, 4)
    optimiser = make_optimiser(epochs)
    done, losses, state = 0, [], None
    if checkpoint.exists():
        build = lambda **sizes: training.TrainState.init(build_step(**sizes), optimiser)
        stored = training.load(checkpoint, build)
        if stored.metadata["signature"] == signature:
            state, done = stored.state, stored.metadata["epochs_done"]
            losses = stored.metadata["losses"]
    if done < epochs or state is None:
        worlds = make_worlds(step, analyses, key=world_key)
        if state is None:
            state = initial_training(worlds, grid, epochs, key=network_key)
        update = training.make_step(make_loss(grid), optimiser, ema_decay=EMA_DECAY)
        advance = eqx.filter_jit(training.scan_steps)
        chunks = [(epoch, part) for epoch in range(done, epochs) for part in range(8)]
        for epoch, part in training.progress(chunks, description="train"):
            steps = 1 if epoch < epochs / 2 else ROLLOUT
            if part == 0:
                epoch_key = jr.fold_in(batch_key, epoch)
                windows = sample_windows(worlds, steps, key=epoch_key)
                seen = []
            size = UPDATES // 8
            batches = windows[part * size : (part + 1) * size]
            state, metrics = advance(update, state, batches, key=loss_key)
            seen.append(float(metrics.loss.mean()))
            if part == 7:
                losses = [*losses, float(np.mean(seen))]
                training.save(
                    checkpoint,
                    state,
                    hyperparameters=hyperparameters(grid),
                    channels=CHANNELS,
                    normaliser=state.model.normaliser,
                    metadata={
                        "signature": signature,
                        "epochs_done": epoch + 1,
                        "losses": losses,
                    },
                )
    report = {"losses": losses, "failures": int(state.failures), "reused": done}
    return training.ema_model(state), report
