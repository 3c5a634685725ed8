from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import dynamics, scores
from skyens.assimilation import (
    ETKF,
    AgainstObservations,
    BootstrapFilter,
    Info,
    Information,
    Replace,
    Weighted,
    cycle,
    kalman_update,
)
from skyens.observations import Diagonal, Index, Linear, Observation

KEY = jr.key(7)
STATIC = ("steps_between", "start", "version")
everything = Index(np.arange(40))
lorenz96 = dynamics.Lorenz96()


def noisy(state, forcing, *, key):
    return 0.9 * state + forcing + 0.1 * jr.normal(key, state.shape)


def still(state, forcing=None, *, key=None):
    return state


def in_a_tuple(value) -> Any:
    return (value,)


def single(background, observation, *, key=None):
    return background.astype(jnp.float32), None


def nothing(background, observation, *, key=None):
    return background, None


def test_it_filters_lorenz_96_far_below_the_observation_error():
    # Sakov & Oke (2008): the ETKF of 24 members with rotations has an error near 0.18
    # of the observation error of 1 (climatology: 3.6).
    start = jnp.full(40, 8.0).at[0].add(0.01)
    truth = dynamics.rollout(lorenz96, start, 700)[300:]
    values = truth + jr.normal(jr.key(0), truth.shape)
    ensemble = truth[:1] + jr.normal(jr.key(1), (24, 40))
    run = jax.jit(
        lambda: cycle(
            lorenz96,
            ETKF(1.02, rotate=True),
            ensemble,
            lambda value: Observation(value, everything, Diagonal(1.0)),
            values[1:],
            key=KEY,
            reduce=lambda ensemble: (ensemble.mean(0), jnp.var(ensemble, 0, ddof=1)),
        )
    )
    result = run()
    (mean, variance), (before, _) = result.analyses, result.backgrounds
    error = lambda mean: np.sqrt(np.mean((mean - truth[1:])[100:] ** 2))
    assert error(mean) < 0.25
    assert error(mean) < error(before) < 0.3
    spread = np.sqrt(np.mean(variance[100:]))
    assert 0.7 < spread / error(mean) < 1.4
    # E[chi-square] is 1 in a consistent filter; 300 times 40 values.
    assert 0.8 < np.mean(result.infos.chi_square[100:]) < 1.2


def test_a_linear_gaussian_chain_is_the_kalman_filter():
    generator = np.random.default_rng(2)
    model = np.linalg.qr(generator.normal(size=(3, 3)))[0] * 0.95
    matrix, values = generator.normal(size=(2, 3)), generator.normal(size=(6, 2))
    values[2, 0] = values[4] = np.nan
    ensemble = jnp.asarray(generator.normal(size=(5, 3)))
    step = lambda state, forcing=None, *, key=None: jnp.asarray(model) @ state
    observe = lambda value: Observation(value, Linear(matrix), Diagonal(0.5))
    result = cycle(
        step, ETKF(), ensemble, observe, jnp.asarray(values), key=KEY, steps_between=2
    )
    mean, covariance = ensemble.mean(0), jnp.cov(ensemble.T)
    twice = jnp.asarray(model @ model)
    for analysis, value in zip(result.analyses, values, strict=True):
        mean, covariance = twice @ mean, twice @ covariance @ twice.T
        mean, covariance = kalman_update(mean, covariance, observe(value))
        np.testing.assert_allclose(analysis.mean(0), mean, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(np.cov(analysis.T), covariance, atol=1e-10)
    assert result.infos.used.tolist() == [2, 2, 1, 2, 0, 2]
    assert result.infos.masked.tolist() == [0, 0, 1, 0, 2, 0]
    np.testing.assert_array_equal(result.analyses[4], result.backgrounds[4])
    np.testing.assert_array_equal(result.ensemble, result.analyses[-1])


def test_any_member_replays_alone_with_the_keys_of_rollout():
    ensemble = jr.normal(jr.key(3), (4, 2))
    forcings = jr.normal(jr.key(4), (6, 2))
    observe = lambda value: Observation(value, Index(np.arange(2)), Diagonal(1.0))
    result = jax.jit(cycle, static_argnums=(0, 1, 3), static_argnames=STATIC)(
        noisy,
        nothing,
        ensemble,
        observe,
        jnp.zeros((2, 2)),
        key=KEY,
        steps_between=3,
        forcings=forcings,
        start="2017-01-01",
        version=5,
    )
    key = dynamics.run_key(KEY, dynamics.Purpose.STEP, start="2017-01-01", version=5)
    keys = dynamics.member_keys(key, 4)
    alone = dynamics.rollout(noisy, ensemble[2], 6, forcings, key=keys[2])
    np.testing.assert_allclose(result.backgrounds[:, 2], alone[2::3], rtol=1e-14)


class Adaptive(eqx.Module):
    """Adds its memory, and remembers one more."""

    memory: jax.Array
    note: str = "kept"

    def __call__(self, background, observation, *, key=None):
        zero = jnp.asarray(0.0)
        successor = Adaptive(self.memory + 1)
        none = jnp.asarray(0)
        info = Info(none, none, none, zero, zero, successor)
        return background + self.memory, info


def test_a_method_s_memory_is_carried_and_returned():
    observe = lambda value: Observation(value, lambda state: state, Diagonal(1.0))
    method, data = Adaptive(jnp.asarray(1.0)), jnp.zeros((3, 1))
    result = cycle(still, method, jnp.zeros((2, 1)), observe, data, key=KEY)
    np.testing.assert_array_equal(result.analyses[:, 0, 0], [1.0, 3.0, 6.0])
    assert float(result.method.memory) == 4.0
    assert result.method.note == "kept"
    np.testing.assert_array_equal(result.infos.method.memory, [2.0, 3.0, 4.0])
    again = cycle(still, result.method, result.ensemble, observe, data, key=KEY)
    assert float(again.analyses[-1, 0, 0]) == 6 + 4 + 5 + 6


def test_it_runs_under_jit_and_vmap_with_a_true_gradient():
    generator = np.random.default_rng(5)
    ensemble = jnp.asarray(generator.normal(size=(4, 3)))
    values = jnp.asarray(generator.normal(size=(5, 1)))
    # With fewer observations than members - 1, C has equal eigenvalues.
    observe = lambda value: Observation(value, Index(np.arange(1)), Diagonal(0.5))
    curve = lambda state, forcing=None, *, key=None: jnp.sin(state + jnp.roll(state, 1))

    def loss(inflation):
        result = cycle(curve, ETKF(inflation), ensemble, observe, values, key=KEY)
        return jnp.mean(result.analyses[-1] ** 2)

    at, step = jnp.asarray([1.0, 1.3]), 1e-5
    slope = jax.jit(jax.vmap(jax.grad(loss)))(at)
    points = jnp.concatenate([at + step, at - step])
    ahead, behind = jax.jit(jax.vmap(loss))(points).reshape(2, 2)
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-6)


def test_wrong_use_is_reported():
    observe = lambda value: Observation(value, lambda state: state, Diagonal(1.0))
    run = lambda ensemble, data, **more: cycle(
        noisy, nothing, ensemble, observe, data, key=KEY, **more
    )
    ensemble, data = jnp.ones((2, 3)), jnp.ones((4, 3))
    with pytest.raises(ValueError, match="`steps_between` must be at least 1, got 0"):
        run(ensemble, data, steps_between=0)
    with pytest.raises(ValueError, match=r"must have 4 \* 2 steps, got 4"):
        run(ensemble, data, steps_between=2, forcings=jnp.ones((4, 3)))
    with pytest.raises(ValueError, match="`data` need the same leading time axis"):
        run(ensemble, {"a": data, "b": data[:2]})
    with pytest.raises(ValueError, match="`data` holds no array"):
        run(ensemble, {})
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        cycle(still, ETKF(), ensemble[:1], observe, data, key=KEY)
    with pytest.raises(ValueError, match="`truth` must have the 4 times of `data`"):
        run(ensemble, data, truth=data[:3])
    with pytest.raises(ValueError, match=r"lie outside of its window. Mask the steps"):
        run(ensemble, jnp.ones((4, 3, 1)), steps_between=2, asynchronous=True)
    with pytest.raises(ValueError, match=r"must return an Observation .* got tuple"):
        cycle(still, nothing, ensemble, in_a_tuple, data, key=KEY)
    with pytest.raises(ValueError, match="`checkpoint` must divide the 4 analyses"):
        cycle(still, nothing, ensemble, observe, data, key=KEY, checkpoint=3)
    with pytest.raises(ValueError, match=r"Got float32\[2, 3\] for float64\[2, 3\]"):
        cycle(still, single, ensemble, observe, data, key=KEY)
    with pytest.raises(ValueError, match=r"start from Weighted\(ensemble0\)"):
        cycle(still, BootstrapFilter(), ensemble, observe, data, key=KEY)


def test_weighted_members_move_and_their_weights_stay():
    members = jr.normal(jr.key(5), (6, 2))
    weighted = Weighted(members, jnp.arange(6.0))
    observe = lambda value: Observation(value, lambda state: state, Diagonal(1.0))
    twice = lambda state, forcing=None, *, key=None: 2 * state
    result = cycle(
        twice,
        nothing,
        weighted,
        observe,
        jnp.zeros((3, 2)),
        key=KEY,
        failures=Replace(7 * float(abs(members).max())),
        diagnostics={"spread": AgainstObservations(scores.SpreadSkill())},
    )
    np.testing.assert_allclose(result.ensemble.log_weights, weighted.log_weights)
    np.testing.assert_array_equal(result.analyses.members[1], 4 * members)
    assert int(result.failed[0]) == int(result.failed[1]) == 0 < int(result.failed[2])
    assert np.isfinite(result.diagnostics["spread"].spread)


def test_gradients_through_many_cycles_are_finite_whatever_is_computed_again():
    start = jnp.full(40, 8.0).at[0].add(0.01)
    truth = dynamics.rollout(lorenz96, start, 250)[200:]
    values = truth + jr.normal(jr.key(0), truth.shape)
    # Fewer observations than members: C has equal eigenvalues.
    observe = lambda value: Observation(
        value, Index(np.arange(0, 40, 4)), Diagonal(1.0)
    )

    @partial(jax.jit, static_argnums=(2, 3))
    def loss(inflation, ensemble, times, checkpoint):
        result = cycle(
            lorenz96,
            ETKF(inflation),
            ensemble,
            observe,
            values[:times, ::4],
            key=KEY,
            checkpoint=checkpoint,
            reduce=lambda ensemble: ensemble.mean(0),
        )
        return jnp.mean((result.analyses - truth[:times]) ** 2)

    ensemble = start[None] + jr.normal(jr.key(1), (16, 40))
    slope = jax.grad(loss, argnums=(0, 1))
    assert all(np.isfinite(x).all() for x in slope(1.05, ensemble, 50, 10))
    # A few cycles, before chaos takes the digits that differences need.
    inflation, members = slope(1.05, ensemble, 4, 2)
    direction = jr.normal(jr.key(2), ensemble.shape)
    for exact, move in (
        (inflation, lambda e: loss(1.05 + e, ensemble, 4, 2)),
        (
            jnp.vdot(members, direction),
            lambda e: loss(1.05, ensemble + e * direction, 4, 2),
        ),
    ):
        difference = (move(1e-5) - move(-1e-5)) / 2e-5
        np.testing.assert_allclose(exact, difference, rtol=1e-6)


def test_it_maps_over_experiments():
    generator = np.random.default_rng(6)
    matrix, values = generator.normal(size=(2, 3)), generator.normal(size=(4, 1, 2))
    ensemble, values = jnp.asarray(generator.normal(size=(5, 3))), jnp.asarray(values)
    step = lambda state, forcing=None, *, key=None: 0.9 * jnp.roll(state, 1)
    observe = lambda value: Observation(value, Linear(matrix), Diagonal(0.7))

    def run(inflation, values, key):
        return cycle(
            step,
            ETKF(inflation, rotate=True),
            ensemble,
            observe,
            values,
            key=key,
            failures=Replace(1e3),
            diagnostics={"info": Information()},
        )

    settings = jnp.asarray([1.0, 1.2]), jnp.stack([values[:, 0], -values[:, 0]])
    keys = jr.split(KEY, 2)
    both = jax.jit(jax.vmap(run))(*settings, keys)
    second = run(settings[0][1], settings[1][1], keys[1])
    np.testing.assert_allclose(both.analyses[1], second.analyses, rtol=1e-10)
    chi_square = second.diagnostics["info"].chi_square
    np.testing.assert_allclose(both.diagnostics["info"].chi_square[1], chi_square)


def test_float32_stays_and_a_clock_passes_through():
    ensemble = {
        "x": jr.normal(jr.key(8), (4, 2), jnp.float32),
        "clock": jnp.zeros(4, int),
    }
    tick = lambda state, forcing=None, *, key=None: {
        "x": state["x"] * 0.5,
        "clock": state["clock"] + 1,
    }
    observe = lambda value: Observation(value, lambda s: s["x"], Diagonal(1.0))
    data = jnp.zeros((3, 2), jnp.float32)
    result = cycle(tick, ETKF(), ensemble, observe, data, key=KEY, failures=Replace())
    assert result.analyses["x"].dtype == jnp.float32
    assert result.ensemble["clock"].tolist() == [3] * 4
