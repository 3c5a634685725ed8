import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.assimilation import EKS, GaussianPrior, invert
from skyens.observations import Dense, Linear, Observation

SIZE, COUNT = 3, 2
generator = np.random.default_rng(0)
MATRIX = generator.normal(size=(COUNT, SIZE))
FACTOR = generator.normal(size=(COUNT, COUNT))
NOISE = FACTOR @ FACTOR.T / 4 + 0.1 * np.eye(COUNT)
VALUES = generator.normal(size=COUNT) + 3.0
OBSERVATION = Observation(VALUES, Linear(MATRIX), Dense(NOISE))
MEAN, LAW = np.asarray([0.5, 0.0, -0.5]), np.diag([1.0, 0.5, 2.0])
PRIOR = GaussianPrior(jnp.asarray(MEAN), LAW)


def dense_posterior():
    precision = np.linalg.inv(LAW) + MATRIX.T @ np.linalg.solve(NOISE, MATRIX)
    posterior = np.linalg.inv(precision)
    pull = MATRIX.T @ np.linalg.solve(NOISE, VALUES - MATRIX @ MEAN)
    return MEAN + posterior @ pull, posterior


@pytest.mark.parametrize("members", [8, 40])
def test_the_members_are_draws_from_the_posterior_of_a_linear_model(members):
    # From a start that is off; small ensembles too, which is what the correction is
    # for. Many runs, so that Monte Carlo errors are small.
    runs = 2000 // members

    def one(key):
        first, second = jr.split(key)
        start = 3 + 2 * jr.normal(first, (members, SIZE))
        method = EKS(PRIOR, pace=0.3, finish=12.0)
        return invert(method, start, OBSERVATION, key=second, steps=150)

    result = jax.jit(jax.vmap(one))(jr.split(jr.key(0), runs))
    assert np.asarray(result.converged).all()
    np.testing.assert_allclose(result.infos.time[:, -1], 12.0)
    draws = np.asarray(result.ensemble).reshape(-1, SIZE)
    mean, covariance = dense_posterior()
    # Members of one run lean on one another, which doubles the error of the mean.
    error = (draws.mean(0) - mean) / np.sqrt(np.diag(covariance))
    assert np.abs(error).max() < 5 / 2000**0.5 * 2
    root = np.linalg.inv(np.linalg.cholesky(covariance))
    np.testing.assert_allclose(root @ np.cov(draws.T) @ root.T, np.eye(SIZE), atol=0.15)


def test_failed_members_have_no_say_and_come_back():
    start = jr.normal(jr.key(1), (12, SIZE))
    broken = start.at[3].set(jnp.inf)
    method, _ = EKS(PRIOR).start(start)
    analysis, info = eqx.filter_jit(method)(broken, OBSERVATION, key=jr.key(2))
    assert int(info.failed) == 1
    assert np.isfinite(analysis).all()
    broken = start.at[3].set(jnp.nan)
    again, _ = eqx.filter_jit(method)(broken, OBSERVATION, key=jr.key(2))
    np.testing.assert_array_equal(again, analysis)


def test_the_prior_of_the_start_is_taken_where_none_is_given_and_float32_stays():
    start = jr.normal(jr.key(1), (12, SIZE), jnp.float32)
    method, same = EKS().start(start)
    assert method.prior is not None
    np.testing.assert_allclose(method.prior.mean, start.mean(0), atol=1e-6)
    factor = np.asarray(method.prior.factor)
    np.testing.assert_allclose(factor @ factor.T, np.cov(start.T), rtol=1e-4, atol=1e-5)
    analysis, info = method(same, OBSERVATION, key=jr.key(0))
    assert analysis.dtype == jnp.float32
    assert float(info.time) > 0


def test_wrong_use_is_reported():
    with pytest.raises(eqx.EquinoxRuntimeError, match="`pace` must be above 0"):
        EKS(pace=0.0)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`finish` must be above 0"):
        EKS(finish=0.0)
    with pytest.raises(ValueError, match="`prior` is missing"):
        EKS()(jnp.ones((4, SIZE)), OBSERVATION, key=jr.key(0))
    with pytest.raises(ValueError, match="`key` is needed"):
        EKS(PRIOR)(jnp.ones((4, SIZE)), OBSERVATION)
