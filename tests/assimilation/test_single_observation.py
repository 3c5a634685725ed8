import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.assimilation import (
    ESMDA,
    ETKF,
    BootstrapFilter,
    DenseCovariance,
    FourDVar,
    IEnKS,
    Inflated,
    Multiplicative,
    Weighted,
    single_observation,
)
from skyens.observations import Index

KEY = jr.key(0)
THIRD = Index(np.array([2]))


def test_the_increment_is_the_gain_times_the_departure():
    background = jr.normal(KEY, (12, 5)) + 30.0
    found = single_observation(ETKF(), background, THIRD, 2.0, 0.5)
    covariance = np.cov(background.T)
    gain = covariance[2] / (covariance[2, 2] + 0.25)
    np.testing.assert_allclose(found.mean, 2 * gain, rtol=1e-10)
    variance = np.diag(covariance) - gain * covariance[2]
    spread = np.sqrt(variance) - np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(found.spread, spread, atol=1e-10)
    np.testing.assert_allclose(
        found.analysis.mean(0) - background.mean(0), found.mean, atol=1e-12
    )
    assert found.info.used == 1


def test_leaves_clocks_scalars_and_dtypes_are_kept():
    members = jr.normal(KEY, (6, 4), jnp.float32)
    background = {"x": members, "clock": jnp.full(6, 3)}
    operator = lambda state: state["x"][1]
    run = lambda departure: single_observation(ETKF(), background, operator, departure)
    found = jax.jit(run)(1.5)
    assert found.mean["x"].dtype == jnp.float32
    assert found.mean["clock"] == found.spread["clock"] == 0
    slope = jax.grad(lambda departure: run(departure).mean["x"][1])(1.5)
    np.testing.assert_allclose(found.mean["x"][1], 1.5 * slope, rtol=1e-5)


def test_one_member_has_a_mean_and_no_spread():
    half = lambda background, observation, *, key=None: (
        background + 0.5 * observation.innovation(background[0])[None],
        None,
    )
    found = single_observation(half, jnp.ones((1, 1)), lambda state: state, 3.0)
    assert found.mean.tolist() == [1.5]
    assert found.spread.tolist() == [0.0]


def test_weighted_members_have_weighted_increments():
    members = jr.normal(KEY, (400, 1))
    weighted = Weighted(members, -0.5 * (members[:, 0] - 1) ** 2)
    method = BootstrapFilter()
    found = single_observation(method, weighted, lambda state: state, 0.5, 1.0, key=KEY)
    # The product of N(0, 1) and N(1, 1) is N(1/2, 1/2): a gain of 1/3.
    np.testing.assert_allclose(found.mean, 0.5 / 3, atol=0.1)
    assert found.spread < 0


def test_in_a_window_the_gain_is_carried_back_by_the_step():
    # What is seen of the last state is seen of the first through six steps.
    generator = np.random.default_rng(0)
    matrix = jnp.asarray(np.linalg.qr(generator.normal(size=(4, 4)))[0])
    step = lambda state, forcing=None, *, key=None: matrix @ state
    background = jnp.asarray(generator.normal(size=(1, 4)))
    root = generator.normal(size=(4, 4))
    covariance = root @ root.T + np.eye(4)
    seen = np.linalg.matrix_power(np.asarray(matrix), 6)[1]
    gain = covariance @ seen / (seen @ covariance @ seen + 0.25)
    method = FourDVar(step, DenseCovariance(covariance), steps_between=2)
    second = lambda state: state[1]
    found = single_observation(method, background, second, 2.0, 0.5, window=3)
    np.testing.assert_allclose(found.mean, 2 * gain, atol=1e-8)
    assert (int(found.info.used), int(found.info.masked)) == (1, 2)
    with pytest.raises(ValueError, match="FourDVar holds a step: give `window`"):
        single_observation(method, background, second)
    with pytest.raises(ValueError, match="`window` must be at least 1, got 0"):
        single_observation(method, background, second, window=0)
    with pytest.raises(ValueError, match="ETKF has no window"):
        single_observation(ETKF(), background, second, window=2)


def test_a_smoother_without_a_step_has_no_window_and_one_that_is_held_has():
    background = jr.normal(KEY, (12, 5))
    once = single_observation(ESMDA(2), background, THIRD)
    filtered = single_observation(ETKF(), background, THIRD)
    np.testing.assert_allclose(once.mean, filtered.mean, atol=1e-10)
    step = lambda state, forcing=None, *, key=None: 2 * state
    smoother = IEnKS(step, steps_between=2)
    found, wanted = (
        single_observation(method, background, THIRD, window=2)
        for method in (Inflated(smoother, Multiplicative(1.0)), smoother)
    )
    np.testing.assert_allclose(found.mean, wanted.mean, atol=1e-12)
    with pytest.raises(ValueError, match="IEnKS holds a step: give `window`"):
        single_observation(Inflated(smoother), background, THIRD)


def test_wrong_use_is_reported():
    with pytest.raises(
        ValueError, match=r"one number, but it returns the shape \(2,\)"
    ):
        single_observation(ETKF(), jnp.ones((3, 4)), Index(np.array([0, 1])))
