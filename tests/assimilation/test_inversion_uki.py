import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import dynamics
from skyens.assimilation import UKI, GaussianPrior, invert
from skyens.observations import Dense, Linear, Observation

SIZE, COUNT = 3, 2
generator = np.random.default_rng(0)
ENSEMBLE = jnp.asarray(generator.normal(size=(9, SIZE)) + 1.0)
MATRIX = generator.normal(size=(COUNT, SIZE))
FACTOR = generator.normal(size=(COUNT, COUNT))
NOISE = FACTOR @ FACTOR.T / 4 + 0.1 * np.eye(COUNT)
VALUES = generator.normal(size=COUNT) + 3.0
OBSERVATION = Observation(VALUES, Linear(MATRIX), Dense(NOISE))
run = eqx.filter_jit(
    lambda method, *args, **kwargs: invert(method, *args, key=jr.key(1), **kwargs)
)


def dense_posterior(mean, covariance):
    precision = np.linalg.inv(covariance) + MATRIX.T @ np.linalg.solve(NOISE, MATRIX)
    posterior = np.linalg.inv(precision)
    pull = MATRIX.T @ np.linalg.solve(NOISE, VALUES - MATRIX @ mean)
    return mean + posterior @ pull, posterior


def test_a_linear_model_has_the_exact_posterior():
    # Fewer observations than parameters: only the prior makes it one.
    result = run(UKI(tolerance=1e-12), ENSEMBLE, OBSERVATION, steps=80)
    mean, covariance = dense_posterior(ENSEMBLE.mean(0), np.cov(ENSEMBLE.T))
    assert result.ensemble.shape == (2 * SIZE + 1, SIZE)
    np.testing.assert_allclose(result.ensemble.mean(0), mean, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(np.cov(result.ensemble.T), covariance, atol=1e-10)
    np.testing.assert_allclose(result.ensemble[0], mean, rtol=1e-10)
    assert bool(result.converged)
    assert int(result.steps) < 60


def test_any_start_ends_at_the_posterior_of_the_prior_given():
    law = np.diag([1.0, 0.5, 2.0])
    prior = GaussianPrior(jnp.asarray([0.5, 0.0, -0.5]), law)
    method = UKI(prior, pace=0.3, tolerance=1e-12)
    result = run(method, 3 * ENSEMBLE - 1, OBSERVATION, steps=120)
    mean, covariance = dense_posterior(np.asarray([0.5, 0.0, -0.5]), law)
    np.testing.assert_allclose(result.ensemble[0], mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(np.cov(result.ensemble.T), covariance, atol=1e-9)


def test_failed_runs_are_mirrored_or_learn_nothing():
    method, points = UKI().start(ENSEMBLE)
    mean, reach = points[0], 3**0.5 * 2**0.5
    away = (points - mean[None]) * reach / 3**0.5
    runs = mean[None] + away  # with a pace of 1/2 the model is run here
    matrix = jnp.asarray(MATRIX)

    def fails(which):
        def model(x):
            wrong = [jnp.all(jnp.abs(x - runs[k]) < 1e-9) for k in which]
            return jnp.where(jnp.any(jnp.stack(wrong)), jnp.nan, matrix @ x)

        return Observation(VALUES, model, Dense(NOISE))

    step = eqx.filter_jit(lambda seen: method(points, seen))
    expected, info = step(OBSERVATION)
    assert int(info.failed) == 0
    # A linear model is odd about the mean: a mirrored run is as good as the true one.
    for which in ([1], [2, 6]):
        mirrored, info = step(fails(which))
        assert int(info.failed) == len(which)
        np.testing.assert_allclose(mirrored, expected, rtol=1e-10)
    without, info = step(fails([1, 4]))
    assert int(info.failed) == 2
    assert np.isfinite(without).all()
    none, info = step(fails(range(7)))
    np.testing.assert_array_equal(none, points)
    assert not bool(info.converged)


def test_parameters_of_lorenz_63_are_found_from_time_averages():
    # Moments over 20 units of time. Their noise is what they scatter by, at the true
    # parameters, from one such stretch to another.
    truth = jnp.log(jnp.asarray([28.0, 8 / 3]))

    def averages(parameters, start):
        rho, beta = jnp.exp(parameters)
        path = dynamics.rollout(dynamics.Lorenz63(rho=rho, beta=beta), start, 2000)
        x, y, z = path.T
        return jnp.stack([z.mean(), (x**2).mean(), (y**2).mean(), (z**2).mean()])

    starts = jnp.asarray([[1.5, -1.5, 25.0]]) + jr.normal(jr.key(0), (41, 3))
    scatter = jax.jit(jax.vmap(averages, in_axes=(None, 0)))(truth, starts)
    noise = 2 * np.cov(np.asarray(scatter[1:]).T)
    model = lambda parameters: averages(parameters, starts[0] + 1)
    seen = Observation(scatter[0], model, Dense(noise))
    prior = GaussianPrior(jnp.log(jnp.asarray([24.0, 3.2])), np.eye(2) * 0.04)
    ensemble = prior.mean[None] + 0.2 * jr.normal(jr.key(1), (9, 2))
    result = run(UKI(prior), ensemble, seen, steps=15)
    error = np.asarray(result.ensemble[0] - truth)
    spread = np.sqrt(np.diag(np.cov(result.ensemble.T)))
    assert (np.abs(error) < 0.05).all()  # the prior is 0.15 and 0.18 off
    assert (np.abs(error) < 4 * spread).all()
    assert (spread < 0.1).all()


def test_gradients_match_finite_differences_and_float32_stays():
    @jax.jit
    @jax.value_and_grad
    def loss(value):
        seen = Observation(value, lambda x: jnp.sin(x[:2]) + x[1:], Dense(NOISE))
        result = invert(UKI(), ENSEMBLE, seen, key=jr.key(0), steps=3)
        return jnp.mean(result.ensemble**3)

    at, way = jnp.asarray([0.5, -0.2]), jnp.asarray([1.0, 0.5])
    slope = jnp.vdot(loss(at)[1], way)
    difference = (loss(at + 1e-4 * way)[0] - loss(at - 1e-4 * way)[0]) / 2e-4
    np.testing.assert_allclose(slope, difference, rtol=1e-6)
    single = ENSEMBLE.astype(jnp.float32)
    result = run(UKI(), single, OBSERVATION, steps=30)
    assert result.ensemble.dtype == jnp.float32
    mean, _ = dense_posterior(ENSEMBLE.mean(0), np.cov(ENSEMBLE.T))
    np.testing.assert_allclose(result.ensemble[0], mean, atol=1e-2)


def test_wrong_use_is_reported():
    with pytest.raises(eqx.EquinoxRuntimeError, match="`pace` must be between 0 and 1"):
        UKI(pace=1.0)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`tolerance` must not be"):
        UKI(tolerance=-1.0)
    with pytest.raises(ValueError, match="`prior` is missing"):
        UKI()(ENSEMBLE, OBSERVATION)
    prior = GaussianPrior(jnp.ones(3), np.eye(3))
    with pytest.raises(ValueError, match="sigma points of 3 parameters are 7, got 9"):
        UKI(prior)(ENSEMBLE, OBSERVATION)
    with pytest.raises(ValueError, match="more members than that, got 3"):
        UKI().start(ENSEMBLE[:3])
