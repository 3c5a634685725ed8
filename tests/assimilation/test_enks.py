import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import dynamics
from skyens.assimilation import (
    ETKF,
    AdaptiveInflation,
    EnKF,
    EnKS,
    Inflated,
    Reweighted,
    cycle,
    smoothed,
)
from skyens.observations import Diagonal, Index, Linear, Observation

KEY = jr.key(3)
TIMES, MEMBERS, STATES = 7, 6, 3
generator = np.random.default_rng(4)
MODEL = np.linalg.qr(generator.normal(size=(STATES, STATES)))[0] * 0.95
MATRIX = generator.normal(size=(2, STATES))
VALUES = generator.normal(size=(TIMES, 2))
VALUES[1, 0] = VALUES[4] = np.nan
ENSEMBLE = jnp.asarray(generator.normal(size=(MEMBERS, STATES)) + 2.0)


def step(state, forcing=None, *, key=None):
    return jnp.asarray(MODEL) @ state


def observe(value):
    return Observation(value, Linear(MATRIX), Diagonal(0.4))


def posterior(time, seen):
    """Mean and covariance at a time (from 1) given the first `seen` data, in NumPy.

    The state is a linear function of the initial one, whose law is that of the members:
    all data are one observation of that.
    """
    power = np.linalg.matrix_power
    mean, covariance = np.mean(ENSEMBLE, 0), np.cov(np.asarray(ENSEMBLE).T)
    every = np.concatenate([MATRIX @ power(MODEL, t + 1) for t in range(seen)])
    value = VALUES[:seen].reshape(-1)
    rows, value = every[np.isfinite(value)], value[np.isfinite(value)]
    total = rows @ covariance @ rows.T + 0.16 * np.eye(len(rows))
    gain = covariance @ rows.T @ np.linalg.inv(total)
    mean = mean + gain @ (value - rows @ mean)
    covariance = covariance - gain @ rows @ covariance
    there = power(MODEL, time)
    return there @ mean, there @ covariance @ there.T


@eqx.filter_jit
def run(method):
    return cycle(step, method, ENSEMBLE, observe, jnp.asarray(VALUES), key=KEY)


@pytest.mark.parametrize("lag", [2, 9])
def test_a_linear_chain_is_smoothed_exactly(lag):
    result = run(EnKS(ETKF(), lag, ENSEMBLE))
    past = smoothed(result)
    assert past.shape == (TIMES, MEMBERS, STATES)
    for time in range(1, TIMES + 1):
        mean, covariance = posterior(time, min(time + lag, TIMES))
        actual = np.asarray(past[time - 1])
        np.testing.assert_allclose(actual.mean(0), mean, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(np.cov(actual.T), covariance, atol=1e-10)
        mean, _ = posterior(time, time)
        np.testing.assert_allclose(result.analyses[time - 1].mean(0), mean, atol=1e-10)


def test_the_present_is_that_of_the_filter_with_inflation_for_it_alone():
    result = run(EnKS(ETKF(), 3, ENSEMBLE, inflation=1.2))
    expected = run(ETKF(1.2))
    np.testing.assert_allclose(result.analyses, expected.analyses, atol=1e-12)
    # Nothing is seen at the fifth time: nothing changes, nothing is inflated.
    np.testing.assert_array_equal(result.analyses[4], result.backgrounds[4])


def test_perturbed_observations_smooth_too_and_what_is_kept_is_reduced():
    reduce = lambda ensemble: ensemble.mean(0)
    result = run(EnKS(EnKF(), 3, ENSEMBLE, reduce=reduce))
    assert result.infos.smoothed.shape == (TIMES, STATES)
    means = smoothed(result)
    whole = smoothed(run(EnKS(EnKF(), 3, ENSEMBLE)))
    np.testing.assert_allclose(means, whole.mean(1), rtol=1e-12)
    # The last one has seen nothing after it.
    np.testing.assert_allclose(means[-1], result.ensemble.mean(0), rtol=1e-12)


def test_the_state_may_be_any_pytree_and_a_part_of_it_updated():
    observed = lambda value: observe(value).pullback(lambda state: state["x"])
    state = {"x": ENSEMBLE, "free": 2 * ENSEMBLE, "clock": jnp.arange(MEMBERS)}

    def move(state, forcing=None, *, key=None):
        x = step(state["x"])
        return {"x": x, "free": step(state["free"]), "clock": state["clock"] + 1}

    method = EnKS(ETKF(where=lambda state: state["x"]), 2, state)
    result = cycle(move, method, state, observed, jnp.asarray(VALUES), key=KEY)
    past = smoothed(result)
    expected = smoothed(run(EnKS(ETKF(), 2, ENSEMBLE)))
    np.testing.assert_allclose(past["x"], expected, atol=1e-12)
    free = [2 * ENSEMBLE @ np.linalg.matrix_power(MODEL.T, 1 + t) for t in range(7)]
    np.testing.assert_allclose(past["free"], np.stack(free), atol=1e-12)
    np.testing.assert_array_equal(past["clock"][:, 0], np.arange(1, 8))


def test_gradients_are_right_and_float32_stays():
    @jax.jit
    @jax.value_and_grad
    def loss(inflation):
        result = run(EnKS(ETKF(), 2, ENSEMBLE, inflation=inflation))
        return jnp.mean(smoothed(result) ** 3)

    at, epsilon = jnp.asarray(1.1), 1e-4
    difference = (loss(at + epsilon)[0] - loss(at - epsilon)[0]) / (2 * epsilon)
    np.testing.assert_allclose(loss(at)[1], difference, rtol=1e-6)
    single = ENSEMBLE.astype(jnp.float32)
    method = EnKS(ETKF(), 2, single, inflation=1.1)
    analysis, info = method(single, observe(jnp.asarray(VALUES[0])))
    assert analysis.dtype == info.smoothed.dtype == jnp.float32


def test_lorenz_96_is_known_better_afterwards():
    # Raanes (2016): observations 0.15 apart, 25 members, inflation 1.08, a lag of 12;
    # the filter's error is 0.335, the smoother's 0.208. Here for a few hundred times.
    world = dynamics.Lorenz96(dt=0.05)
    start = dynamics.rollout(world, jnp.full(40, 8.0).at[0].add(0.01), 300)[-1]
    truth = dynamics.rollout(world, start, 900)[2::3]
    values = truth + jr.normal(jr.key(0), truth.shape)
    ensemble = start[None] + 0.3 * jr.normal(jr.key(1), (25, 40))
    mean = lambda ensemble: ensemble.mean(0)
    seen = lambda value: Observation(value, Index(np.arange(40)), Diagonal(1.0))

    @jax.jit
    def run():
        method = EnKS(ETKF(), 12, ensemble, inflation=1.08, reduce=mean)
        result = cycle(
            world, method, ensemble, seen, values, key=KEY, steps_between=3, reduce=mean
        )
        return result.analyses, smoothed(result)

    error = lambda mean: np.sqrt(np.mean((mean - truth)[60:-12] ** 2))
    after, before = map(error, run())
    assert after < 0.42
    assert before < 0.7 * after


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="`lag` must be at least 1, got 0"):
        EnKS(ETKF(), 0, ENSEMBLE)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`inflation` of `method`"):
        EnKS(ETKF(1.1), 2, ENSEMBLE)
    with pytest.raises(ValueError, match=r"use Inflated\(EnKS"):
        EnKS(Inflated(ETKF(), lambda analysis, *_, **__: analysis), 2, ENSEMBLE)
    with pytest.raises(ValueError, match=r"use AdaptiveInflation\(EnKS"):
        EnKS(Reweighted(AdaptiveInflation(ETKF())), 2, ENSEMBLE)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`inflation` of `method`"):
        EnKS(Reweighted(ETKF(1.1)), 2, ENSEMBLE)
    with pytest.raises(ValueError, match="not like the `ensemble0`"):
        EnKS(ETKF(), 2, ENSEMBLE)(ENSEMBLE[:4], observe(jnp.asarray(VALUES[0])))
    with pytest.raises(ValueError, match="takes a cycle with EnKS, got ETKF"):
        smoothed(run(ETKF()))
