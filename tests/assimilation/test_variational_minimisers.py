import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
import scipy.optimize

from skyens.assimilation import (
    DenseCovariance,
    Incremental,
    Minimiser,
    ObservationSpace,
    ThreeDVar,
    TrueCost,
    kalman_update,
)
from skyens.observations import Dense, Diagonal, Linear, Observation

generator = np.random.default_rng(1)
FACTOR = generator.normal(size=(4, 4))
COVARIANCE = jnp.asarray(FACTOR @ FACTOR.T)
MATRIX = generator.normal(size=(3, 4))
ERROR = np.array([[1.0, 0.3, 0.0], [0.3, 2.0, 0.1], [0.0, 0.1, 0.5]])
VALUE = np.array([1.0, -2.0, 3.0])
ENSEMBLE = jnp.asarray(generator.normal(size=(2, 4)))
LINEAR = Observation(VALUE, Linear(MATRIX), Dense(ERROR), np.array([True, True, False]))

TIGHT = lx.CG(1e-13, 1e-13)
analyse = jax.jit(ThreeDVar.__call__)


def curved(value):
    matrix = jnp.asarray(MATRIX)
    return Observation(value, lambda x: jnp.sinh(0.2 * (matrix @ x)), Diagonal(0.5))


def expected_minimum(observation):
    """By SciPy, over increments of the state."""
    mean, inverse = np.asarray(ENSEMBLE.mean(0)), np.linalg.inv(COVARIANCE)

    @jax.jit
    def cost(state):
        away = state - mean
        return away @ jnp.asarray(inverse) @ away / 2 - observation.log_prob(state)

    found = scipy.optimize.minimize(
        cost, mean, jac=jax.jit(jax.grad(cost)), options={"gtol": 1e-10}
    )
    return found.x


@pytest.mark.parametrize(
    "minimiser",
    [
        Incremental(solver=TIGHT),
        Incremental(solver=lx.Cholesky()),
        ObservationSpace(),
        TrueCost(optx.BFGS(1e-11, 1e-11)),
    ],
)
def test_all_solve_the_linear_problem(minimiser):
    assert isinstance(minimiser, Minimiser)
    method = ThreeDVar(DenseCovariance(COVARIANCE), minimiser=minimiser)
    analysis, info = analyse(method, ENSEMBLE, LINEAR)
    expected, _ = kalman_update(ENSEMBLE.mean(0), COVARIANCE, LINEAR)
    np.testing.assert_allclose(analysis.mean(0), expected, atol=1e-10)
    assert bool(info.converged)
    assert int(info.iterations) >= 1


@pytest.mark.parametrize(
    "minimiser",
    [Incremental(8, TIGHT), ObservationSpace(8), TrueCost(optx.LBFGS(1e-11, 1e-11))],
)
def test_all_find_the_minimum_of_a_curved_problem(minimiser):
    observation = curved(np.array([0.3, np.nan, 0.8]))
    method = ThreeDVar(DenseCovariance(COVARIANCE), minimiser=minimiser)
    analysis, info = analyse(method, ENSEMBLE, observation)
    np.testing.assert_allclose(
        analysis.mean(0), expected_minimum(observation), atol=1e-7
    )
    assert bool(info.converged)


def test_one_loop_of_a_curved_problem_does_not_claim_to_have_converged():
    method = ThreeDVar(DenseCovariance(COVARIANCE), minimiser=Incremental(1, TIGHT))
    _, info = method(ENSEMBLE, curved(np.array([2.0, -2.0, 2.0])))
    assert not bool(info.converged)
    few = ThreeDVar(
        DenseCovariance(COVARIANCE),
        minimiser=Incremental(1, lx.CG(1e-13, 1e-13, max_steps=1)),
    )
    _, info = few(ENSEMBLE, LINEAR)
    assert not bool(info.converged)


def test_observation_space_knows_the_degrees_of_freedom():
    method = ThreeDVar(DenseCovariance(COVARIANCE), minimiser=ObservationSpace())
    _, info = method(ENSEMBLE, LINEAR)
    seen, error = MATRIX[:2], ERROR[:2, :2]
    projected = seen @ COVARIANCE @ seen.T
    expected = np.trace(projected @ np.linalg.inv(projected + error))
    assert float(info.degrees_of_freedom) == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize(
    "minimiser", [Incremental(6, TIGHT), TrueCost(optx.BFGS(1e-12, 1e-12))]
)
def test_the_gradient_through_the_minimum_is_that_of_finite_differences(minimiser):
    # In the limit both are the implicit derivative of one minimum.
    def loss(value):
        method = ThreeDVar(DenseCovariance(COVARIANCE), minimiser=minimiser)
        return jnp.sum(method(ENSEMBLE, curved(value))[0] ** 2)

    loss, at = jax.jit(loss), jnp.asarray([0.3, 0.1, 0.8])
    slope = jax.jit(jax.grad(loss))(at)
    step = jnp.asarray([1e-4, 0.0, 0.0])
    np.testing.assert_allclose(
        slope[0], (loss(at + step) - loss(at - step)) / 2e-4, rtol=1e-6
    )


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="`outer` must be at least 1, got 0"):
        Incremental(0)
    with pytest.raises(ValueError, match="`outer` must be at least 1, got 0"):
        ObservationSpace(0)
