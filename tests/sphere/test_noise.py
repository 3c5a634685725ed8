import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax import lax

from skyens import sphere
from skyens.sphere import AutoregressiveField, GaussianRandomField, SphericalHarmonics

LMAX = 8
SHT = SphericalHarmonics(sphere.equiangular(10, 18), LMAX)
DEGREES = np.arange(LMAX + 1)
PATHS = 1000
advance = eqx.filter_jit(AutoregressiveField.__call__)
start = eqx.filter_jit(AutoregressiveField.start)
# kT of FourCastNet 3's configuration, to the digits printed there.
PUBLISHED_TIMES = [
    *[3.0806e-5, 1.2322e-4, 4.9289e-4, 1.9716e-3],
    *[7.8862e-3, 3.1545e-2, 1.2618e-1, 5.0472e-1],
]


def test_an_autoregressive_field_keeps_its_law_and_correlates():
    sht = SphericalHarmonics(sphere.gauss_legendre(6, 12), 4)
    field = GaussianRandomField(sht, jnp.ones(5, jnp.float32))
    process = AutoregressiveField(field, 0.8)

    def path(key):
        start, first, second = jr.split(key, 3)
        before = process.start(start)
        middle = process(before, key=first)
        return jnp.stack([before, middle, process(middle, key=second)])

    paths = jax.jit(jax.vmap(lambda k: sphere.to_real(path(k))))
    x = np.asarray(paths(jr.split(jr.key(2), 4000)))
    assert x.dtype == np.float32
    correlation = lambda i, j: np.sum(x[:, i] * x[:, j]) / np.sum(x[:, i] ** 2)
    # 4,000 paths of 25 coordinates: standard errors of at most 1 / sqrt(1e5).
    np.testing.assert_allclose(correlation(0, 1), 0.8, atol=0.02)
    np.testing.assert_allclose(correlation(0, 2), 0.64, atol=0.02)
    np.testing.assert_allclose(x[:, 2].var(), x[:, 0].var(), rtol=0.03)


@pytest.mark.parametrize("correlation", [0.0, 1.0])
def test_without_and_with_full_memory(correlation):
    field = GaussianRandomField(SHT, jnp.ones(LMAX + 1))
    draw = eqx.filter_jit(field.coefficients)
    before = draw(jr.key(0))
    after = advance(AutoregressiveField(field, correlation), before, key=jr.key(1))
    expected = before if correlation else draw(jr.key(1))
    chex.assert_trees_all_equal(after, expected)

    def power_after(correlation):
        process = AutoregressiveField(field, correlation)
        return sphere.power_spectrum(process(before, key=jr.key(1))).sum()

    gradient = jax.jit(jax.grad(power_after))
    chex.assert_tree_all_finite(gradient(jnp.asarray(correlation)))


@pytest.fixture(scope="module")
def noise():
    process = sphere.multiscale_noise(SHT, decay=0.5, std=[2.0] * 8)

    def path(key):
        first, *keys = jr.split(key, 4)
        state = process.start(first)
        step = lambda state, key: (process(state, key=key), state)
        last, before = lax.scan(step, state, jnp.stack(keys))
        return jnp.concatenate([before, last[None]])

    return process, jax.jit(jax.vmap(path))(jr.split(jr.key(0), PATHS))


def test_multiscale_noise_has_the_heat_kernels_of_fourcastnet(noise):
    process, states = noise
    assert states.shape == (PATHS, 4, 8, LMAX + 1, LMAX + 1)
    kernel = np.exp(-np.outer(PUBLISHED_TIMES, DEGREES * (DEGREES + 1)))
    norm = np.sum((2 * DEGREES + 1) * kernel, axis=1, where=DEGREES >= 1)
    # Squared, and over 1 - phi^2: sigma_l = sigma sqrt(4 pi (1 - phi^2) / norm) e^...
    variance = 2.0**2 * 4 * np.pi * kernel / norm[:, None] * (DEGREES >= 1)
    expected = variance * (2 * DEGREES + 1)
    chex.assert_trees_all_close(process.field.power, jnp.asarray(expected), rtol=4e-3)
    power = np.asarray(jax.jit(sphere.power_spectrum)(states)).mean(0)
    errors = np.sqrt(2 / (2 * DEGREES + 1) / PATHS)
    assert np.all(np.abs(power - expected) <= 5 * errors * expected)


def test_multiscale_noise_is_stationary_and_as_loud_at_the_poles(noise):
    _, states = noise
    fields = eqx.filter_jit(SHT.synthesis)(states[:, jnp.array([0, -1])])
    variance = np.square(np.asarray(fields)).mean(0)
    # 2,880 values, each with a standard error of sqrt(2 / N).
    np.testing.assert_allclose(variance, 4, rtol=5.5 * np.sqrt(2 / PATHS))


def test_multiscale_noise_forgets_as_its_decay_says(noise):
    _, states = noise
    x = np.asarray(jax.jit(sphere.to_real)(states))
    for lag in (1, 2, 3):
        phi = np.exp(-0.5 * lag)
        together = np.sum(x[:, 0] * x[:, lag], axis=(0, 2))
        power = np.sum(x[:, 0] ** 2, axis=(0, 2))
        # Given the start, the sum errs by sqrt(1 - phi^2) of its root sum of squares,
        # coarsest where one degree of three coordinates holds nearly all the power.
        error = np.sqrt((1 - phi**2) / (3 * PATHS))
        assert np.all(np.abs(together / power - phi) < 5 * error)


def test_channels_of_noise_are_independent(noise):
    _, states = noise
    x = np.asarray(jax.jit(sphere.to_real)(states[:, 0]))[:, :, 1:]
    x = x / np.sqrt(np.mean(x**2, axis=(0, 2), keepdims=True))
    across = np.einsum("pcb,pdb->cd", x, x) / (PATHS * x.shape[-1])
    off = across[~np.eye(8, dtype=bool)]
    # Three coordinates hold nearly all power of the broadest channels.
    assert np.abs(off).max() < 5 / np.sqrt(3 * PATHS)


def test_channels_may_have_their_own_scales_memories_and_sizes():
    process = sphere.multiscale_noise(
        SHT, length_scales=[0.1, 1.0], decay=[0.0, 50.0], std=[1.0, 3.0]
    )
    chex.assert_trees_all_close(process.correlation, jnp.exp(jnp.array([0.0, -50.0])))
    variance = process.field.power.sum(-1) / (4 * np.pi)
    chex.assert_trees_all_close(variance, jnp.array([1.0, 9.0]))
    state = start(process, jr.key(0))
    later = advance(process, state, key=jr.key(1))
    chex.assert_trees_all_equal(later[0], state[0])
    fresh = eqx.filter_jit(process.field.coefficients)(jr.key(1))
    chex.assert_trees_all_close(later[1], fresh[1], atol=1e-12)


def test_state_keeps_its_dtype():
    process = sphere.multiscale_noise(SHT)
    state = start(process, jr.key(0))
    assert state.dtype == jnp.complex128
    single = advance(process, state.astype(jnp.complex64), key=jr.key(1))
    assert single.dtype == jnp.complex64


def test_wrong_use_is_reported():
    field = GaussianRandomField(SHT, jnp.ones((2, LMAX + 1)))
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"must lie in \[0, 1\]"):
        AutoregressiveField(field, 1.1)
    with pytest.raises(ValueError, match=r"one for each channel.*\(2,\), got.*\(3,\)"):
        AutoregressiveField(field, jnp.ones(3))
    with pytest.raises(ValueError, match=r"`decay`.*each of the 8 channels"):
        sphere.multiscale_noise(SHT, decay=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"`std`.*not negative, got -1"):
        sphere.multiscale_noise(SHT, std=-1.0)
    with pytest.raises(ValueError, match=r"must be positive: 0.0"):
        sphere.multiscale_noise(SHT, length_scales=[0.0])
