import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest

from skyens.diffusion import Langevin, Perturbed
from skyens.observations import Dense, Diagonal, Linear, Observation, StudentT

RNG = np.random.default_rng(0)
MATRIX, VALUE = RNG.normal(size=(2, 3)), RNG.normal(size=2)
NOISE = np.array([[0.3, 0.1], [0.1, 0.5]])
X, STD, COUNT = RNG.normal(size=3), 0.8, 4000
draws = eqx.filter_jit(
    lambda step, observation, x, std: jax.vmap(
        lambda key: step(observation, x, std, key=key)
    )(jr.split(jr.key(0), COUNT))
)


def assert_moments(samples, mean, covariance):
    samples = np.asarray(samples)
    variances = np.diag(covariance)
    assert (np.abs(samples.mean(0) - mean) < 5 * np.sqrt(variances / COUNT)).all()
    chance = np.sqrt((np.outer(variances, variances) + covariance**2) / COUNT)
    assert (np.abs(np.cov(samples.T) - covariance) < 5 * chance).all()


def posterior(matrix, noise, value):
    precision = np.eye(3) / STD**2 + matrix.T @ np.linalg.solve(noise, matrix)
    covariance = np.linalg.inv(precision)
    right = X / STD**2 + matrix.T @ np.linalg.solve(noise, value)
    return covariance @ right, covariance


@pytest.mark.parametrize(
    "step",
    [Perturbed(), Perturbed(lx.Cholesky()), Langevin(20)],
    ids=["Perturbed", "Cholesky", "Langevin"],
)
def test_a_linear_observation_gives_the_gaussian_posterior(step):
    observation = Observation(VALUE, Linear(MATRIX), Dense(NOISE))
    samples = draws(step, observation, jnp.asarray(X), STD)
    assert_moments(samples, *posterior(MATRIX, NOISE, VALUE))


def test_masked_entries_say_nothing():
    hidden = np.array([np.nan, VALUE[1]])
    observation = Observation(hidden, Linear(MATRIX), Dense(NOISE))
    samples = draws(Perturbed(), observation, jnp.asarray(X), STD)
    assert_moments(samples, *posterior(MATRIX[1:], NOISE[1:, 1:], VALUE[1:]))


@pytest.mark.parametrize(
    ("operator", "error", "value"),
    [(jnp.arctan, Diagonal(0.1), 1.2), (lambda x: x, StudentT(0.3, 3.0), 4.0)],
    ids=["arctan", "robust"],
)
def test_langevin_samples_what_is_far_from_gaussian(operator, error, value):
    observation = Observation(np.array([value]), operator, error)
    z = jnp.linspace(-6, 8, 8001)
    log = jax.vmap(lambda z: observation.log_prob(z[None]))(z)
    log = np.asarray(log - (z - 1.0) ** 2 / (2 * 0.8**2))
    weights = np.exp(log - log.max())
    weights /= weights.sum()
    mean = weights @ np.asarray(z)
    deviation = np.sqrt(weights @ (np.asarray(z) - mean) ** 2)
    samples = np.asarray(draws(Langevin(200), observation, jnp.ones(1), 0.8))
    assert abs(samples.mean() - mean) < 5 * deviation / COUNT**0.5
    assert abs(samples.std() / deviation - 1) < 0.1


def test_dtype_and_shape_stay():
    observation = Observation(
        VALUE.astype(np.float32),
        lambda x: jnp.asarray(MATRIX, x.dtype) @ x.ravel(),
        Diagonal(0.5),
    )
    x = jnp.asarray(X, jnp.float32)[None]
    for step in (Perturbed(), Langevin(2)):
        z = step(observation, x, 0.5, key=jr.key(0))
        assert z.shape == (1, 3)
        assert z.dtype == jnp.float32


def test_a_step_that_leads_nowhere_is_not_taken():
    # Not a number below 0, where some walks begin: they come back, and none goes there.
    observation = Observation(np.zeros(1), jnp.log, Diagonal(1.0))
    samples = np.asarray(draws(Langevin(20), observation, jnp.full(1, 0.5), 0.5))
    assert np.isfinite(samples).all()
    assert (samples > 0).mean() > 0.999


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="`steps` must be at least 1, got 0"):
        Langevin(0)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`pace` must be above 0"):
        Langevin(pace=0.0)
