import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import dynamics
from skyens.assimilation import ETKF, cycle, errors, kalman_update, moments, twin
from skyens.observations import Dense, Diagonal, Index, Linear, Observation

KEY = jr.key(11)
FIRST = Index(np.array([0, 2]))


def noisy(state, forcing=None, *, key):
    push = 0 if forcing is None else forcing
    return 0.9 * state + push + 0.1 * jr.normal(key, state.shape)


def steady(state, forcing=None, *, key=None):
    return 0.99 * state


def test_truth_and_data_are_those_of_the_model_and_of_the_law():
    covariance = np.array([[1.0, 0.6], [0.6, 2.0]])
    world = twin(
        steady, jnp.ones(3), FIRST, Dense(covariance), 2000, key=KEY, steps_between=2
    )
    times = np.arange(1, 2001)
    np.testing.assert_allclose(world.truth[:, 0], 0.99 ** (2 * times), rtol=1e-9)
    error = world.data - world.truth[:, jnp.array([0, 2])]
    # The standard error of a mean is sqrt(2 / 2000), that of a variance 2 * 0.032.
    np.testing.assert_allclose(error.mean(0), 0, atol=0.13)
    np.testing.assert_allclose(np.cov(error.T), covariance, atol=0.25)
    one = world.observe(world.data[0])
    assert isinstance(one, Observation)
    np.testing.assert_array_equal(one.predict(jnp.arange(3.0)), [0.0, 2.0])


def test_steps_forcings_and_spin_up_follow_each_other():
    forcings = jnp.arange(6.0)
    count = lambda state, forcing=None, *, key=None: (
        state + 1 if forcing is None else state + 100 * forcing
    )
    settings = {"key": KEY, "steps_between": 2, "forcings": forcings, "spin_up": 4}
    world = twin(count, jnp.zeros(()), lambda x: x, Diagonal(1e-9), 3, **settings)
    assert world.state0 == 4
    np.testing.assert_array_equal(world.truth, 4 + np.array([100, 600, 1500]))
    np.testing.assert_allclose(world.data, world.truth)
    every = twin(
        count,
        jnp.zeros(()),
        lambda x: x,
        Diagonal(1e-9),
        3,
        asynchronous=True,
        **settings,
    )
    np.testing.assert_allclose(every.data, 4 + np.cumsum(100 * forcings).reshape(3, 2))


def test_missing_values_are_absent_at_random_and_masked():
    world = twin(steady, jnp.ones(3), FIRST, Diagonal(1.0), 2000, key=KEY, missing=0.3)
    assert abs(np.isnan(world.data).mean() - 0.3) < 0.03
    first = world.observe(world.data[0])
    np.testing.assert_array_equal(first.mask, ~np.isnan(world.data[0]))


def test_a_twin_is_reproducible_and_maps_over_keys():
    run = lambda key: twin(noisy, jnp.ones(3), FIRST, Diagonal(1.0), 5, key=key)
    keys = jr.split(KEY, 2)
    both = jax.jit(jax.vmap(run))(keys)
    for i in range(2):
        one = run(keys[i])
        np.testing.assert_allclose(both.truth[i], one.truth, rtol=1e-12)
        np.testing.assert_allclose(both.data[i], one.data, rtol=1e-12)
    assert abs(both.truth[0] - both.truth[1]).max() > 0.01
    # Truth and members of a cycle with the same key err on their own.
    observe = lambda value: Observation(value, FIRST, Diagonal(1.0))
    nothing = lambda background, observation, *, key=None: (background, None)
    result = cycle(noisy, nothing, jnp.ones((2, 3)), observe, both.data[0], key=keys[0])
    assert abs(result.analyses[:, 0] - both.truth[0]).min() > 1e-6


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtypes_stay_and_states_may_be_pytrees(dtype):
    tick = lambda state, forcing=None, *, key=None: {
        "x": state["x"] / 2,
        "clock": state["clock"] + 1,
    }
    state0 = {"x": jnp.ones(2, dtype), "clock": jnp.asarray(0)}
    world = twin(tick, state0, lambda s: s["x"], Diagonal(0.1), 3, key=KEY)
    assert world.data.dtype == world.truth["x"].dtype == dtype
    assert world.truth["clock"].tolist() == [1, 2, 3]


def test_a_filter_of_a_linear_twin_is_the_dense_kalman_filter():
    generator = np.random.default_rng(3)
    model = jnp.asarray(0.95 * np.linalg.qr(generator.normal(size=(3, 3)))[0])
    turn = lambda state, forcing=None, *, key=None: model @ state
    operator = Linear(generator.normal(size=(2, 3)))
    world = twin(turn, jnp.ones(3), operator, Diagonal(0.5), 6, key=KEY, missing=0.3)
    assert np.isnan(world.data).any()
    ensemble = jnp.asarray(generator.normal(size=(5, 3)))
    result = cycle(
        turn, ETKF(), ensemble, world.observe, world.data, key=KEY, truth=world.truth
    )
    mean, covariance = ensemble.mean(0), jnp.cov(ensemble.T)
    for analysis, value in zip(result.analyses, world.data, strict=True):
        mean, covariance = model @ mean, model @ covariance @ model.T
        mean, covariance = kalman_update(mean, covariance, world.observe(value))
        np.testing.assert_allclose(analysis.mean(0), mean, atol=1e-10)
        np.testing.assert_allclose(np.cov(analysis.T), covariance, atol=1e-10)


def test_lorenz_96_is_filtered_far_below_the_observation_error():
    # Sakov & Oke (2008): 0.18 for an observation error of 1 (climatology: 3.6).
    step, start = dynamics.Lorenz96(), jnp.full(40, 8.0).at[0].add(0.01)
    everything = Index(np.arange(40))

    @jax.jit
    def run(key):
        world = twin(step, start, everything, Diagonal(1.0), 400, key=key, spin_up=300)
        ensemble = world.state0[None] + jr.normal(jr.key(1), (24, 40))
        method = ETKF(1.02, rotate=True)
        settings = {"key": key, "reduce": moments}
        result = cycle(step, method, ensemble, world.observe, world.data, **settings)
        return errors(result.analyses, world.truth, burn_in=100)

    found = run(KEY)
    assert found.mean_error < 0.25
    assert 0.7 < found.mean_spread / found.mean_error < 1.4


def test_wrong_use_is_reported():
    run = lambda **more: twin(
        steady, jnp.ones(3), FIRST, Diagonal(1.0), **({"times": 2, "key": KEY} | more)
    )
    with pytest.raises(ValueError, match="at least 1 and `spin_up` 0, got 0, 1 and 0"):
        run(times=0)
    with pytest.raises(
        ValueError, match=r"must have 2 \* 3 steps, got the shape \(2,\)"
    ):
        run(steps_between=3, forcings=jnp.ones(2))
    with pytest.raises(
        eqx.EquinoxRuntimeError, match=r"`missing` must lie in \[0, 1\]"
    ):
        run(missing=1.5)
