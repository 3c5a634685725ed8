import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens.assimilation import ETKF, gram, svd
from skyens.observations import Dense, Diagonal, Linear, Observation

decompositions = pytest.mark.parametrize("decompose", [None, svd, gram])
# Compiled once for all tests that share shapes.
analyse = eqx.filter_jit(lambda method, *args, **kwargs: method(*args, **kwargs))


def problem(members=5, count=3, states=7, seed=0):
    """A background and an observation of it with correlated errors."""
    generator = np.random.default_rng(seed)
    background = generator.normal(size=(members, states)) + 3.0
    factor = generator.normal(size=(count, count))
    matrix = generator.normal(size=(count, states))
    error = Dense(factor @ factor.T + np.eye(count))
    value = generator.normal(size=count)
    return jnp.asarray(background), Observation(value, Linear(matrix), error)


def error_covariance(observation):
    assert isinstance(observation.error, Dense)
    return np.asarray(observation.error.covariance)


def dense_update(background, observation):
    """Kalman's mean and covariance, from the covariance of the ensemble, in NumPy."""
    mean, covariance = np.mean(background, 0), np.cov(np.asarray(background).T)
    used = np.flatnonzero(observation.mask)
    matrix = np.asarray(observation.operator.matrix)[used]
    error = error_covariance(observation)[np.ix_(used, used)]
    value = np.asarray(observation.value)[used]
    gain = covariance @ matrix.T @ np.linalg.inv(matrix @ covariance @ matrix.T + error)
    kept = np.eye(len(mean)) - gain @ matrix
    return mean + gain @ (value - matrix @ mean), kept @ covariance


@eqx.filter_jit
def loss(point, observation, decompose):
    background, inflation, value = point
    seen = eqx.tree_at(lambda o: o.value, observation, value)
    analysis, info = ETKF(inflation, decompose=decompose)(background, seen)
    misfit = jnp.mean((analysis - 1) ** 2) + jnp.mean(analysis[0] ** 3)
    return misfit + 0.1 * info.chi_square + 0.1 * info.degrees_of_freedom


loss_gradient = eqx.filter_jit(jax.grad(loss))


def check_gradient(point, observation, decompose):
    """Compare the gradient with a difference of fourth order along a random way."""
    gradient = loss_gradient(point, observation, decompose)
    chex.assert_tree_all_finite(gradient)
    generator = np.random.default_rng(2)
    way = tuple(jnp.asarray(generator.normal(size=x.shape)) for x in point)
    slope = sum(np.vdot(g, w) for g, w in zip(gradient, way, strict=True))

    def at(epsilon):
        there = tuple(x + epsilon * w for x, w in zip(point, way, strict=True))
        return float(loss(there, observation, decompose))

    h = 1e-3
    expected = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-9)


@decompositions
@pytest.mark.parametrize(("members", "count"), [(5, 3), (5, 9)])
def test_mean_and_covariance_are_those_of_the_dense_update(members, count, decompose):
    background, observation = problem(members, count)
    analysis, info = analyse(ETKF(decompose=decompose), background, observation)
    mean, covariance = dense_update(background, observation)
    np.testing.assert_allclose(analysis.mean(0), mean, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(np.cov(analysis.T), covariance, rtol=1e-10, atol=1e-10)
    assert (int(info.used), int(info.masked)) == (count, 0)
    assert info.method is None


def test_degrees_of_freedom_are_the_trace_of_the_influence():
    background, observation = problem()
    _, info = analyse(ETKF(), background, observation)
    matrix = np.asarray(observation.operator.matrix)
    seen = matrix @ np.cov(np.asarray(background).T) @ matrix.T
    error = error_covariance(observation)
    expected = np.trace(seen @ np.linalg.inv(seen + error))
    np.testing.assert_allclose(info.degrees_of_freedom, expected, rtol=1e-10)


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 2**31),
    masked=st.lists(st.booleans(), min_size=3, max_size=3).map(np.asarray),
)
def test_a_mask_is_as_good_as_removal(seed, masked):
    background, full = problem(seed=seed)
    observation = eqx.tree_at(lambda o: o.mask, full, jnp.asarray(~masked))
    analysis, info = analyse(ETKF(), background, observation)
    if masked.all():
        np.testing.assert_array_equal(analysis, background)
        assert float(info.chi_square) == 0
        assert float(info.degrees_of_freedom) == 0
        return
    mean, covariance = dense_update(background, observation)
    np.testing.assert_allclose(analysis.mean(0), mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(np.cov(analysis.T), covariance, rtol=1e-9, atol=1e-9)
    assert (int(info.used), int(info.masked)) == (sum(~masked), sum(masked))


@decompositions
def test_an_observation_given_twice_is_one_of_half_the_variance(decompose):
    # Equal columns of Y: a singular value that only rounding keeps from 0.
    background, seen = problem(6, 4, seed=3)
    assert isinstance(seen.operator, Linear)
    rows = np.asarray([0, 1, 2, 3, 1])
    variance = np.asarray([0.3, 1.0, 0.2, 0.5, 1.0])
    operator = Linear(np.asarray(seen.operator.matrix)[rows])
    method = ETKF(decompose=decompose)
    halved = np.where(rows == 1, 0.5, variance)[:4]
    once = Observation(seen.value, seen.operator, Diagonal(np.sqrt(halved)))
    error = Diagonal(np.sqrt(variance))
    twice = Observation(seen.value[rows], operator, error)
    expected, _ = analyse(method, background, once)
    actual, _ = analyse(method, background, twice)
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-10)
    check_gradient((background, jnp.asarray(1.0), twice.value), twice, decompose)


def test_the_order_of_members_and_observations_does_not_matter():
    background, observation = problem(5, 3)
    analysis, _ = analyse(ETKF(), background, observation)
    order = jnp.asarray([3, 0, 4, 1, 2])
    turned, _ = analyse(ETKF(), background[order], observation)
    np.testing.assert_allclose(turned, analysis[order], rtol=1e-12, atol=1e-12)
    rows = np.asarray([2, 0, 1])
    again = Observation(
        observation.value[rows],
        Linear(np.asarray(observation.operator.matrix)[rows]),
        Dense(error_covariance(observation)[np.ix_(rows, rows)]),
    )
    turned, _ = analyse(ETKF(), background, again)
    np.testing.assert_allclose(turned, analysis, rtol=1e-11, atol=1e-11)


def test_inflation_scales_anomalies_and_rotation_keeps_two_moments():
    background, observation = problem()
    plain = np.asarray(analyse(ETKF(), background, observation)[0])
    inflated, _ = analyse(ETKF(1.5), background, observation)
    expected = plain.mean(0) + 1.5 * (plain - plain.mean(0))
    np.testing.assert_allclose(inflated, expected, rtol=1e-12)
    turned, _ = analyse(ETKF(1.5, rotate=True), background, observation, key=jr.key(0))
    assert np.abs(turned - inflated).max() > 0.1
    np.testing.assert_allclose(turned.mean(0), inflated.mean(0), rtol=1e-11)
    np.testing.assert_allclose(
        np.cov(turned.T), np.cov(inflated.T), rtol=1e-10, atol=1e-11
    )


def test_nothing_used_is_the_identity_inflated_or_not():
    background, observation = problem()
    blind = eqx.tree_at(lambda o: o.mask, observation, jnp.zeros(3, bool))
    analysis, info = analyse(ETKF(1.5), background, blind)
    np.testing.assert_array_equal(analysis, background)
    assert (int(info.used), int(info.masked)) == (0, 3)


def test_any_pytree_of_any_dtype_is_updated_with_the_same_weights():
    background, observation = problem()
    waves = background[:, :2].astype(jnp.complex128) * (1 - 2j)
    state = {
        "x": background,
        "waves": waves,
        "single": background[:, :2, None].astype(jnp.float32),
        "clock": jnp.arange(5),
    }
    seen = observation.pullback(lambda state: state["x"])
    analysis, _ = analyse(ETKF(), state, seen)
    chex.assert_trees_all_equal_shapes_and_dtypes(analysis, state)
    expected = np.asarray(analyse(ETKF(), background, observation)[0])
    np.testing.assert_allclose(analysis["x"], expected, rtol=1e-13)
    np.testing.assert_allclose(
        analysis["waves"], expected[:, :2] * (1 - 2j), rtol=1e-12
    )
    np.testing.assert_allclose(analysis["single"][..., 0], expected[:, :2], rtol=1e-5)
    np.testing.assert_array_equal(analysis["clock"], state["clock"])
    some, _ = analyse(ETKF(where=lambda s: s["x"]), state, seen)
    chex.assert_trees_all_equal(some["waves"], waves)
    np.testing.assert_allclose(some["x"], expected, rtol=1e-13)


@decompositions
@pytest.mark.parametrize("case", ["few", "many", "equal members", "masked"])
def test_gradients_match_finite_differences(case, decompose):
    # Few: fewer observations than members - 1, so C has equal eigenvalues.
    background, observation = problem(5, 8 if case == "many" else 3)
    if case == "equal members":
        background = jnp.broadcast_to(background[:1], background.shape)
    if case == "masked":
        blind = jnp.zeros(observation.mask.shape, bool)
        observation = eqx.tree_at(lambda o: o.mask, observation, blind)
    point = background, jnp.asarray(1.1), observation.value
    check_gradient(point, observation, decompose)


@decompositions
def test_float32_is_close_to_float64_for_precise_observations(decompose):
    background, seen = problem()
    std = 0.01
    value = seen.operator(background[0]) + std
    method = ETKF(decompose=decompose)
    observation = Observation(value, seen.operator, Diagonal(std))
    exact, _ = analyse(method, background, observation)
    single, _ = analyse(method, background.astype(jnp.float32), observation)
    assert single.dtype == jnp.float32
    # float32 rounds predictions of 10 by 1e-6; an analysis divides by a smallest
    # singular value of the operator near 1.
    np.testing.assert_allclose(single, exact, atol=3e-5)


def test_experiments_batch():
    background, observation = problem()
    batch = jnp.stack([background, 2 * background + 1])
    method = ETKF(1.1)
    run = jax.jit(jax.vmap(lambda background: method(background, observation)))
    together, info = run(batch)
    for k in range(2):
        expected, _ = analyse(method, batch[k], observation)
        np.testing.assert_allclose(together[k], expected, rtol=1e-11, atol=1e-12)
    assert info.used.shape == (2,)


def test_wrong_use_is_reported():
    background, observation = problem()
    with pytest.raises(eqx.EquinoxRuntimeError, match="`inflation` must be above 0"):
        ETKF(0.0)
    with pytest.raises(ValueError, match="`key` is needed to rotate"):
        ETKF(rotate=True)(background, observation)
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        ETKF()(background[:1], observation)
