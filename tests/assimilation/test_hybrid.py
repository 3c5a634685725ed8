import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest

from skyens import dynamics
from skyens.assimilation import (
    ETKF,
    DenseCovariance,
    HybridEnVar,
    Incremental,
    ThreeDVar,
    cycle,
    gaspari_cohn,
    kalman_update,
)
from skyens.observations import Diagonal, Index, Linear, Observation

TIGHT = Incremental(solver=lx.CG(1e-13, 1e-13))
generator = np.random.default_rng(3)
FACTOR = generator.normal(size=(4, 4))
COVARIANCE = jnp.asarray(FACTOR @ FACTOR.T)
STATIC = DenseCovariance(COVARIANCE)
ENSEMBLE = jnp.asarray(generator.normal(size=(3, 4)))
OBSERVATION = Observation(
    np.array([1.0, np.nan, 3.0]), Linear(generator.normal(size=(3, 4))), Diagonal(0.5)
)
NOTHING = Observation(np.full(3, np.nan), OBSERVATION.operator, Diagonal(0.5))
TAPER = np.exp(-0.5 * (np.arange(4)[:, None] - np.arange(4)) ** 2)
analyse = jax.jit(HybridEnVar.__call__)


def test_without_the_ensemble_it_is_three_dimensional():
    method = HybridEnVar(STATIC, (1.0, 0.0), minimiser=TIGHT)
    analysis, info = analyse(method, ENSEMBLE, OBSERVATION)
    expected, other = ThreeDVar(STATIC, minimiser=TIGHT)(ENSEMBLE, OBSERVATION)
    np.testing.assert_allclose(analysis, expected, atol=1e-10)
    np.testing.assert_allclose(info.chi_square, other.chi_square, rtol=1e-9)


def test_without_the_static_part_its_mean_is_that_of_the_ensemble_filter():
    method = HybridEnVar(STATIC, (0.0, 1.0), minimiser=TIGHT, members=ETKF())
    analysis, _ = analyse(method, ENSEMBLE, OBSERVATION)
    expected, _ = ETKF()(ENSEMBLE, OBSERVATION)
    np.testing.assert_allclose(analysis, expected, atol=1e-10)


def test_between_it_is_the_kalman_update_with_the_sum():
    localisation = DenseCovariance(TAPER)
    method = HybridEnVar(STATIC, (0.3, 0.7), localisation, minimiser=TIGHT)
    analysis, _ = analyse(method, ENSEMBLE, OBSERVATION)
    both = 0.3 * COVARIANCE + 0.7 * TAPER * np.cov(ENSEMBLE.T)
    expected, _ = kalman_update(ENSEMBLE.mean(0), both, OBSERVATION)
    np.testing.assert_allclose(analysis.mean(0), expected, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"members": ETKF(1.1)}, {"perturb": True}])
def test_with_everything_masked_the_background_comes_back(options):
    method = HybridEnVar(STATIC, **options)
    state = {"x": ENSEMBLE, "clock": jnp.arange(3)}
    nothing = NOTHING.pullback(lambda state: state["x"])
    analysis, info = analyse(method, state, nothing, key=jr.key(0))
    np.testing.assert_array_equal(analysis["x"], ENSEMBLE)
    np.testing.assert_array_equal(analysis["clock"], np.arange(3))
    assert int(info.used) == 0


def test_the_gradient_of_the_weights_is_that_of_finite_differences():
    def loss(weight):
        weights = jnp.stack([1 - weight, weight])
        method = HybridEnVar(STATIC, weights, minimiser=TIGHT, members=ETKF())
        return jnp.sum(method(ENSEMBLE, OBSERVATION)[0] ** 2)

    loss = jax.jit(loss)
    slope = jax.jit(jax.grad(loss))(0.4)
    change = (loss(0.4 + 1e-5) - loss(0.4 - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope, change, rtol=1e-6)


def test_single_precision_stays():
    narrow = ENSEMBLE.astype(jnp.float32)
    analysis, info = analyse(HybridEnVar(STATIC, members=ETKF()), narrow, OBSERVATION)
    assert analysis.dtype == info.chi_square.dtype == jnp.float32


def test_cycled_with_ten_members_it_beats_the_static_covariance():
    step = dynamics.Lorenz96()
    start = dynamics.rollout(step, jnp.full(40, 8.0).at[0].add(1), 500)[-1]
    truth = dynamics.rollout(step, start, 600)
    values = truth + jr.normal(jr.key(1), truth.shape)
    static = DenseCovariance(0.02 * jnp.cov(truth.T))
    apart = np.abs(np.arange(40)[:, None] - np.arange(40))
    apart = jnp.asarray(np.minimum(apart, 40 - apart) / 5.0)
    localisation = DenseCovariance(gaspari_cohn(apart))

    def error(method, members):
        run = lambda: cycle(
            step,
            method,
            start[None] + jr.normal(jr.key(2), (members, 40)),
            lambda value: Observation(value, Index(np.arange(40)), Diagonal(1.0)),
            values,
            key=jr.key(3),
            reduce=lambda ensemble: ensemble.mean(0),
        )
        mean = jax.jit(run)().analyses
        return np.sqrt(np.mean((mean - truth) ** 2, axis=1))[150:].mean()

    hybrid = HybridEnVar(static, (0.3, 1.0), localisation, perturb=True)
    assert error(hybrid, 10) < 0.95 * error(ThreeDVar(static), 1)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="`members` and `perturb` both make"):
        HybridEnVar(STATIC, members=ETKF(), perturb=True)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`weights` must be finite"):
        HybridEnVar(STATIC, (-1.0, 1.0))
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        HybridEnVar(STATIC)(ENSEMBLE[:1], OBSERVATION)
    with pytest.raises(ValueError, match="`key` is needed to perturb"):
        HybridEnVar(STATIC, perturb=True)(ENSEMBLE, OBSERVATION)
