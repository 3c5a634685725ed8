import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import dynamics
from skyens.assimilation import (
    DenseCovariance,
    OptimalInterpolation,
    cycle,
    kalman_update,
)
from skyens.observations import Dense, Diagonal, Index, Linear, Observation

generator = np.random.default_rng(4)
FACTOR = generator.normal(size=(4, 4))
COVARIANCE = jnp.asarray(FACTOR @ FACTOR.T)
MATRIX = generator.normal(size=(3, 4))
ERROR = np.array([[1.0, 0.3, 0.0], [0.3, 2.0, 0.1], [0.0, 0.1, 0.5]])
VALUE = np.array([1.0, np.nan, 3.0])
OBSERVATION = Observation(VALUE, Linear(MATRIX), Dense(ERROR))
ENSEMBLE = jnp.asarray(generator.normal(size=(3, 4)))
MEAN = jnp.asarray(generator.normal(size=4))
analyse = jax.jit(OptimalInterpolation.__call__)


def test_it_is_the_kalman_update_of_the_mean():
    method = OptimalInterpolation(DenseCovariance(COVARIANCE))
    analysis, info = analyse(method, ENSEMBLE, OBSERVATION)
    expected, _ = kalman_update(ENSEMBLE.mean(0), COVARIANCE, OBSERVATION)
    np.testing.assert_allclose(analysis.mean(0), expected, atol=1e-10)
    moved = np.asarray(analysis - ENSEMBLE)
    np.testing.assert_allclose(moved, np.tile(moved[:1], (3, 1)), atol=1e-12)
    seen = MATRIX[[0, 2]] @ np.asarray(COVARIANCE) @ MATRIX[[0, 2]].T
    share = seen @ np.linalg.inv(seen + ERROR[np.ix_([0, 2], [0, 2])])
    assert float(info.degrees_of_freedom) == pytest.approx(np.trace(share), rel=1e-10)
    nothing = Observation(np.full(3, np.nan), Linear(MATRIX), Dense(ERROR))
    unmoved, _ = analyse(method, ENSEMBLE, nothing)
    np.testing.assert_array_equal(unmoved, ENSEMBLE)


def test_from_a_climatology_the_background_has_no_say():
    method = OptimalInterpolation(DenseCovariance(COVARIANCE), MEAN)
    analysis, _ = analyse(method, ENSEMBLE.astype(jnp.float32), OBSERVATION)
    expected, _ = kalman_update(MEAN, COVARIANCE, OBSERVATION)
    assert analysis.dtype == jnp.float32
    np.testing.assert_allclose(analysis, np.tile(expected, (3, 1)), atol=1e-5)


def test_perturbed_members_are_draws_from_what_remains_of_the_climatology():
    members = 4000
    method = OptimalInterpolation(DenseCovariance(COVARIANCE), MEAN, perturb=True)
    draws, _ = analyse(method, jnp.zeros((members, 4)), OBSERVATION, key=jr.key(0))
    mean, remaining = kalman_update(MEAN, COVARIANCE, OBSERVATION)
    std = np.sqrt(np.diag(remaining))
    assert np.all(abs(draws.mean(0) - mean) < 6 * std / members**0.5)
    error = abs(np.cov(draws.T) - remaining)
    assert np.all(error < 6 * np.outer(std, std) * (2 / members) ** 0.5)


def test_the_gradient_is_that_of_finite_differences():
    def loss(scale):
        method = OptimalInterpolation(DenseCovariance(scale * COVARIANCE))
        return jnp.sum(method(ENSEMBLE, OBSERVATION)[0] ** 2)

    loss = jax.jit(loss)
    change = (loss(1.2 + 1e-5) - loss(1.2 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(1.2), change, rtol=1e-6)


def test_its_error_on_lorenz_63_is_the_published_one():
    # DAPPER's row for OptInterp: 1.25, of an observation error of 1.41.
    step = dynamics.Lorenz63()
    start = jnp.asarray([1.509, -1.531, 25.46])
    truth = dynamics.rollout(step, start, 25_000)[24::25]
    values = truth + 2**0.5 * jr.normal(jr.key(0), truth.shape)
    method = OptimalInterpolation(DenseCovariance(jnp.cov(truth.T)), truth.mean(0))
    see = lambda value: Observation(value, Index(np.arange(3)), Diagonal(2**0.5))
    run = lambda: cycle(
        step, method, start[None], see, values, key=jr.key(0), steps_between=25
    )
    result = jax.jit(run)()
    error = np.sqrt(np.mean((result.analyses[:, 0] - truth) ** 2, axis=1)).mean()
    assert 1.25 * 0.93 < error < 1.25 * 1.07
    assert 0.9 < result.infos.chi_square.mean() < 1.1


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="does not fit a state of 4 entries"):
        OptimalInterpolation(DenseCovariance(np.eye(3)))(ENSEMBLE, OBSERVATION)
    with pytest.raises(ValueError, match="`mean` has shapes"):
        OptimalInterpolation(DenseCovariance(np.eye(4)), np.ones(3))(
            ENSEMBLE, OBSERVATION
        )
    with pytest.raises(ValueError, match="`key` is needed to perturb"):
        OptimalInterpolation(DenseCovariance(np.eye(4)), perturb=True)(
            ENSEMBLE, OBSERVATION
        )
