import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import optimize

from skyens import dynamics
from skyens.assimilation import EnKFN, cycle
from skyens.assimilation._enkf_n import minimise_dual
from skyens.observations import Diagonal, Index, Linear, Observation

analyse = eqx.filter_jit(lambda method, *args: method(*args))
minimise = jax.jit(minimise_dual, static_argnums=2)


def problem(members=5, count=3, states=7, far=2.0):
    generator = np.random.default_rng(0)
    background = generator.normal(size=(members, states)) + 3.0
    matrix = generator.normal(size=(count, states))
    value = matrix @ background.mean(0) + far * generator.normal(size=count)
    return background, Observation(value, Linear(matrix), Diagonal(0.7))


def dual(background, observation, size, nullity):
    """The dual cost as a function of l, in NumPy, term by term as it is written."""
    members = len(background)
    predicted = background @ np.asarray(observation.operator.matrix).T / 0.7
    innovation = np.asarray(observation.value) / 0.7 - predicted.mean(0)
    _, s, vt = np.linalg.svd(predicted - predicted.mean(0), full_matrices=False)
    seen = vt @ innovation
    e, c = (members + 1) / members, (members + nullity) / (members - 1)
    padded = np.concatenate([s, np.zeros(members)])[:members]
    unexplained = np.mean((members - 1) / (members - 1 + padded**2))
    factor = (e / c) ** (unexplained / 2)
    e, c = size * e / factor, size * c * factor

    def cost(factor):
        misfit = np.sum(seen**2 / (members - 1 + factor**2 * s**2))
        return misfit + e / factor**2 + c * np.log(factor**2)

    return cost


@pytest.mark.parametrize(
    ("members", "count", "far", "size", "nullity"),
    [
        (5, 3, 2.0, 1.0, 0),
        (5, 3, 6.0, 2.0, 1),
        (5, 9, 3.0, 1.5, 0),
        (2, 3, 1.0, 1.0, 0),
    ],
)
def test_it_is_the_kalman_update_with_the_inflation_that_minimises(
    members, count, far, size, nullity
):
    background, observation = problem(members, count, far=far)
    method = EnKFN(size, nullity=nullity)
    analysis, info = analyse(method, jnp.asarray(background), observation)
    cost = dual(background, observation, size, nullity)
    grid = np.geomspace(0.3, 30, 2000)
    best = np.argmin([cost(x) for x in grid])
    bounds = grid[best - 1], grid[best + 1]
    result = optimize.minimize_scalar(
        cost, bounds=bounds, method="bounded", options={"xatol": 1e-9}
    )
    found = result.x  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_allclose(info.inflation, found, rtol=1e-6)
    assert bool(info.converged)
    # Now with the inflation itself, since a minimum is flat.
    found = float(info.inflation)
    matrix = np.asarray(observation.operator.matrix)
    covariance = found**2 * np.cov(background.T)
    total = matrix @ covariance @ matrix.T + 0.49 * np.eye(count)
    gain = covariance @ matrix.T @ np.linalg.inv(total)
    mean = background.mean(0)
    mean = mean + gain @ (np.asarray(observation.value) - matrix @ mean)
    np.testing.assert_allclose(analysis.mean(0), mean, rtol=1e-10, atol=1e-10)
    kept = covariance - gain @ matrix @ covariance
    np.testing.assert_allclose(np.cov(analysis.T), kept, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 2**31),
    strength=st.floats(-4, 4),
    surprise=st.floats(-2, 2.5),
    size=st.floats(0.3, 5),
)
def test_newton_ends_at_a_minimum(seed, strength, surprise, size):
    generator = np.random.default_rng(seed)
    members, rank = 20, 10
    square = (10**strength * generator.uniform(0.01, 1, rank)) ** 2
    seen = 10**surprise * generator.normal(size=rank)
    e, c = size * 21 / 20 * 1.001, size * 20 / 19
    projection = jnp.asarray(square * seen**2)
    found, slope, converged = minimise(
        jnp.asarray(square), projection, members, jnp.asarray(e), jnp.asarray(c)
    )
    assert float(slope) > 0

    def downhill(factor):
        terms = factor**2 * projection / (members - 1 + factor**2 * square) ** 2
        return c - e / factor**2 - np.sum(terms)

    if converged:
        error = 1e-10 * (c + e / found**2 + abs(slope))
        assert abs(downhill(found)) < error + 1e-7 * abs(slope)
    assert downhill(float(found) * 0.999) < downhill(float(found) * 1.001)
    assert float(found) ** 2 >= e / c * (1 - 1e-12)


def test_no_news_is_no_inflation_and_surprise_is_much():
    background, observation = problem(far=0.0)
    _, info = analyse(EnKFN(), jnp.asarray(background), observation)
    assert 0.95 < float(info.inflation) < 1.05
    background, observation = problem(far=30.0)
    _, info = analyse(EnKFN(), jnp.asarray(background), observation)
    assert float(info.inflation) > 3
    _, less = analyse(EnKFN(10.0), jnp.asarray(background), observation)
    assert float(less.inflation) < float(info.inflation)


def test_the_gradient_is_that_of_the_minimum():
    background, observation = problem()

    def loss(size):
        _, info = EnKFN(size)(jnp.asarray(background), observation)
        return info.inflation

    slope, value = jax.jit(jax.grad(loss)), jax.jit(loss)
    size, step = jnp.asarray(1.3), 1e-5
    expected = (value(size + step) - value(size - step)) / (2 * step)
    np.testing.assert_allclose(slope(size), expected, rtol=1e-7)
    assert abs(float(expected)) > 1e-3


def test_cycled_lorenz_96_needs_no_tuning():
    # DAPPER, 24 members, on Sakov & Oke's (2008) setting: 0.21, and 0.18 with xN = 2.
    step = dynamics.Lorenz96()
    start = jr.normal(jr.key(5), (40,)) + 8
    truth = jax.jit(lambda: dynamics.rollout(step, start, 800)[300:])()
    values = truth + jr.normal(jr.key(6), truth.shape)
    ensemble = truth[:1] + jr.normal(jr.key(7), (24, 40))
    observe = lambda value: Observation(value, Index(np.arange(40)), Diagonal(1.0))

    @eqx.filter_jit
    def error(method):
        means = cycle(
            step,
            method,
            ensemble,
            observe,
            values[1:],
            key=jr.key(8),
            reduce=lambda ensemble: ensemble.mean(0),
        ).analyses
        return jnp.sqrt(jnp.mean((means - truth[1:])[150:] ** 2))

    first, second = float(error(EnKFN(1.0, True))), float(error(EnKFN(2.0, True)))
    assert first < 0.25
    assert second < 0.21
    assert second < first


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="`nullity` must be at least 0, got -1"):
        EnKFN(nullity=-1)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`xN` must be above 0"):
        EnKFN(0.0)
