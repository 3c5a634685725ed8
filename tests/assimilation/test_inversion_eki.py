import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.assimilation import EKI, invert
from skyens.observations import Dense, Diagonal, Linear, Observation

MEMBERS, SIZE, COUNT = 7, 3, 4
generator = np.random.default_rng(0)
ENSEMBLE = jnp.asarray(generator.normal(size=(MEMBERS, SIZE)) + 1.0)
MATRIX = generator.normal(size=(COUNT, SIZE))
FACTOR = generator.normal(size=(COUNT, COUNT))
NOISE = FACTOR @ FACTOR.T / 4 + 0.1 * np.eye(COUNT)
VALUES = generator.normal(size=COUNT) + 3.0
OBSERVATION = Observation(VALUES, Linear(MATRIX), Dense(NOISE))
run = eqx.filter_jit(
    lambda method, *args, **kwargs: invert(method, *args, key=jr.key(1), **kwargs)
)


def dense_posterior(ensemble):
    """Posterior of the Gaussian prior with the ensemble's moments, by precisions."""
    mean, covariance = np.mean(ensemble, 0), np.cov(np.asarray(ensemble).T)
    precision = np.linalg.inv(covariance) + MATRIX.T @ np.linalg.solve(NOISE, MATRIX)
    posterior = np.linalg.inv(precision)
    pull = MATRIX.T @ np.linalg.solve(NOISE, VALUES - MATRIX @ mean)
    return mean + posterior @ pull, posterior


@pytest.mark.parametrize("pace", [None, 0.3])
def test_at_time_one_a_linear_model_has_the_exact_posterior(pace):
    result = run(EKI(pace), ENSEMBLE, OBSERVATION, steps=30)
    mean, covariance = dense_posterior(ENSEMBLE)
    np.testing.assert_allclose(result.ensemble.mean(0), mean, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(np.cov(result.ensemble.T), covariance, atol=1e-10)
    assert bool(result.converged)
    assert float(result.infos.time[-1]) == float(result.method.time) == 1.0
    steps = int(result.steps)
    assert steps == 4 if pace else 1 < steps < 30
    lengths = np.diff(np.append(0, result.infos.time[:steps]))
    assert (lengths > 0).all()
    if pace is None:
        # The first length is that of the data misfit controller, in NumPy.
        residual = VALUES - np.asarray(ENSEMBLE) @ MATRIX.T
        half = np.sum(residual.T * np.linalg.solve(NOISE, residual.T), axis=0) / 2
        length = max(COUNT / 2 / half.mean(), np.sqrt(COUNT / 2 / half.var()))
        np.testing.assert_allclose(lengths[0], length, rtol=1e-9)
        misfit = 2 * half.mean() / COUNT
        np.testing.assert_allclose(result.infos.misfit[0], misfit, rtol=1e-9)


def test_perturbed_observations_agree_within_their_noise():
    many = jr.normal(jr.key(4), (400, SIZE)) + 1.0
    result = run(EKI(perturb=True), many, OBSERVATION, steps=30)
    mean, covariance = dense_posterior(many)
    error = np.asarray(result.ensemble.mean(0)) - mean
    # Sampling errors over 400 members: std / 20 of a mean, 7 percent of a variance.
    assert (error**2 / np.diag(covariance)).max() < (4 / 20) ** 2
    np.testing.assert_allclose(
        np.cov(result.ensemble.T), covariance, atol=0.3 * covariance.diagonal().max()
    )


def test_without_a_finish_it_goes_to_the_best_fit():
    method = EKI(1e4, finish=jnp.inf)
    result = run(method, ENSEMBLE, OBSERVATION, steps=30)
    weighted = np.linalg.solve(NOISE, MATRIX)
    fit = np.linalg.solve(MATRIX.T @ weighted, weighted.T @ VALUES)
    np.testing.assert_allclose(result.ensemble.mean(0), fit, rtol=1e-3, atol=1e-3)
    assert float(np.std(result.ensemble, axis=0).max()) < 0.01
    assert not bool(result.converged)


def test_failed_members_have_no_say_and_are_drawn_anew():
    broken = ENSEMBLE.at[2].set(jnp.nan).at[4, 0].set(50.0)
    fails = lambda x: jnp.where(x[0] > 40, jnp.nan, jnp.asarray(MATRIX) @ x)
    seen = Observation(VALUES, fails, Dense(NOISE))
    result = run(EKI(1.0), broken, seen, steps=3)
    healthy = np.delete(np.asarray(ENSEMBLE), [2, 4], axis=0)
    mean, covariance = dense_posterior(healthy)
    moved = np.delete(np.asarray(result.ensemble), [2, 4], axis=0)
    np.testing.assert_allclose(moved.mean(0), mean, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(np.cov(moved.T), covariance, atol=1e-10)
    assert np.isfinite(result.ensemble).all()
    assert result.infos.failed.tolist() == [2, 2, 2]
    assert int(result.steps) == 1
    # The new ones come from the healthy ones' law, in their span.
    drawn = np.asarray(result.ensemble)[[2, 4]] - mean
    assert (np.abs(drawn @ np.linalg.inv(np.linalg.cholesky(covariance)).T) < 5).all()


def test_where_all_fail_nothing_moves_and_it_is_counted():
    seen = Observation(VALUES, lambda x: jnp.nan * (MATRIX @ x), Dense(NOISE))
    result = run(EKI(0.5), ENSEMBLE, seen, steps=2)
    np.testing.assert_array_equal(result.ensemble, ENSEMBLE)
    assert result.infos.failed.tolist() == [MEMBERS, MEMBERS]
    blind = eqx.tree_at(lambda o: o.mask, OBSERVATION, jnp.zeros(COUNT, bool))
    result = run(EKI(), ENSEMBLE, blind, steps=2)
    np.testing.assert_array_equal(result.ensemble, ENSEMBLE)
    assert bool(result.converged)
    assert int(result.steps) == 1


def test_a_problem_of_two_parameters_is_solved():
    # Ernst et al. (2015): -d/dx(exp(u1) dp/dx) = 1 on (0, 1), p(0) = 0, p(1) = u2,
    # seen at 1/4 and 3/4; the posterior mean by quadrature.
    def pressure(u):
        x = jnp.asarray([0.25, 0.75])
        return u[1] * x + jnp.exp(-u[0]) * (x - x**2) / 2

    values = np.asarray([27.5, 79.7])
    seen = Observation(values, pressure, Diagonal(0.1))
    grid = np.stack(
        np.meshgrid(np.linspace(-4, -1.5, 801), np.linspace(102, 107, 801)), -1
    ).reshape(-1, 2)
    x = np.asarray([0.25, 0.75])
    predicted = grid[:, 1:] * x + np.exp(-grid[:, :1]) * (x - x**2) / 2
    log = -np.sum((values - predicted) ** 2, 1) / 0.02
    log = log - (grid[:, 0] ** 2 + (grid[:, 1] - 100) ** 2 / 16) / 2
    weights = np.exp(log - log.max())
    mean = weights @ grid / weights.sum()
    spread = np.sqrt(weights @ (grid - mean) ** 2 / weights.sum())
    prior = jr.normal(jr.key(0), (60, 2)) * jnp.asarray([[1.0, 4.0]])
    ensemble = prior + jnp.asarray([[0.0, 100.0]])
    result = run(EKI(), ensemble, seen, steps=60)
    assert bool(result.converged)
    # The inversion is exact for linear models only: within two spreads of the truth.
    assert (np.abs(result.ensemble.mean(0) - mean) < 2 * spread).all()
    assert result.infos.misfit[int(result.steps) - 1] < 10


def test_float32_stays_and_wrong_use_is_reported():
    result = run(EKI(), ENSEMBLE.astype(jnp.float32), OBSERVATION, steps=30)
    assert result.ensemble.dtype == jnp.float32
    mean, _ = dense_posterior(ENSEMBLE)
    np.testing.assert_allclose(result.ensemble.mean(0), mean, atol=1e-4)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`pace` must be above 0"):
        EKI(0.0)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`finish` must be above 0"):
        EKI(finish=-1.0)
