import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.assimilation import AdditiveNoise, AuxiliaryFilter, Weighted, cycle
from skyens.observations import Diagonal, Observation

analyse = eqx.filter_jit(lambda method, *args, **kwargs: method(*args, **kwargs))
still = lambda state, forcing=None, *, key=None: state


def test_members_that_the_look_ahead_favours_get_several_draws():
    members = jnp.asarray([[0.0], [3.0], [3.1], [-5.0]])
    state = {"x": members, "name": jnp.arange(4)}
    observation = Observation(np.asarray([3.0]), lambda s: s["x"], Diagonal(0.5))
    method = AuxiliaryFilter(AdditiveNoise(0.04), caution=0.0)
    analysis, info = analyse(method, state, observation, key=jr.key(0))
    names = analysis.members["name"]
    assert set(names.tolist()) == {1, 2}
    drawn = np.asarray(analysis.members["x"][:, 0])
    assert len(set(drawn.tolist())) == 4
    # Second weights: likelihood over that of the look ahead; first: sum of those.
    normal = lambda x: np.exp(-(((3 - x) / 0.5) ** 2) / 2) / (0.5 * np.sqrt(2 * np.pi))
    ratio = normal(drawn) / normal(np.asarray(members)[names, 0])
    np.testing.assert_allclose(analysis.weights, ratio / ratio.sum(), rtol=1e-10)
    evidence = np.mean(normal(np.asarray(members))) * ratio.mean()
    np.testing.assert_allclose(info.log_evidence, np.log(evidence), rtol=1e-10)


def test_caution_bounds_the_weights():
    # The noise is wide: the far forecast is as likely as the near one, after it.
    members = jnp.repeat(jnp.asarray([[0.0], [3.0]]), 50, axis=0)
    observation = Observation(np.asarray([3.0]), lambda x: x, Diagonal(0.2))
    method = AuxiliaryFilter(AdditiveNoise(9.0), caution=0.5)
    analysis, info = analyse(method, members, observation, key=jr.key(0))
    drawn = np.asarray(analysis.members[:, 0])
    normal = lambda x: np.exp(-(((3 - x) / 0.2) ** 2) / 2) / (0.2 * np.sqrt(2 * np.pi))
    # Weights are likelihoods times 0.01 over the chance: 0.005 or 0.015.
    likely = normal(drawn) > 1e-3
    assert 2 < likely.sum() < 98
    ratio = np.asarray(analysis.weights)[likely] / normal(drawn)[likely]
    ratio = ratio / ratio.max()
    assert np.all(np.isclose(ratio, 1) | np.isclose(ratio, 1 / 3))
    exact = [np.exp(-(d**2) / 2 / 9.04) / np.sqrt(2 * np.pi * 9.04) for d in (0, 3)]
    np.testing.assert_allclose(info.log_evidence, np.log(np.mean(exact)), atol=0.7)


def test_without_a_choice_it_is_the_bootstrap_filter():
    members = jr.normal(jr.key(1), (10, 1))
    observation = Observation(np.asarray([0.4]), lambda x: x, Diagonal(0.5))
    method = AuxiliaryFilter(AdditiveNoise(0.3), 0.0)
    analysis, info = analyse(method, members, observation, key=jr.key(0))
    drawn = np.asarray(analysis.members[:, 0])
    likelihood = np.exp(-(((0.4 - drawn) / 0.5) ** 2) / 2) / (0.5 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(
        analysis.weights, likelihood / likelihood.sum(), rtol=1e-10
    )
    np.testing.assert_allclose(info.log_evidence, np.log(likelihood.mean()), rtol=1e-10)


def test_a_whole_step_may_be_the_noise():
    # A random walk seen with noise: the Kalman filter's steady state.
    walk = lambda state, forcing=None, *, key: state + 0.5 * jr.normal(key, state.shape)
    truth = np.cumsum(0.5 * np.random.default_rng(0).normal(size=300))
    values = jnp.asarray(truth + np.random.default_rng(1).normal(size=300))[:, None]
    run = jax.jit(
        lambda: cycle(
            still,
            AuxiliaryFilter(walk),
            Weighted(jr.normal(jr.key(0), (200, 1))),
            lambda value: Observation(value, lambda x: x, Diagonal(1.0)),
            values,
            key=jr.key(1),
            reduce=lambda weighted: weighted.mean(),
        )
    )
    mean, variance, means = 0.0, 1.0, []
    for value in np.asarray(values)[:, 0]:
        variance += 0.25
        gain = variance / (variance + 1)
        mean, variance = mean + gain * (value - mean), (1 - gain) * variance
        means.append(mean)
    gap = np.asarray(run().analyses[:, 0]) - np.asarray(means)
    # The posterior's spread of 0.6 over the root of some 100 effective members.
    assert np.sqrt(np.mean(gap**2)) < 0.12


def test_where_and_single_precision():
    members = jr.normal(jr.key(2), (6, 1), jnp.float32)
    state = {"x": members, "y": members[:, 0]}
    observation = Observation(np.asarray([0.4]), lambda s: s["x"], Diagonal(0.5))
    method = AuxiliaryFilter(AdditiveNoise(0.3), where=lambda s: s["x"])
    analysis, _ = analyse(method, state, observation, key=jr.key(0))
    assert analysis.members["x"].dtype == analysis.log_weights.dtype == jnp.float32
    np.testing.assert_array_equal(analysis.members["y"], state["y"])
    assert np.all(np.asarray(analysis.members["x"] != state["x"]))


def test_wrong_use_is_reported():
    with pytest.raises(eqx.EquinoxRuntimeError, match="`threshold` must not be negat"):
        AuxiliaryFilter(AdditiveNoise(1.0), -1.0)
    with pytest.raises(
        eqx.EquinoxRuntimeError, match=r"`caution` must lie in \[0, 1\]"
    ):
        AuxiliaryFilter(AdditiveNoise(1.0), caution=2.0)
