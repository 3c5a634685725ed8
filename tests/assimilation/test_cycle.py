import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import dynamics
from skyens.assimilation import ETKF, Info, cycle, kalman_update
from skyens.observations import Diagonal, Index, Linear, Observation

KEY = jr.key(7)
STATIC = ("steps_between", "start", "version")
everything = Index(np.arange(40))


def lorenz96(state, forcing=None, *, key=None):
    """One Runge-Kutta step of 0.05 of Lorenz (1996) with forcing 8."""

    def tendency(x):
        return (jnp.roll(x, -1) - jnp.roll(x, 2)) * jnp.roll(x, 1) - x + 8.0

    a = tendency(state)
    b = tendency(state + 0.025 * a)
    c = tendency(state + 0.025 * b)
    d = tendency(state + 0.05 * c)
    return state + 0.05 / 6 * (a + 2 * b + 2 * c + d)


def noisy(state, forcing, *, key):
    return 0.9 * state + forcing + 0.1 * jr.normal(key, state.shape)


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
    still = lambda state, forcing=None, *, key=None: state
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
        run(ensemble[:1], data)
