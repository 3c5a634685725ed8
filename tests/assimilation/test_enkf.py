import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from skyens import dynamics
from skyens.assimilation import EnKF, cycle
from skyens.observations import Dense, Diagonal, Index, Linear, Observation

GENERATOR = np.random.default_rng(0)
BACKGROUND = GENERATOR.normal(size=(6, 4)) + 2
MATRIX = GENERATOR.normal(size=(3, 4))
FACTOR = GENERATOR.normal(size=(3, 3))
ERROR = FACTOR @ FACTOR.T + np.eye(3)
VALUE = GENERATOR.normal(size=3)
OBSERVATION = Observation(VALUE, Linear(MATRIX), Dense(ERROR))


def dense_update(mean, covariance):
    """Kalman's mean, covariance and gain, in NumPy."""
    total = MATRIX @ covariance @ MATRIX.T + ERROR
    gain = covariance @ MATRIX.T @ np.linalg.inv(total)
    kept = np.eye(4) - gain @ MATRIX
    return mean + gain @ (VALUE - MATRIX @ mean), kept @ covariance, gain


@eqx.filter_jit
def draws(method, count):
    keys = jr.split(jr.key(1), count)
    one = lambda key: method(jnp.asarray(BACKGROUND), OBSERVATION, key=key)[0]
    return jax.vmap(one)(keys)


def test_centred_perturbations_leave_the_mean_of_kalman():
    analyses = draws(EnKF(), 4000)
    mean, covariance, _ = dense_update(BACKGROUND.mean(0), np.cov(BACKGROUND.T))
    means = np.asarray(analyses).mean(1)
    np.testing.assert_allclose(means, np.broadcast_to(mean, means.shape), rtol=1e-10)
    each = np.asarray(jax.vmap(lambda x: jnp.cov(x.T))(analyses))
    error = each.std(0) / 4000**0.5
    np.testing.assert_array_less(np.abs(each.mean(0) - covariance), 5 * error)


def test_independent_perturbations_have_two_moments_right_on_average():
    analyses = np.asarray(draws(EnKF(centred=False), 4000))
    mean, covariance, gain = dense_update(BACKGROUND.mean(0), np.cov(BACKGROUND.T))
    means = analyses.mean(1)
    error = means.std(0) / 4000**0.5
    np.testing.assert_array_less(np.abs(means.mean(0) - mean), 5 * error)
    # The mean over six draws moves by the gain times their mean.
    moved = gain @ ERROR @ gain.T / 6
    np.testing.assert_allclose(np.cov(means.T), moved, atol=0.1 * moved.max())
    each = np.asarray([np.cov(x.T) for x in analyses[:2000]])
    error = each.std(0) / 2000**0.5
    np.testing.assert_array_less(np.abs(each.mean(0) - covariance), 5 * error)


def test_each_member_goes_to_its_own_draw_with_the_gain():
    # With a huge gain each member sees its draw: value plus error of covariance R.
    spread = jnp.asarray(1e4 * BACKGROUND)
    keys = jr.split(jr.key(2), 1000)
    method = EnKF(centred=False)
    analyse = lambda key: method(spread, OBSERVATION, key=key)[0]
    analyses = np.asarray(jax.jit(jax.vmap(analyse))(keys))
    seen = analyses[:, 0] @ MATRIX.T
    np.testing.assert_allclose(
        seen.mean(0), VALUE, atol=5 * (ERROR.max() / 1000) ** 0.5
    )
    np.testing.assert_allclose(np.cov(seen.T), ERROR, atol=0.2 * ERROR.max())


def test_a_large_ensemble_on_a_linear_chain_is_the_kalman_filter():
    model = 0.9 * np.linalg.qr(GENERATOR.normal(size=(4, 4)))[0]
    values = GENERATOR.normal(size=(5, 3))
    step = lambda state, forcing=None, *, key: (
        jnp.asarray(model) @ state + 0.5 * jr.normal(key, (4,))
    )
    observe = lambda value: Observation(value, Linear(MATRIX), Dense(ERROR))
    ensemble = jr.normal(jr.key(3), (200, 4))
    moments = lambda ensemble: (ensemble.mean(0), jnp.cov(ensemble.T))
    result = jax.jit(
        lambda: (
            cycle(
                step,
                EnKF(),
                ensemble,
                observe,
                jnp.asarray(values),
                key=jr.key(4),
                reduce=moments,
            ).analyses
        )
    )()
    mean, covariance = np.zeros(4), np.eye(4)
    for value in values:
        mean, covariance = model @ mean, model @ covariance @ model.T + 0.25 * np.eye(4)
        total = MATRIX @ covariance @ MATRIX.T + ERROR
        gain = covariance @ MATRIX.T @ np.linalg.inv(total)
        mean = mean + gain @ (value - MATRIX @ mean)
        covariance = (np.eye(4) - gain @ MATRIX) @ covariance
    # Monte Carlo error: deviation / sqrt(200), and twice that for a variance.
    deviation = np.sqrt(np.diagonal(covariance))
    np.testing.assert_allclose(result[0][-1] / deviation, mean / deviation, atol=0.3)
    scale = deviation[:, None] * deviation
    np.testing.assert_allclose(result[1][-1] / scale, covariance / scale, atol=0.4)


def test_cycled_lorenz_96():
    # DAPPER, 40 members and inflation 1.06 on Sakov & Oke's (2008) setting: 0.22.
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
                EnKF(1.06),
                ensemble,
                observe,
                values[1:],
                key=jr.key(8),
                reduce=lambda ensemble: ensemble.mean(0),
            ).analyses
        )
    )()
    error = np.sqrt(np.mean((means - truth[1:])[150:] ** 2))
    assert error < 0.25
