import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.diffusion import (
    DAPS,
    EDM,
    GaussianDenoiser,
    Heun,
    PlugAndPlay,
    Preconditioned,
    split_gibbs,
)
from skyens.observations import Diagonal, Linear, Observation

RNG = np.random.default_rng(0)
FACTOR = RNG.normal(size=(3, 3)) / 3**0.5
COVARIANCE = FACTOR @ FACTOR.T + 0.1 * np.eye(3)
COVARIANCE = (COVARIANCE + COVARIANCE.T) / 2
MEAN, MATRIX = RNG.normal(size=3), RNG.normal(size=(2, 3))
NOISE = np.diag([0.04, 0.25])
VALUE = MATRIX @ MEAN + RNG.normal(size=2)
PRIOR = GaussianDenoiser(jnp.asarray(MEAN), jnp.asarray(COVARIANCE))
OBSERVATION = Observation(VALUE, Linear(MATRIX), Diagonal(np.sqrt(np.diag(NOISE))))
COUNT = 1000


@eqx.filter_jit
def draws(method, schedule, steps):
    one = lambda key: split_gibbs(
        PRIOR, schedule, OBSERVATION, (3,), key=key, method=method, steps=steps
    )
    return jax.vmap(one)(jr.split(jr.key(0), COUNT))


def kalman(mean, covariance):
    """Return the posterior's mean and covariance, and the gain, in NumPy."""
    gain = covariance @ MATRIX.T
    gain = gain @ np.linalg.inv(MATRIX @ gain + NOISE)
    kept = np.eye(3) - gain @ MATRIX
    return mean + gain @ (VALUE - MATRIX @ mean), kept @ covariance, gain


def test_plug_and_play_samples_the_posterior():
    samples = np.asarray(draws(PlugAndPlay(), EDM(0.03, 20.0), 40))
    mean, covariance, _ = kalman(MEAN, COVARIANCE)
    # Chance is 0.03 deviations of the mean and 0.02 of a deviation.
    deviation = np.sqrt(np.diag(covariance))
    assert (np.abs(samples.mean(0) - mean) < 0.2 * deviation).all()
    assert (np.abs(samples.std(0) / deviation - 1) < 0.2).all()


def test_plug_and_play_at_a_fixed_level_has_the_law_of_the_split():
    # Levels that hardly fall: the law is that of errors widened by the level.
    flat = EDM(0.02, 0.7)
    eight = lambda steps: jnp.append(
        jnp.linspace(0.7, 0.699, steps), jnp.array([0.02, 0])
    )

    class Flat(eqx.Module):
        alpha: object = flat.alpha
        sigma: object = flat.sigma

        def sigmas(self, steps):
            return eight(steps - 1)

    samples = np.asarray(draws(PlugAndPlay(20), Flat(), 30))
    noise = NOISE + 0.7**2 * MATRIX @ MATRIX.T
    gain = COVARIANCE @ MATRIX.T
    gain = gain @ np.linalg.inv(MATRIX @ gain + noise)
    mean = MEAN + gain @ (VALUE - MATRIX @ MEAN)
    covariance = COVARIANCE - gain @ MATRIX @ COVARIANCE
    deviation = np.sqrt(np.diag(covariance))
    assert (np.abs(samples.mean(0) - mean) < 0.15 * deviation).all()
    assert (np.abs(samples.std(0) / deviation - 1) < 0.1).all()


def test_daps_has_the_moments_of_its_recursion():
    # Flow, analysis and noise are all linear: the moments follow in NumPy.
    schedule, steps, spread = EDM(0.02, 20.0), 30, 0.8
    samples = np.asarray(draws(DAPS(spread, 12), schedule, steps))
    values, basis = np.linalg.eigh(COVARIANCE)
    mean, covariance = np.zeros(3), np.zeros((3, 3))
    for sigma in np.asarray(schedule.sigmas(steps + 1))[:-2]:
        covariance = covariance + sigma**2 * np.eye(3)
        flow = (basis * np.sqrt(values / (values + sigma**2))) @ basis.T
        mean, covariance = MEAN + flow @ (mean - MEAN), flow @ covariance @ flow.T
        guess = spread**2 * sigma**2 / (spread**2 + sigma**2) * np.eye(3)
        moved, left, gain = kalman(mean, guess)
        kept = np.eye(3) - gain @ MATRIX
        mean, covariance = moved, kept @ covariance @ kept.T + left
    deviation = np.sqrt(np.diag(covariance))
    assert (np.abs(samples.mean(0) - mean) < 0.15 * deviation).all()
    assert (np.abs(samples.std(0) / deviation - 1) < 0.1).all()


def test_float32_and_conditions():
    denoiser = lambda x, sigma, *, condition=0.0: (
        condition + (x - condition) / (1 + jnp.asarray(sigma, x.dtype) ** 2)
    )
    value = np.full(2, 3.0, np.float32)
    observation = Observation(value, lambda x: x, Diagonal(1.0))
    for method in (PlugAndPlay(2), DAPS(inner=2)):
        x = split_gibbs(
            denoiser,
            EDM(0.1, 5.0),
            observation,
            (2,),
            key=jr.key(0),
            method=method,
            steps=2,
            condition=jnp.ones(2, jnp.float32),
            dtype=jnp.float32,
        )
        assert x.dtype == jnp.float32
        assert jnp.isfinite(x).all()


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="`inner` must be at least 2, got 1"):
        PlugAndPlay(1)
    with pytest.raises(ValueError, match="`inner` must be at least 2, got 0"):
        DAPS(inner=0)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`spread` must be above 0"):
        DAPS(-1.0)
    with pytest.raises(ValueError, match="`steps` must be at least 1, got 0"):
        split_gibbs(PRIOR, EDM(), OBSERVATION, (3,), key=jr.key(0), steps=0)
    trained = Preconditioned(lambda x, level, *, condition=None: x, sigma_max=5.0)
    # min(40 / 5, sqrt(2) - 1) above the first level
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"the first is 7\.07107"):
        split_gibbs(
            trained,
            EDM(0.1, 5.0),
            OBSERVATION,
            (3,),
            key=jr.key(0),
            method=DAPS(sampler=Heun(churn=40.0)),
            steps=2,
        )
    wider = lambda x, sigma, *, condition=None: jnp.append(x, x)
    with pytest.raises(ValueError, match="`denoiser` must keep shape"):
        split_gibbs(wider, EDM(), OBSERVATION, (3,), key=jr.key(0), steps=1)
