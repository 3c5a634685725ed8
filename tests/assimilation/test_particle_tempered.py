import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.optimize import brentq

from skyens import dynamics
from skyens.assimilation import AdditiveNoise, Kernel, TemperedFilter, Weighted, cycle
from skyens.assimilation._particle import largest_power
from skyens.observations import Diagonal, Index, Observation

analyse = eqx.filter_jit(lambda method, *args, **kwargs: method(*args, **kwargs))


def test_a_step_leaves_the_threshold():
    generator = np.random.default_rng(0)
    numbers, prior = 20 * generator.normal(size=30), generator.uniform(size=30)
    prior = prior / prior.sum()

    def size(power):
        g = np.exp(power * (numbers - numbers.max()))
        return (prior @ g) ** 2 / (prior @ g**2)

    fits = jnp.asarray(numbers)
    find = jax.jit(
        lambda left: largest_power(jnp.log(prior), fits, jnp.asarray(0.5), left)
    )
    power, whole = find(jnp.asarray(1.0))
    root = brentq(lambda p: size(p) - 0.5, 0, 1)
    assert abs(float(power) - root) < 1e-9  # pyright: ignore[reportOperatorIssue]
    assert not bool(whole)
    power, whole = find(jnp.asarray(1e-3))
    assert float(power) == 1e-3
    assert bool(whole)


def test_a_precise_observation_is_taken_in_by_steps():
    # One weighing would leave about 1 of 400 members: 0.02 of a spread of 1, 3 away.
    members = jr.normal(jr.key(0), (400, 1))
    observation = Observation(np.asarray([4.0]), lambda x: x, Diagonal(0.02))
    noise = AdditiveNoise(1.0)
    method = TemperedFilter(noise, stages=12, moves=8)
    analysis, info = analyse(method, members, observation, key=jr.key(1))
    assert bool(info.converged)
    assert 3 < int(info.iterations) < 12
    assert float(info.effective_size) > 100
    np.testing.assert_allclose(analysis.mean(), 4.0, atol=0.01)
    np.testing.assert_allclose(analysis.spread(), 0.02, rtol=0.3)
    # The evidence is that of the members, each widened by the noise: a sum.
    exact = np.exp(-((4 - members[:, 0]) ** 2) / 2 / 1.0004) / np.sqrt(
        2 * np.pi * 1.0004
    )
    np.testing.assert_allclose(info.log_evidence, np.log(exact.mean()), atol=0.5)
    hasty = TemperedFilter(noise, stages=1)
    _, info = analyse(hasty, members, observation, key=jr.key(1))
    assert not bool(info.converged)
    assert int(info.iterations) == 1


def test_it_keeps_dtypes_batches_and_leaves_out():
    members = jr.normal(jr.key(0), (20, 2), jnp.float32)
    state = {"x": members, "y": members[:, 0], "n": jnp.arange(20)}
    observation = Observation(np.ones(2), lambda state: state["x"], Diagonal(0.3))
    method = TemperedFilter(Kernel(), where=lambda state: state["x"])
    run = lambda key: method(state, observation, key=key)
    analysis, info = jax.jit(jax.vmap(run))(jr.split(jr.key(1), 2))
    assert analysis.members["x"].dtype == analysis.log_weights.dtype == jnp.float32
    assert info.iterations.shape == (2,)
    np.testing.assert_array_equal(analysis.members["y"][1], state["y"])
    np.testing.assert_array_equal(analysis.members["n"][0], state["n"])


def test_gradients_are_finite():
    members = jr.normal(jr.key(0), (20, 1))

    @eqx.filter_jit
    def evidence(deviation, value):
        observation = Observation(value, lambda x: x, Diagonal(deviation))
        method = TemperedFilter(AdditiveNoise(0.5))
        return method(members, observation, key=jr.key(1))[1].log_evidence

    slope = eqx.filter_jit(jax.grad(evidence))
    assert np.isfinite(slope(jnp.asarray(0.1), jnp.ones(1)))
    assert float(slope(jnp.asarray(0.1), jnp.full(1, jnp.nan))) == 0


def test_lorenz_63_is_followed():
    step = dynamics.Lorenz63()
    start = jnp.asarray([1.509, -1.531, 25.46])
    truth = dynamics.rollout(step, start, 25 * 250)[24::25]
    values = truth + 2**0.5 * jr.normal(jr.key(0), truth.shape)
    ensemble = Weighted(start[None] + 2**0.5 * jr.normal(jr.key(1), (100, 3)))
    run = jax.jit(
        lambda: cycle(
            step,
            TemperedFilter(Kernel(1.0)),
            ensemble,
            lambda value: Observation(value, Index(np.arange(3)), Diagonal(2**0.5)),
            values,
            key=jr.key(2),
            steps_between=25,
            reduce=lambda weighted: weighted.mean(),
        )
    )
    error = np.sqrt(np.mean((run().analyses - truth)[50:] ** 2, axis=1)).mean()
    # Optimal interpolation has 1.25, the best filters 0.3 to 0.6.
    assert error < 0.8


def test_wrong_use_is_reported():
    noise = AdditiveNoise(1.0)
    for threshold in (0.0, 1.0, -1.0):
        with pytest.raises(eqx.EquinoxRuntimeError, match="`threshold` must"):
            TemperedFilter(noise, threshold)
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"`correlation` must lie in"):
        TemperedFilter(noise, 0.5, 1.0)
    with pytest.raises(ValueError, match="`stages` must be at least 1"):
        TemperedFilter(noise, stages=0)
