import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.linalg import sqrtm

from skyens.assimilation import (
    ETKF,
    EnSRF,
    LocalisedEnKF,
    Plane,
    Schur,
    cycle,
    gaspari_cohn,
    twin,
)
from skyens.dynamics import Lorenz96
from skyens.observations import Diagonal, Linear, Observation

analyse = eqx.filter_jit(lambda method, *args, **kwargs: method(*args, **kwargs))
LINE = Plane(np.arange(6.0))
WHERE, ERROR = np.asarray([0.5, 3.0, 3.0]), np.asarray([0.5, 1.0, 0.8])
MATRIX = np.zeros((3, 6))
MATRIX[[0, 0, 1, 2], [0, 1, 3, 3]] = [0.5, 0.5, 1, 1]


def problem(mask=None, members=5):
    generator = np.random.default_rng(0)
    background = jnp.asarray(generator.normal(size=(members, 6)) + 1)
    value = generator.normal(size=3)
    seen = Observation(value, Linear(MATRIX), Diagonal(ERROR), mask, {"x": WHERE})
    return background, seen


def gains(x, length):
    """Gain and square-root gain, dense (Whitaker & Hamill 2002, equation 10)."""
    taper = lambda a, b: np.asarray(
        gaspari_cohn(jnp.asarray(np.abs(a[:, None] - b) / length))
    )
    covariance, noise = np.cov(np.asarray(x).T), np.diag(ERROR**2)
    cross = taper(np.arange(6.0), WHERE) * (covariance @ MATRIX.T)
    total = taper(WHERE, WHERE) * (MATRIX @ covariance @ MATRIX.T) + noise
    white = total / np.outer(ERROR, ERROR)
    # Whitened, the root of the noise is the identity.
    inner = np.linalg.inv(white + np.real(sqrtm(white)))
    return cross @ np.linalg.inv(total), cross / ERROR @ inner / ERROR


def test_mean_and_members_are_those_of_the_dense_gains():
    background, observation = problem()
    method = LocalisedEnKF(Schur(LINE, length=1.1), 1.1)
    analysis, _ = analyse(method, background, observation)
    x = np.asarray(background)
    gain, root = gains(x, 1.1)
    mean = x.mean(0) + gain @ (np.asarray(observation.value) - MATRIX @ x.mean(0))
    anomalies = x - x.mean(0)
    anomalies = anomalies - anomalies @ MATRIX.T @ root.T
    inflation = np.where(np.any(gain != 0, axis=1), 1.1, 1)
    np.testing.assert_allclose(analysis, mean + inflation * anomalies, rtol=1e-10)


def test_perturbed_observations_have_the_gain_in_the_mean_over_members():
    background, observation = problem(members=2000)
    method = LocalisedEnKF(Schur(LINE, length=1.1), perturb=True)
    analysis, _ = analyse(method, background, observation, key=jr.key(0))
    x = np.asarray(background)
    gain, _ = gains(x, 1.1)
    mean = x.mean(0) + gain @ (np.asarray(observation.value) - MATRIX @ x.mean(0))
    np.testing.assert_allclose(analysis.mean(0), mean, rtol=1e-9)
    kept = np.eye(6) - gain @ MATRIX
    covariance = kept @ np.cov(x.T) @ kept.T + gain @ np.diag(ERROR**2) @ gain.T
    np.testing.assert_allclose(np.cov(analysis.T), covariance, atol=0.06)


def test_without_taper_it_is_the_etkf():
    background, observation = problem()
    method = LocalisedEnKF(Schur(LINE, length=jnp.inf))
    analysis, info = analyse(method, background, observation)
    expected, plain = analyse(ETKF(), background, observation)
    np.testing.assert_allclose(analysis.mean(0), expected.mean(0), rtol=1e-10)
    np.testing.assert_allclose(jnp.cov(analysis.T), jnp.cov(expected.T), atol=1e-12)
    np.testing.assert_allclose(info.chi_square, plain.chi_square, rtol=1e-10)
    freedom = info.degrees_of_freedom, plain.degrees_of_freedom
    np.testing.assert_allclose(*freedom, rtol=1e-10)


def test_everything_masked_is_the_identity_and_single_precision_stays():
    background, observation = problem()
    blind = eqx.tree_at(lambda o: o.mask, observation, jnp.zeros(3, bool))
    method = LocalisedEnKF(Schur(LINE, length=1.0), 1.3)
    untouched, _ = analyse(method, background, blind)
    np.testing.assert_array_equal(untouched, background)
    single, _ = analyse(method, background.astype(jnp.float32), observation)
    assert single.dtype == jnp.float32


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_match_finite_differences(masked):
    background, observation = problem(np.full(3, not masked))

    @jax.jit
    def loss(length):
        method = LocalisedEnKF(Schur(LINE, length=length))
        analysis, _ = method(background, observation)
        return jnp.mean(analysis[0] ** 3 + analysis[1] ** 2)

    length, h = jnp.asarray(1.6), 1e-4
    slope = jax.jit(jax.grad(loss))(length)
    expected = (loss(length + h) - loss(length - h)) / (2 * h)
    np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-9)


def test_a_perturbation_needs_a_key():
    background, observation = problem()
    method = LocalisedEnKF(Schur(LINE, length=1.0), perturb=True)
    with pytest.raises(ValueError, match="`key` is needed to perturb"):
        method(background, observation)


@pytest.mark.parametrize(
    ("members", "inflation", "perturb"), [(7, 1.04, False), (10, 1.1, True)]
)
def test_lorenz_96_is_held_where_no_filter_without_localisation_could(
    members, inflation, perturb
):
    # DAPPER's LETKF of seven members has 0.22; the observations have errors of 1.
    step, ring = Lorenz96(), Plane(np.arange(40.0), period=40.0)
    where = {"x": np.arange(40.0)}
    start = jnp.full(40, 8.0).at[0].add(0.01)
    start = jax.lax.fori_loop(0, 500, lambda _, x: step(x), start)
    world = twin(step, start, lambda x: x, Diagonal(1.0), 800, key=jr.key(1))
    see = lambda value: Observation(value, lambda x: x, Diagonal(1.0), None, where)
    method = LocalisedEnKF(Schur(ring, length=4 * 1.82), inflation, perturb=perturb)
    ensemble = start[None] + 0.1 * jr.normal(jr.key(2), (members, 40))

    @jax.jit
    def means(data):
        mean = lambda ensemble: ensemble.mean(0)
        found = cycle(step, method, ensemble, see, data, key=jr.key(3), reduce=mean)
        return found.analyses

    gap = (means(world.data) - world.truth)[300:]
    error = np.sqrt(np.mean(np.square(gap), axis=1)).mean()
    assert error < (0.3 if perturb else 0.24)


def test_an_observation_near_no_point_is_counted():
    background, seen = problem()
    far = {"x": np.asarray([0.5, 30.0, 3.0])}
    seen = Observation(seen.value, seen.operator, seen.error, None, far)
    for method in (LocalisedEnKF, lambda schur: EnSRF(localisation=schur)):
        _, info = analyse(method(Schur(LINE, length=1.1)), background, seen)
        assert (int(info.used), int(info.unreached)) == (3, 1)
