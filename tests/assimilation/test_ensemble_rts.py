import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import dynamics
from skyens.assimilation import ETKF, EnKS, cycle, ensemble_rts, smoothed
from skyens.observations import Diagonal, Index, Linear, Observation

KEY = jr.key(3)
TIMES, MEMBERS, STATES = 6, 6, 3
generator = np.random.default_rng(4)
MODEL = np.linalg.qr(generator.normal(size=(STATES, STATES)))[0] * 0.95
MATRIX = generator.normal(size=(2, STATES))
VALUES = generator.normal(size=(TIMES, 2))
VALUES[1, 0] = VALUES[4] = np.nan
ENSEMBLE = jnp.asarray(generator.normal(size=(MEMBERS, STATES)) + 2.0)
smooth = eqx.filter_jit(ensemble_rts)


def exact(state, forcing=None, *, key=None):
    return jnp.asarray(MODEL) @ state


def noisy(state, forcing=None, *, key):
    return exact(state) + 0.3 * jr.normal(key, state.shape)


def observe(value):
    return Observation(value, Linear(MATRIX), Diagonal(0.4))


@eqx.filter_jit
def run(step, method):
    return cycle(step, method, ENSEMBLE, observe, jnp.asarray(VALUES), key=KEY)


def dense_rts():
    """Rauch, Tung and Striebel's smoother of a perfect model, in NumPy."""
    mean, covariance = np.mean(ENSEMBLE, 0), np.cov(np.asarray(ENSEMBLE).T)
    forecasts, filtered = [], []
    for value in VALUES:
        mean, covariance = MODEL @ mean, MODEL @ covariance @ MODEL.T
        forecasts.append((mean, covariance))
        rows, value = MATRIX[np.isfinite(value)], value[np.isfinite(value)]
        total = rows @ covariance @ rows.T + 0.16 * np.eye(len(rows))
        gain = covariance @ rows.T @ np.linalg.inv(total)
        mean = mean + gain @ (value - rows @ mean)
        covariance = covariance - gain @ rows @ covariance
        filtered.append((mean, covariance))
    result = [(mean, covariance)]
    for (mean, covariance), (ahead, spread) in zip(
        filtered[-2::-1], forecasts[:0:-1], strict=True
    ):
        gain = covariance @ MODEL.T @ np.linalg.inv(spread)
        after, known = result[0]
        mean = mean + gain @ (after - ahead)
        covariance = covariance + gain @ (known - spread) @ gain.T
        result.insert(0, (mean, covariance))
    return result


def test_a_linear_chain_is_the_rauch_tung_striebel_smoother():
    result = run(exact, ETKF())
    actual = np.asarray(smooth(result.analyses, result.backgrounds))
    for ensemble, (mean, covariance) in zip(actual, dense_rts(), strict=True):
        np.testing.assert_allclose(ensemble.mean(0), mean, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(np.cov(ensemble.T), covariance, atol=1e-10)
    np.testing.assert_array_equal(actual[-1], result.analyses[-1])


def test_with_model_errors_too_it_is_the_ensemble_kalman_smoother():
    # Three members do not span the state: what they do is all there is.
    few = ENSEMBLE[:3]
    method = EnKS(ETKF(), TIMES, few)
    result = eqx.filter_jit(cycle)(
        noisy, method, few, observe, jnp.asarray(VALUES), key=KEY
    )
    actual = smooth(result.analyses, result.backgrounds)
    np.testing.assert_allclose(actual, smoothed(result), rtol=1e-9, atol=1e-10)


def test_damping_blends_with_the_filter_and_leaves_may_be_left_out():
    result = run(noisy, ETKF())
    still = ensemble_rts(result.analyses, result.backgrounds, damping=0.0)
    np.testing.assert_array_equal(still, result.analyses)
    clock = jnp.broadcast_to(jnp.arange(MEMBERS), (TIMES, MEMBERS))
    pair = lambda ensemble: {"x": ensemble, "free": ensemble[..., :1], "clock": clock}
    states = pair(result.analyses), pair(result.backgrounds)
    some = ensemble_rts(*states, where=lambda state: state["x"])
    expected = smooth(result.analyses, result.backgrounds)
    np.testing.assert_allclose(some["x"], expected, rtol=1e-10)
    np.testing.assert_array_equal(some["free"], states[0]["free"])
    np.testing.assert_array_equal(some["clock"], clock)
    every = ensemble_rts(*states)
    np.testing.assert_allclose(every["free"], expected[..., :1], rtol=1e-9)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), result.analyses)
    before = jax.tree.map(lambda x: x.astype(jnp.float32), result.backgrounds)
    one = smooth(single, before)
    assert one.dtype == jnp.float32
    np.testing.assert_allclose(one, expected, atol=1e-3)


def test_gradients_are_right_where_members_outnumber_the_state_and_finite_at_0():
    result = run(noisy, ETKF())

    @jax.jit
    @jax.value_and_grad
    def loss(point):
        return jnp.mean(ensemble_rts(*point, damping=0.9) ** 3)

    # What observations do, which the model brings back, keeps to the span of members.
    point = result.analyses[:3], result.backgrounds[:3]
    way = tuple(jnp.asarray(generator.normal(size=x.shape)) for x in point)
    slope = sum(np.vdot(g, w) for g, w in zip(loss(point)[1], way, strict=True))
    at = lambda e: float(
        loss(tuple(x + e * w for x, w in zip(point, way, strict=True)))[0]
    )
    e = 1e-4
    difference = (8 * (at(e) - at(-e)) - (at(2 * e) - at(-2 * e))) / (12 * e)
    np.testing.assert_allclose(slope, difference, rtol=1e-6)
    same = jax.tree.map(lambda x: jnp.broadcast_to(x[:, :1], x.shape), point)
    value, gradient = loss(same)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in gradient)


def test_lorenz_96_is_known_better_afterwards():
    # Raanes (2016): 25 members, observations 0.15 apart: 0.335, and 0.21 afterwards,
    # with a damping of 0.99 at each of 15 steps of the model.
    world = dynamics.Lorenz96(dt=0.05)
    start = dynamics.rollout(world, jnp.full(40, 8.0).at[0].add(0.01), 300)[-1]
    truth = dynamics.rollout(world, start, 750)[2::3]
    values = truth + jr.normal(jr.key(0), truth.shape)
    ensemble = start[None] + 0.3 * jr.normal(jr.key(1), (25, 40))
    seen = lambda value: Observation(value, Index(np.arange(40)), Diagonal(1.0))

    @jax.jit
    def run():
        method = ETKF(1.08)
        result = cycle(world, method, ensemble, seen, values, key=KEY, steps_between=3)
        past = ensemble_rts(result.analyses, result.backgrounds, damping=0.86)
        return result.analyses.mean(1), past.mean(1)

    error = lambda mean: np.sqrt(np.mean((mean - truth)[60:-12] ** 2))
    after, before = map(error, run())
    assert after < 0.42
    assert before < 0.7 * after


def test_wrong_use_is_reported():
    ensembles = jnp.zeros((3, 4, 2))
    with pytest.raises(ValueError, match="must be alike"):
        ensemble_rts(ensembles, ensembles[:2])
    uneven = {"a": ensembles, "b": ensembles[:2]}
    with pytest.raises(ValueError, match="leading `time` axis"):
        ensemble_rts(uneven, uneven)
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        ensemble_rts(ensembles[:, :1], ensembles[:, :1])
    with pytest.raises(
        eqx.EquinoxRuntimeError, match=r"`damping` must lie in \[0, 1\]"
    ):
        ensemble_rts(ensembles, ensembles, damping=1.1)
