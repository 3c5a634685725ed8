import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import dynamics
from skyens.assimilation import DEnKF, cycle
from skyens.observations import Dense, Diagonal, Index, Linear, Observation

analyse = eqx.filter_jit(lambda method, *args: method(*args))


@pytest.mark.parametrize("count", [3, 9])
def test_anomalies_are_updated_with_half_the_gain(count):
    generator = np.random.default_rng(0)
    background = generator.normal(size=(5, 7)) + 3
    matrix, value = generator.normal(size=(count, 7)), generator.normal(size=count)
    factor = generator.normal(size=(count, count))
    error = factor @ factor.T + np.eye(count)
    observation = Observation(value, Linear(matrix), Dense(error))
    analysis, info = analyse(DEnKF(), jnp.asarray(background), observation)
    mean, covariance = background.mean(0), np.cov(background.T)
    seen = matrix @ covariance @ matrix.T
    gain = covariance @ matrix.T @ np.linalg.inv(seen + error)
    mean = mean + gain @ (value - matrix @ mean)
    anomalies = background - background.mean(0)
    anomalies = anomalies - anomalies @ matrix.T @ gain.T / 2
    np.testing.assert_allclose(analysis, mean + anomalies, rtol=1e-10, atol=1e-10)
    kept = covariance - gain @ matrix @ covariance + gain @ seen @ gain.T / 4
    np.testing.assert_allclose(np.cov(analysis.T), kept, rtol=1e-9, atol=1e-10)
    freedom = np.trace(seen @ np.linalg.inv(seen + error))
    np.testing.assert_allclose(info.degrees_of_freedom, freedom, rtol=1e-10)


def test_cycled_lorenz_96():
    # DAPPER, 40 members and inflation 1.01 on Sakov & Oke's (2008) setting: 0.18.
    step = dynamics.Lorenz96()
    start = jr.normal(jr.key(5), (40,)) + 8
    truth = jax.jit(lambda: dynamics.rollout(step, start, 800)[300:])()
    values = truth + jr.normal(jr.key(6), truth.shape)
    ensemble = truth[:1] + jr.normal(jr.key(7), (40, 40))
    observe = lambda value: Observation(value, Index(np.arange(40)), Diagonal(1.0))
    means = jax.jit(
        lambda: (
            cycle(
                step,
                DEnKF(1.01),
                ensemble,
                observe,
                values[1:],
                key=jr.key(8),
                reduce=lambda ensemble: ensemble.mean(0),
            ).analyses
        )
    )()
    error = np.sqrt(np.mean((means - truth[1:])[150:] ** 2))
    assert error < 0.21
