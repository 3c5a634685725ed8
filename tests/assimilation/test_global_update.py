"""What every filter with the same weights everywhere must keep."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.assimilation import ESTKF, DEnKF, EnKF, EnKFN, gram
from skyens.assimilation._ensemble import Recorded
from skyens.observations import Dense, Linear, Observation

KEY = jr.key(0)
analyse = eqx.filter_jit(lambda method, *args: method(*args, key=KEY))
methods = pytest.mark.parametrize("method", [EnKF, DEnKF, ESTKF, EnKFN])


def problem(members=5, count=3, states=7):
    generator = np.random.default_rng(0)
    background = generator.normal(size=(members, states)) + 3.0
    factor = generator.normal(size=(count, count))
    matrix = generator.normal(size=(count, states))
    error = Dense(factor @ factor.T + np.eye(count))
    value = generator.normal(size=count)
    return jnp.asarray(background), Observation(value, Linear(matrix), error)


@methods
def test_what_is_masked_has_no_say_and_nothing_used_is_the_identity(method):
    background, full = problem()
    some = jnp.asarray([True, True, False])
    masked = eqx.tree_at(lambda o: o.mask, full, some)
    lost = eqx.tree_at(lambda o: o.value, masked, full.value.at[2].set(jnp.nan))
    method = method(inflation=1.2)
    expected, plain = analyse(method, background, masked)
    analysis, info = analyse(method, background, lost)
    np.testing.assert_array_equal(analysis, expected)
    assert (int(info.used), int(info.masked)) == (2, 1)
    if not isinstance(method, EnKF):  # which draws as many numbers as there are entries
        assert isinstance(full.error, Dense)
        assert isinstance(full.operator, Linear)
        error = Dense(np.asarray(full.error.covariance)[:2, :2])
        operator = Linear(np.asarray(full.operator.matrix)[:2])
        fewer = Observation(full.value[:2], operator, error)
        expected, plain = analyse(method, background, fewer)
    np.testing.assert_allclose(analysis, expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(info.chi_square, plain.chi_square, rtol=1e-10)
    blind = eqx.tree_at(lambda o: o.mask, full, jnp.zeros(3, bool))
    untouched, info = analyse(method, background, blind)
    np.testing.assert_array_equal(untouched, background)
    assert (int(info.used), float(info.chi_square)) == (0, 0.0)
    assert float(info.degrees_of_freedom) == 0


@methods
def test_rotation_and_inflation_keep_the_mean_and_scale_the_covariance(method):
    background, observation = problem()
    plain, _ = analyse(method(), background, observation)
    turned, _ = analyse(method(rotate=True, inflation=1.5), background, observation)
    np.testing.assert_allclose(turned.mean(0), plain.mean(0), rtol=1e-11)
    np.testing.assert_allclose(
        np.cov(turned.T), 1.5**2 * np.cov(plain.T), rtol=1e-9, atol=1e-10
    )
    assert np.abs(turned - plain).max() > 0.1


@methods
def test_any_pytree_of_any_dtype_is_updated_with_the_same_weights(method):
    background, observation = problem()
    state = {
        "x": background,
        "waves": background[:, :2].astype(jnp.complex128) * (1 - 2j),
        "single": background[:, :2, None].astype(jnp.float32),
        "clock": jnp.arange(5),
        "noise": jnp.ones((5, 2)),
    }
    seen = observation.pullback(lambda state: state["x"])
    some = method(where=lambda s: (s["x"], s["waves"], s["single"]))
    analysis, _ = analyse(some, state, seen)
    chex.assert_trees_all_equal_shapes_and_dtypes(analysis, state)
    expected = np.asarray(analyse(method(), background, observation)[0])
    np.testing.assert_allclose(analysis["x"], expected, rtol=1e-13)
    np.testing.assert_allclose(
        analysis["waves"], expected[:, :2] * (1 - 2j), rtol=1e-12
    )
    np.testing.assert_allclose(analysis["single"][..., 0], expected[:, :2], rtol=1e-5)
    for left in ("clock", "noise"):
        np.testing.assert_array_equal(analysis[left], state[left])


@eqx.filter_jit
def loss(point, observation, method):
    background, inflation, value = point
    seen = eqx.tree_at(lambda o: o.value, observation, value)
    analysis, info = method(inflation=inflation)(background, seen, key=KEY)
    misfit = jnp.mean((analysis - 1) ** 2) + jnp.mean(analysis[0] ** 3)
    return misfit + 0.1 * info.chi_square + 0.1 * info.degrees_of_freedom


loss_gradient = eqx.filter_jit(jax.grad(loss))


@methods
@pytest.mark.parametrize("case", ["few", "equal members", "masked"])
def test_gradients_match_finite_differences(case, method):
    # Few: fewer observations than members - 1, so C has equal eigenvalues.
    background, observation = problem()
    if case == "equal members":
        background = jnp.broadcast_to(background[:1], background.shape)
    if case == "masked":
        blind = jnp.zeros(observation.mask.shape, bool)
        observation = eqx.tree_at(lambda o: o.mask, observation, blind)
    point = background, jnp.asarray(1.1), observation.value
    gradient = loss_gradient(point, observation, method)
    chex.assert_tree_all_finite(gradient)
    generator = np.random.default_rng(2)
    way = tuple(jnp.asarray(generator.normal(size=x.shape)) for x in point)
    slope = sum(np.vdot(g, w) for g, w in zip(gradient, way, strict=True))

    def at(epsilon):
        there = tuple(x + epsilon * w for x, w in zip(point, way, strict=True))
        return float(loss(there, observation, method))

    h = 1e-3  # a difference of fourth order
    expected = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-9)


@methods
def test_experiments_batch_with_settings_and_single_precision_stays(method):
    background, observation = problem()
    batch = jnp.stack([background, 2 * background + 1]).astype(jnp.float32)
    inflation = jnp.asarray([1.0, 1.3])
    run = lambda inflation, one: method(inflation=inflation)(one, observation, key=KEY)
    together, info = jax.jit(jax.vmap(run))(inflation, batch)
    assert together.dtype == jnp.float32
    assert info.used.shape == (2,)
    # In double precision the stochastic filter would draw other numbers.
    dtype = jnp.float32 if method is EnKF else jnp.float64
    for k in range(2):
        one = batch[k].astype(dtype)
        expected, _ = analyse(method(inflation=inflation[k]), one, observation)
        np.testing.assert_allclose(together[k], expected, atol=2e-5)


@methods
def test_gram_is_the_same(method):
    background, observation = problem()
    expected, _ = analyse(method(), background, observation)
    actual, _ = analyse(method(decompose=gram), background, observation)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


def test_predictions_recorded_along_a_window_are_taken_as_they_are():
    background, observation = problem()
    predictions = jax.vmap(observation.predict)(background)
    recorded = Observation(observation.value, Recorded(predictions), observation.error)
    expected, _ = analyse(DEnKF(), background, observation)
    analysis, _ = analyse(DEnKF(), background, recorded)
    np.testing.assert_allclose(analysis, expected, rtol=1e-12)


@methods
def test_wrong_use_is_reported(method):
    background, observation = problem()
    with pytest.raises(eqx.EquinoxRuntimeError, match="`inflation` must be above 0"):
        method(inflation=0.0)
    with pytest.raises(ValueError, match="`key` is needed to"):
        method(rotate=True)(background, observation)
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        method()(background[:1], observation, key=KEY)
