import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import dynamics
from skyens.assimilation import (
    ExtendedKalmanFilter,
    Gaussian,
    GaussianStep,
    cycle,
    kalman_filter,
)
from skyens.observations import Diagonal, Index, Linear, Observation

generator = np.random.default_rng(5)
MODEL = jnp.asarray(generator.normal(size=(3, 3)) / 2)
NOISE = jnp.diag(jnp.asarray([0.3, 0.1, 0.2]))
MATRIX = generator.normal(size=(2, 3))
VALUES = generator.normal(size=(4, 2))
VALUES[1, 0] = VALUES[2] = np.nan
START = Gaussian(jnp.asarray([[1.0, 2.0, 3.0]]), jnp.eye(3)[None])
observe = lambda value: Observation(value, Linear(MATRIX), Diagonal(0.5))
linear = lambda state, forcing=None, *, key=None: MODEL @ state


def test_in_the_linear_case_a_cycle_is_the_kalman_filter():
    step = GaussianStep(linear, noise=NOISE)
    result = cycle(
        step,
        ExtendedKalmanFilter(),
        START,
        observe,
        jnp.asarray(VALUES),
        key=jr.key(0),
    )
    expected = kalman_filter(
        START.mean[0],
        START.covariance[0],
        MODEL,
        NOISE,
        jax.vmap(observe)(jnp.asarray(VALUES)),
    )
    law = result.analyses
    np.testing.assert_allclose(law.mean[:, 0], expected.analysis.mean, atol=1e-10)
    np.testing.assert_allclose(
        law.covariance[:, 0], expected.analysis.covariance, atol=1e-10
    )
    np.testing.assert_allclose(
        result.infos.log_evidence, expected.log_evidence, atol=1e-10
    )
    np.testing.assert_array_equal(result.infos.used, [2, 1, 0, 2])


def test_the_covariance_is_carried_by_the_jacobian_and_inflated():
    step = dynamics.Lorenz63(0.05)
    mean = {"x": jnp.asarray([1.0, 2.0, 25.0]), "clock": jnp.asarray(3)}
    factor = generator.normal(size=(3, 3))
    covariance = jnp.asarray(factor @ factor.T)
    tick = lambda state, forcing=None, *, key=None: {
        "x": step(state["x"], forcing),
        "clock": state["clock"] + 1,
    }
    later = jax.jit(GaussianStep(tick, inflation=3.0, dt=0.5).__call__)(
        Gaussian(mean, covariance)
    )
    jacobian = np.stack(
        [
            (step(mean["x"] + dx) - step(mean["x"] - dx)) / 2e-5
            for dx in jnp.eye(3) * 1e-5
        ],
        axis=1,
    )
    expected = 3**0.5 * jacobian @ np.asarray(covariance) @ jacobian.T
    np.testing.assert_allclose(later.covariance, expected, rtol=1e-6)
    np.testing.assert_array_equal(later.covariance, later.covariance.T)
    np.testing.assert_allclose(later.mean["x"], step(mean["x"]), rtol=1e-14)
    assert int(later.mean["clock"]) == 4


def test_with_everything_masked_the_background_comes_back():
    nothing = observe(jnp.full(2, jnp.nan))
    background = Gaussian(START.mean + 1 / 3, START.covariance / 3)
    analysis, info = ExtendedKalmanFilter()(background, nothing)
    np.testing.assert_array_equal(analysis.mean, background.mean)
    np.testing.assert_array_equal(analysis.covariance, background.covariance)
    np.testing.assert_array_equal((info.log_evidence, info.degrees_of_freedom), (0, 0))


def test_single_precision_stays_and_a_gradient_exists():
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), START)
    step = GaussianStep(
        lambda state, forcing=None, *, key=None: jnp.sin(state), inflation=2.0
    )
    analysis, info = ExtendedKalmanFilter()(jax.vmap(step)(narrow), observe(VALUES[0]))
    leaves = jax.tree.leaves((analysis, info.chi_square, info.log_evidence))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}

    def evidence(inflation):
        step = GaussianStep(linear, noise=NOISE, inflation=inflation)
        forecast = jax.vmap(step)(START)
        _, info = ExtendedKalmanFilter()(forecast, observe(jnp.asarray(VALUES[0])))
        return info.log_evidence

    evidence = jax.jit(evidence)
    change = (evidence(1.5 + 1e-5) - evidence(1.5 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.jit(jax.grad(evidence))(1.5), change, rtol=1e-6)


def test_its_error_on_lorenz_96_is_the_published_one():
    # DAPPER's row for ExtKF(infl=10): 0.24, of an observation error of 1.
    step = dynamics.Lorenz96()
    start = dynamics.rollout(step, jnp.full(40, 8.0).at[0].add(1), 500)[-1]
    truth = dynamics.rollout(step, start, 700)
    values = truth + jr.normal(jr.key(1), truth.shape)
    run = lambda: cycle(
        GaussianStep(step, inflation=10.0, dt=0.05),
        ExtendedKalmanFilter(),
        Gaussian(start[None] + 0.5, jnp.eye(40)[None]),
        lambda value: Observation(value, Index(np.arange(40)), Diagonal(1.0)),
        values,
        key=jr.key(2),
        reduce=lambda law: law.mean[0],
    )
    result = jax.jit(run)()
    error = np.sqrt(np.mean((result.analyses - truth) ** 2, axis=1))[150:].mean()
    assert error < 0.24 * 1.08
    assert 0.85 < result.infos.chi_square[150:].mean() < 1.15


def test_wrong_use_is_reported():
    with pytest.raises(eqx.EquinoxRuntimeError, match="`inflation` must be above 0"):
        GaussianStep(linear, inflation=0.0)
    wrong = Gaussian(START.mean, jnp.eye(2)[None])
    with pytest.raises(ValueError, match="does not fit a `mean` of 3 entries"):
        ExtendedKalmanFilter()(wrong, observe(VALUES[0]))
