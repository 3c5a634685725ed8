"""Networks trained from samples alone, held against the exact law."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from skyens import nn, sphere
from skyens.diffusion import (
    EDM,
    DenoisingLoss,
    GaussianMixtureDenoiser,
    LogNormalLevels,
    Preconditioned,
    Spherical,
    White,
    sample,
)
from skyens.training import TrainState, ema_model, make_step, scan_steps

pytestmark = pytest.mark.slow

SIZE = 8
SCALE = 129**0.5  # standard deviation of the mixture with equal weights
GRID, LMAX = sphere.gauss_legendre(16, 32), 15
SHT = sphere.SphericalHarmonics(GRID, LMAX)


def train(network, loss, draw, updates, rate, ema_decay):
    """Return the averaged denoiser after `updates`, of batches from `draw(key)`."""
    single = lambda leaf: (
        leaf.astype(jnp.float32) if eqx.is_inexact_array(leaf) else leaf
    )
    denoiser = jax.tree.map(single, Preconditioned(network))
    optimiser = optax.adam(optax.cosine_decay_schedule(rate, updates))
    step = make_step(loss, optimiser, ema_decay=ema_decay)
    state = TrainState.init(denoiser, optimiser)

    @eqx.filter_jit
    def some(state, key):
        batches = jax.vmap(draw)(jr.split(key, 100))
        return scan_steps(step, state, batches, key=jr.key(1))

    for i in range(updates // 100):
        state, metrics = some(state, jr.fold_in(jr.key(2), i))
        assert not metrics.failed.any()
    return ema_model(state)


@eqx.filter_jit
def samples(denoiser, schedule, noise, shape, keys, steps, batch):
    """Return one sample for each key, so many at once."""
    draw = lambda key: sample(
        denoiser, schedule, shape, key=key, steps=steps, noise=noise, dtype=jnp.float32
    )
    return jax.lax.map(draw, keys, batch_size=batch)


def sliced_wasserstein(one, other):
    """Return the 2-distance of two equally large samples, over 500 directions."""
    directions = np.random.default_rng(0).normal(size=(one.shape[1], 500))
    directions /= np.linalg.norm(directions, axis=0)
    projected = [np.sort(np.asarray(x) @ directions, axis=0) for x in (one, other)]
    return np.sqrt(np.mean((projected[0] - projected[1]) ** 2))


def test_a_network_comes_near_the_closed_form_of_a_mixture():
    # 25 components on a square lattice, 8 standard deviations apart.
    rng = np.random.default_rng(0)
    corners = np.array([(8.0 * i, 8.0 * j) for i in range(-2, 3) for j in range(-2, 3)])
    means = np.tile(corners, (1, SIZE // 2)) / SCALE
    weights = rng.chisquare(1, size=25)
    weights /= weights.sum()
    centres, logits = jnp.asarray(means, jnp.float32), jnp.log(jnp.asarray(weights))

    def draw(key):
        which, where = jr.split(key)
        component = jr.categorical(which, logits, shape=(512,))
        return centres[component] + jr.normal(where, (512, SIZE), jnp.float32) / SCALE

    network = nn.MLP(SIZE, width=96, blocks=3, key=jr.key(0))
    trained = train(network, DenoisingLoss(), draw, 3000, 3e-3, 0.999)
    closed = GaussianMixtureDenoiser(
        jnp.asarray(means), 1 / SCALE**2, weights=jnp.asarray(weights)
    )
    component = rng.choice(25, p=weights, size=2000)
    truth = means[component] + rng.normal(size=(2000, SIZE)) / SCALE
    keys = jr.split(jr.key(3), (3, 2000))
    distance = lambda denoiser: np.mean(
        [
            sliced_wasserstein(
                samples(denoiser, EDM(), White(), (SIZE,), some, 35, 2000), truth
            )
            for some in keys
        ]
    )
    exact, learned = distance(closed), distance(trained)
    assert learned < 1.5 * exact


class Filters(eqx.Module):
    """Isotropic filters of one channel, gated by the level, and a pointwise rest.

    A field that no rotation changes in law has a denoiser that commutes with rotations.
    """

    into: nn.SpectralConv
    out: nn.SpectralConv
    waves: nn.FourierEmbedding
    gate: nn.GatedMLP
    rest: nn.GatedMLP

    def __init__(self, width, *, key):
        keys = jr.split(key, 4)
        self.into = nn.SpectralConv(LMAX, 1, width, key=keys[0])
        self.out = nn.SpectralConv(LMAX, width, 1, key=keys[1])
        self.waves = nn.FourierEmbedding(16)
        self.gate = nn.GatedMLP(16, 32, width, key=keys[2])
        self.rest = nn.GatedMLP(width, width, width, gain=0.01, key=keys[3])

    def __call__(self, x, level, *, condition=None):
        gate = self.gate(self.waves(level)[:, None, None])
        h = gate * SHT.synthesis(self.into(SHT.analysis(x)))
        return SHT.synthesis(self.out(SHT.analysis(h + self.rest(h))))


def test_spherical_fields_have_the_spectrum_of_those_learned_from():
    power = jnp.asarray(sphere.matern_spectrum(LMAX, 0.4), jnp.float32)
    field, noise = sphere.GaussianRandomField(SHT, power), Spherical(SHT)
    # Waves of these degrees stand out of the noise from level 4 down to 0.2.
    levels = LogNormalLevels(0.0, 1.2)
    area = jnp.asarray(GRID.weights, jnp.float32)[None, :, None]
    trained = train(
        Filters(16, key=jr.key(0)),
        DenoisingLoss(noise, levels, entries=area),
        lambda key: field.sample(key, (32, 1)),
        1500,
        1e-2,
        0.998,
    )
    keys = jr.split(jr.key(4), 3000)
    schedule = EDM(0.01, 80.0)
    drawn = samples(trained, schedule, noise, (1, *GRID.shape), keys, 60, 100)
    spectrum = np.asarray(SHT.power_spectrum(drawn[:, 0])).mean(axis=0)
    # Chance alone is 1.5 percent at degree 1, and 0.6 percent at degree 10.
    kept = slice(1, 2 * LMAX // 3 + 1)
    np.testing.assert_allclose(spectrum[kept], power[kept], rtol=0.05)
