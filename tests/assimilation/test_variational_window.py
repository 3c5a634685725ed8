import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest

from skyens import dynamics
from skyens.assimilation import (
    DenseCovariance,
    FourDVar,
    Incremental,
    ThreeDVar,
    cycle,
    rts_smoother,
)
from skyens.observations import Diagonal, Index, Linear, Observation

TIGHT = Incremental(solver=lx.CG(1e-13, 1e-13))
TIMES = 3
generator = np.random.default_rng(2)
FACTOR = generator.normal(size=(3, 3))
COVARIANCE = jnp.asarray(FACTOR @ FACTOR.T + 0.1 * np.eye(3))
MODEL = jnp.asarray(np.linalg.qr(generator.normal(size=(3, 3)))[0] * 0.9)
MATRIX = generator.normal(size=(2, 3))
VALUES = generator.normal(size=(TIMES, 2))
VALUES[1, 0] = np.nan
ENSEMBLE = jnp.asarray(generator.normal(size=(4, 3)))
NOISE = jnp.diag(jnp.asarray([0.3, 0.1, 0.0]))
observe = lambda value: Observation(value, Linear(MATRIX), Diagonal(0.5))
WINDOW = jax.vmap(observe)(jnp.asarray(VALUES))
linear = lambda state, forcing=None, *, key=None: MODEL @ state
analyse = jax.jit(FourDVar.__call__)
follow = jax.jit(FourDVar.trajectory)


def test_strong_it_is_the_smoother_of_a_perfect_linear_model():
    covariance = DenseCovariance(COVARIANCE)
    method = FourDVar(linear, covariance, steps_between=2, minimiser=TIGHT)
    analysis, info = analyse(method, ENSEMBLE, WINDOW)
    twice, none = MODEL @ MODEL, jnp.zeros((3, 3))
    expected = rts_smoother(ENSEMBLE.mean(0), COVARIANCE, twice, none, WINDOW)
    np.testing.assert_allclose(analysis.mean(0), expected.law.mean[0], atol=1e-10)
    trajectory = follow(method, ENSEMBLE, WINDOW)
    np.testing.assert_allclose(trajectory, expected.law.mean, atol=1e-10)
    assert bool(info.converged)
    assert (int(info.used), int(info.masked)) == (5, 1)
    # The members move together.
    moved = np.asarray(analysis - ENSEMBLE)
    np.testing.assert_allclose(moved, np.tile(moved[:1], (4, 1)), atol=1e-12)


def test_weak_it_is_the_smoother_of_a_noisy_linear_model():
    method = FourDVar(
        linear,
        DenseCovariance(COVARIANCE),
        model_error=DenseCovariance(NOISE),
        minimiser=TIGHT,
    )
    trajectory = follow(method, ENSEMBLE, WINDOW)
    expected = rts_smoother(ENSEMBLE.mean(0), COVARIANCE, MODEL, NOISE, WINDOW)
    np.testing.assert_allclose(trajectory, expected.law.mean, atol=1e-10)
    analysis, _ = analyse(method, ENSEMBLE, WINDOW)
    np.testing.assert_allclose(analysis.mean(0), trajectory[0], atol=1e-12)


def test_the_adjoint_of_a_window_is_that_of_its_tangent_linear():
    step = dynamics.Lorenz63(0.05)
    start = jnp.asarray([1.0, 2.0, 25.0])
    method = FourDVar(step, DenseCovariance(COVARIANCE), steps_between=3)
    problem = method._problem(start, None, WINDOW)
    see = lambda v: problem.visit(WINDOW, lambda o, x, i: o.innovation(x), v).reshape(
        -1
    )
    forward = jax.jit(lambda v, dv: jax.jvp(see, (v,), (dv,))[1])
    backward = jax.jit(lambda v, w: jax.vjp(see, v)[1](w)[0])
    v, dv = jr.normal(jr.key(0), (2, 3))
    w = jr.normal(jr.key(1), (2 * TIMES,))
    tangent = forward(v, dv)
    np.testing.assert_allclose(tangent @ w, dv @ backward(v, w), rtol=1e-12)
    values = jax.jit(see)
    change = (values(v + 1e-5 * dv) - values(v - 1e-5 * dv)) / 2e-5
    np.testing.assert_allclose(tangent, change, rtol=1e-6, atol=1e-6)


def test_the_gradient_through_the_analysis_is_that_of_finite_differences():
    def loss(rho):
        step = dynamics.Lorenz63(0.02, rho=rho)
        minimiser = Incremental(4, lx.CG(1e-13, 1e-13))
        method = FourDVar(step, DenseCovariance(COVARIANCE), minimiser=minimiser)
        return jnp.sum(method(ENSEMBLE + 3, WINDOW)[0] ** 2)

    loss = jax.jit(loss)
    slope = jax.jit(jax.grad(loss))(28.0)
    np.testing.assert_allclose(slope, (loss(28.001) - loss(27.999)) / 2e-3, rtol=1e-6)


def test_with_everything_masked_nothing_moves():
    state = {"x": ENSEMBLE, "clock": jnp.arange(4)}
    tick = lambda state: {"x": MODEL @ state["x"], "clock": state["clock"] + 1}
    looked = lambda value: observe(value).pullback(lambda state: state["x"])
    nothing = jax.vmap(looked)(jnp.full((TIMES, 2), jnp.nan))
    method = FourDVar(
        tick, DenseCovariance(COVARIANCE), model_error=DenseCovariance(NOISE)
    )
    analysis, info = analyse(method, state, nothing)
    np.testing.assert_array_equal(analysis["x"], ENSEMBLE)
    np.testing.assert_array_equal(analysis["clock"], np.arange(4))
    assert int(info.used) == 0
    trajectory = method.trajectory(state, nothing)
    np.testing.assert_array_equal(trajectory["clock"], np.arange(TIMES + 1))


def test_each_member_of_perturbed_observations_has_its_own_analysis():
    method = FourDVar(
        linear, DenseCovariance(COVARIANCE), minimiser=TIGHT, perturb=True
    )
    members = 1500
    noise = jr.normal(jr.key(3), (members, 3)) @ jnp.linalg.cholesky(COVARIANCE).T
    analysis, _ = analyse(method, noise, WINDOW, key=jr.key(4))
    zero = jnp.zeros((3, 3))
    law = rts_smoother(jnp.zeros(3), COVARIANCE, MODEL, zero, WINDOW).law
    std = np.sqrt(np.diag(law.covariance[0]))
    assert np.all(abs(analysis.mean(0) - law.mean[0]) < 6 * std / members**0.5)
    error = abs(np.cov(analysis.T) - law.covariance[0])
    assert np.all(error < 6 * np.outer(std, std) * (2 / members) ** 0.5)


def test_single_precision_stays():
    narrow = ENSEMBLE.astype(jnp.float32)
    step = lambda state, forcing=None, *, key=None: MODEL.astype(state.dtype) @ state
    method = FourDVar(step, DenseCovariance(COVARIANCE))
    analysis, info = analyse(method, narrow, WINDOW)
    assert analysis.dtype == info.chi_square.dtype == jnp.float32
    expected, _ = FourDVar(linear, DenseCovariance(COVARIANCE))(ENSEMBLE, WINDOW)
    np.testing.assert_allclose(analysis, expected, atol=1e-3)


def test_cycled_on_lorenz_96_it_beats_three_dimensions():
    step = dynamics.Lorenz96()
    start = dynamics.rollout(step, jnp.full(40, 8.0).at[0].add(1), 500)[-1]
    truth = dynamics.rollout(step, start, 600)
    values = truth + jr.normal(jr.key(5), truth.shape)
    covariance = DenseCovariance(0.02 * jnp.cov(truth.T))
    see = lambda value: Observation(value, Index(np.arange(40)), Diagonal(1.0))
    ensemble = start[None] + jr.normal(jr.key(6), (1, 40))

    def run(method, window):
        return cycle(
            step,
            method,
            ensemble,
            see,
            values,
            key=jr.key(7),
            window=window,
            reduce=lambda ensemble: ensemble.mean(0),
        )

    three = jax.jit(lambda: run(ThreeDVar(covariance), None))().analyses
    method = FourDVar(step, covariance, minimiser=Incremental(2))
    four = jax.jit(lambda: run(method, 5))().analyses
    # At the end of a window both have seen the same values.
    ends = np.arange(30, 120) * 5 + 4
    size = lambda mean: np.sqrt(np.mean((mean - truth)[ends] ** 2, axis=1)).mean()
    assert size(four) < 0.85 * size(three)


def test_wrong_use_is_reported():
    covariance = DenseCovariance(COVARIANCE)
    with pytest.raises(ValueError, match="`steps_between` must be at least 1, got 0"):
        FourDVar(linear, covariance, steps_between=0)
    with pytest.raises(ValueError, match="need a leading axis of times"):
        FourDVar(linear, covariance)(ENSEMBLE, observe(jnp.zeros(2)))
    with pytest.raises(ValueError, match="`key` is needed to perturb"):
        FourDVar(linear, covariance, perturb=True)(ENSEMBLE, WINDOW)
