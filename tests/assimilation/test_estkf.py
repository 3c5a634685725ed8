import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import dynamics
from skyens.assimilation import ESTKF, ETKF, cycle
from skyens.assimilation._estkf import subspace
from skyens.observations import Dense, Diagonal, Index, Linear, Observation

analyse = eqx.filter_jit(lambda method, *args: method(*args))


@pytest.mark.parametrize("members", [2, 5])
def test_the_subspace_is_across_the_mean(members):
    project = np.asarray(subspace(members, np.dtype(float)))
    identity = np.eye(members - 1)
    np.testing.assert_allclose(project.T @ project, identity, atol=1e-15)
    np.testing.assert_allclose(project.sum(0), 0, atol=1e-15)


@pytest.mark.parametrize(("members", "count"), [(5, 3), (5, 9), (2, 3)])
def test_mean_and_covariance_are_those_of_the_dense_update(members, count):
    generator = np.random.default_rng(0)
    background = generator.normal(size=(members, 7)) + 3
    matrix, value = generator.normal(size=(count, 7)), generator.normal(size=count)
    factor = generator.normal(size=(count, count))
    error = factor @ factor.T + np.eye(count)
    observation = Observation(value, Linear(matrix), Dense(error))
    analysis, info = analyse(ESTKF(), jnp.asarray(background), observation)
    mean, covariance = background.mean(0), np.cov(background.T)
    seen = matrix @ covariance @ matrix.T
    gain = covariance @ matrix.T @ np.linalg.inv(seen + error)
    expected = mean + gain @ (value - matrix @ mean)
    np.testing.assert_allclose(analysis.mean(0), expected, rtol=1e-10, atol=1e-10)
    kept = covariance - gain @ matrix @ covariance
    np.testing.assert_allclose(np.cov(analysis.T), kept, rtol=1e-10, atol=1e-10)
    other, plain = analyse(ETKF(), jnp.asarray(background), observation)
    np.testing.assert_allclose(analysis, other, rtol=1e-10, atol=1e-10)
    for name in ("chi_square", "degrees_of_freedom"):
        np.testing.assert_allclose(
            getattr(info, name), getattr(plain, name), rtol=1e-10
        )


def test_cycled_lorenz_96():
    # 24 members and inflation 1.013 on Sakov & Oke's (2008) setting: 0.18.
    step = dynamics.Lorenz96()
    start = jr.normal(jr.key(5), (40,)) + 8
    truth = jax.jit(lambda: dynamics.rollout(step, start, 800)[300:])()
    values = truth + jr.normal(jr.key(6), truth.shape)
    ensemble = truth[:1] + jr.normal(jr.key(7), (24, 40))
    observe = lambda value: Observation(value, Index(np.arange(40)), Diagonal(1.0))
    means = jax.jit(
        lambda: (
            cycle(
                step,
                ESTKF(1.02, rotate=True),
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
