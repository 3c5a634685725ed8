import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest

from skyens import dynamics
from skyens.assimilation import (
    DenseCovariance,
    DiagonalCovariance,
    Incremental,
    ThreeDVar,
    cycle,
    kalman_update,
)
from skyens.observations import Dense, Diagonal, Index, Linear, Observation

TIGHT = Incremental(solver=lx.CG(1e-13, 1e-13))
generator = np.random.default_rng(0)
FACTOR = generator.normal(size=(4, 4))
COVARIANCE = jnp.asarray(FACTOR @ FACTOR.T)
MATRIX = generator.normal(size=(3, 4))
ERROR = np.array([[1.0, 0.3, 0.0], [0.3, 2.0, 0.1], [0.0, 0.1, 0.5]])
VALUE = np.array([1.0, -2.0, 3.0])
ENSEMBLE = jr.normal(jr.key(0), (5, 4))
analyse = jax.jit(ThreeDVar.__call__)


@pytest.mark.parametrize("mask", [[True] * 3, [True, False, True], [False] * 3])
def test_in_the_linear_case_the_mean_is_that_of_the_kalman_update(mask):
    observation = Observation(VALUE, Linear(MATRIX), Dense(ERROR), np.asarray(mask))
    method = ThreeDVar(DenseCovariance(COVARIANCE), minimiser=TIGHT)
    analysis, info = analyse(method, ENSEMBLE, observation)
    expected, _ = kalman_update(ENSEMBLE.mean(0), COVARIANCE, observation)
    np.testing.assert_allclose(analysis.mean(0), expected, atol=1e-10)
    # The members move together.
    anomalies = lambda ensemble: ensemble - ensemble.mean(0, keepdims=True)
    np.testing.assert_allclose(anomalies(analysis), anomalies(ENSEMBLE), atol=1e-12)
    assert bool(info.converged)
    assert (int(info.used), int(info.masked)) == (sum(mask), 3 - sum(mask))
    if not any(mask):
        np.testing.assert_array_equal(analysis, ENSEMBLE)
        assert float(info.chi_square) == float(info.degrees_of_freedom) == 0


def test_chi_square_is_the_innovation_over_what_is_expected_of_it():
    observation = Observation(VALUE, Linear(MATRIX), Dense(ERROR))
    method = ThreeDVar(DenseCovariance(COVARIANCE), minimiser=TIGHT)
    _, info = analyse(method, ENSEMBLE, observation)
    innovation = VALUE - MATRIX @ ENSEMBLE.mean(0)
    total = MATRIX @ COVARIANCE @ MATRIX.T + ERROR
    expected = innovation @ np.linalg.solve(total, innovation) / 3
    assert float(info.chi_square) == pytest.approx(float(expected), rel=1e-9)


def test_a_single_member_of_any_pytree_keeps_its_clock():
    state = {"x": ENSEMBLE[:1, :2], "clock": jnp.array([7]), "y": ENSEMBLE[:1, 2:]}
    see = lambda state: jnp.asarray(MATRIX) @ jnp.concatenate([state["x"], state["y"]])
    observation = Observation(VALUE, see, Dense(ERROR))
    method = ThreeDVar(DenseCovariance(COVARIANCE), minimiser=TIGHT)
    analysis, _ = analyse(method, state, observation)
    assert int(analysis["clock"][0]) == 7
    found = jnp.concatenate([analysis["x"], analysis["y"]], axis=1)
    plain = Observation(VALUE, Linear(MATRIX), Dense(ERROR))
    expected, _ = kalman_update(ENSEMBLE[0], COVARIANCE, plain)
    np.testing.assert_allclose(found[0], expected, atol=1e-10)
    part = ThreeDVar(DiagonalCovariance(1.0), where=lambda state: state["x"])
    analysis, _ = part(state, observation)
    np.testing.assert_array_equal(analysis["y"], state["y"])
    assert np.all(analysis["x"] != state["x"])


def test_perturbed_observations_give_the_spread_of_the_analysis_error():
    members = 4000
    observation = Observation(VALUE, Linear(MATRIX), Dense(ERROR))
    noise = jr.normal(jr.key(1), (members, 4)) @ jnp.linalg.cholesky(COVARIANCE).T
    method = ThreeDVar(
        DenseCovariance(COVARIANCE), minimiser=Incremental(), perturb=True
    )
    analysis, info = analyse(method, noise, observation, key=jr.key(2))
    mean, expected = kalman_update(jnp.zeros(4), COVARIANCE, observation)
    std = np.sqrt(np.diag(expected))
    error = abs(np.cov(analysis.T) - expected)
    assert np.all(error < 6 * np.outer(std, std) * (2 / members) ** 0.5)
    assert np.all(abs(analysis.mean(0) - mean) < 6 * std / members**0.5)
    # The info speaks of the observations as they were.
    _, plain = analyse(ThreeDVar(DenseCovariance(COVARIANCE)), noise, observation)
    assert float(info.chi_square) == pytest.approx(float(plain.chi_square), rel=1e-4)
    masked = Observation(VALUE, Linear(MATRIX), Dense(ERROR), np.zeros(3, bool))
    unmoved, _ = analyse(method, noise, masked, key=jr.key(2))
    np.testing.assert_array_equal(unmoved, noise)


def test_the_gradient_is_that_of_finite_differences():
    def loss(parameters):
        scale, std = parameters
        see = lambda x: jnp.sin(jnp.asarray(MATRIX) @ x)
        value = jnp.asarray([0.1, jnp.nan, 0.5])
        observation = Observation(value, see, Diagonal(std))
        method = ThreeDVar(
            DenseCovariance(scale * COVARIANCE),
            minimiser=Incremental(2, lx.CG(1e-13, 1e-13)),
        )
        analysis, info = method(0.1 * ENSEMBLE, observation)
        return jnp.sum(analysis**2) + info.chi_square

    loss, at = jax.jit(loss), jnp.asarray([1.2, 0.7])
    slope = jax.jit(jax.grad(loss))(at)
    for i, step in enumerate(np.eye(2) * 1e-5):
        change = (loss(at + step) - loss(at - step)) / 2e-5
        np.testing.assert_allclose(slope[i], change, rtol=1e-6)


def test_with_everything_masked_the_gradient_is_finite():
    def loss(std):
        value = jnp.full(3, jnp.nan)
        observation = Observation(value, Linear(MATRIX), Diagonal(std))
        analysis, info = ThreeDVar(DenseCovariance(COVARIANCE))(ENSEMBLE, observation)
        return jnp.sum(analysis**2) + info.chi_square

    assert float(jax.grad(loss)(0.5)) == 0


def test_single_precision_stays_and_experiments_are_mapped():
    observation = Observation(VALUE, Linear(MATRIX), Dense(ERROR))
    method = ThreeDVar(DenseCovariance(COVARIANCE))
    analysis, info = analyse(method, ENSEMBLE.astype(jnp.float32), observation)
    assert analysis.dtype == info.chi_square.dtype == jnp.float32
    exact, _ = analyse(method, ENSEMBLE, observation)
    np.testing.assert_allclose(analysis, exact, atol=1e-3)
    several = jnp.stack([ENSEMBLE, ENSEMBLE + 1])
    mapped, _ = jax.vmap(lambda ensemble: method(ensemble, observation))(several)
    np.testing.assert_allclose(mapped[0], exact, atol=1e-4)


def test_cycled_on_lorenz_96_it_beats_the_observations_twice():
    # DAPPER's Var3D with 0.02 times the climate's covariance: an error of 0.41 to 0.42
    # for an observation error of 1 and a climatology of 3.6.
    step = dynamics.Lorenz96()
    start = dynamics.rollout(step, jnp.full(40, 8.0).at[0].add(1), 500)[-1]
    truth = dynamics.rollout(step, start, 1200)
    values = truth + jr.normal(jr.key(3), truth.shape)
    covariance = DenseCovariance(0.02 * jnp.cov(truth.T))
    observe = lambda value: Observation(value, Index(np.arange(40)), Diagonal(1.0))
    ensemble = start[None] + jr.normal(jr.key(4), (1, 40))
    run = lambda: cycle(
        step,
        ThreeDVar(covariance),
        ensemble,
        observe,
        values,
        key=jr.key(5),
        reduce=lambda ensemble: ensemble.mean(0),
    )
    result = jax.jit(run)()
    error = np.sqrt(np.mean((result.analyses - truth) ** 2, axis=1))[200:].mean()
    assert 0.3 < error < 0.46
    assert np.all(result.infos.converged)


def test_wrong_use_is_reported():
    observation = Observation(VALUE, Linear(MATRIX), Dense(ERROR))
    with pytest.raises(ValueError, match="`key` is needed to perturb observations"):
        ThreeDVar(DiagonalCovariance(1.0), perturb=True)(ENSEMBLE, observation)
    with pytest.raises(ValueError, match="does not fit a state of 4 entries"):
        ThreeDVar(DenseCovariance(np.eye(3)))(ENSEMBLE, observation)
    see = Observation(VALUE[:1], lambda x: x.real[:1], Diagonal(1.0))
    with pytest.raises(ValueError, match="of real numbers, got a leaf of complex"):
        ThreeDVar(DiagonalCovariance(1.0))(jnp.ones((2, 3), complex), see)
    with pytest.raises(ValueError, match="at least 1 member, got 0"):
        ThreeDVar(DiagonalCovariance(1.0))(ENSEMBLE[:0], observation)
