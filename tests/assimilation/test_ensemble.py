import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from skyens.assimilation._ensemble import (
    centre,
    chi_square,
    count_members,
    counts,
    observe,
    recombine,
    rotation,
    split,
)
from skyens.observations import Dense, Diagonal, Observation


def test_centre_keeps_small_spreads_about_large_values():
    spread = np.random.default_rng(0).normal(size=(50, 3))
    ensemble = (5.4e5 + spread).astype(np.float32)
    exact = ensemble.astype(np.float64)
    mean, anomalies = centre(jnp.asarray(ensemble))
    assert anomalies.dtype == jnp.float32
    # The mean is rounded to float32 (0.03 here), the anomalies are not.
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-7)
    np.testing.assert_allclose(anomalies, exact - exact.mean(0), atol=1e-6)


def test_observe_whitens_the_mean_innovation_and_the_anomalies():
    generator = np.random.default_rng(1)
    ensemble, matrix = generator.normal(size=(6, 4)), generator.normal(size=(3, 4))
    factor = generator.normal(size=(3, 3))
    error = Dense(factor @ factor.T)
    value = generator.normal(size=3)
    observation = Observation(value, lambda state: matrix @ state, error)
    innovation, anomalies = observe(jnp.asarray(ensemble), observation)
    whitener = np.linalg.inv(np.linalg.cholesky(factor @ factor.T))
    predicted = ensemble @ matrix.T
    expected = whitener @ (value - predicted.mean(0))
    np.testing.assert_allclose(innovation, expected, rtol=1e-9)
    expected = (predicted - predicted.mean(0)) @ whitener.T
    np.testing.assert_allclose(anomalies, expected, rtol=1e-8, atol=1e-10)


def test_chi_square_is_that_of_the_dense_innovation_covariance():
    generator = np.random.default_rng(2)
    anomalies = generator.normal(size=(5, 8))
    anomalies -= anomalies.mean(0)
    innovation = generator.normal(size=8)
    covariance = np.eye(8) + anomalies.T @ anomalies / 4
    expected = innovation @ np.linalg.solve(covariance, innovation) / 8
    weights = np.linalg.solve(
        4 * np.eye(5) + anomalies @ anomalies.T, anomalies @ innovation
    )
    innovation, anomalies, weights = map(jnp.asarray, (innovation, anomalies, weights))
    actual = chi_square(innovation, anomalies, weights, jnp.asarray(8))
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_counts_add_up_to_the_entries():
    value = np.asarray([[1.0, np.nan, 0.0], [2.0, 3.0, 0.0]])
    mask = np.asarray([[True], [False]])
    wrong = np.asarray([False, True, True])  # of which one is missing, one masked
    observation = Observation(
        value, lambda x: x, Diagonal(1.0), mask, rejected=wrong[None] & mask
    )
    number = {name: int(count) for name, count in counts(observation).items()}
    assert number == {"used": 1, "masked": 4, "rejected": 1}


def test_split_takes_the_inexact_leaves_or_those_asked_for():
    state = {"x": jnp.ones((3, 2)), "z": jnp.ones((3,), complex), "n": jnp.arange(3)}
    update, rest = split(state, None)
    assert update["n"] is None
    assert rest["x"] is None
    assert rest["z"] is None
    update, rest = split(state, lambda state: (state["x"],))
    assert update["z"] is None
    assert rest["x"] is None
    update, _ = split({"x": np.ones((3, 2))}, None)
    assert isinstance(update["x"], jax.Array)
    nested = {"a": state, "b": jnp.ones((3,))}
    update, _ = split(nested, lambda state: state["b"])
    assert jax.tree.leaves(update["a"]) == []


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_recombine_adds_the_product_with_the_anomalies(seed):
    generator = np.random.default_rng(seed)
    matrix, ensemble = generator.normal(size=(4, 4)), generator.normal(size=(4, 2, 3))
    expected = ensemble + np.tensordot(matrix, ensemble - ensemble.mean(0), 1)
    actual = recombine(jnp.asarray(matrix), jnp.asarray(ensemble))
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, jnp.float32, jnp.float64, jnp.complex64, jnp.complex128]
)
def test_recombine_with_zeros_returns_the_same_bits(dtype):
    ensemble = jr.normal(jr.key(0), (4, 3)).astype(dtype)
    actual = recombine(jnp.zeros((4, 4)), ensemble)
    assert actual.dtype == dtype
    np.testing.assert_array_equal(actual, ensemble)


def test_rotations_are_orthogonal_keep_the_mean_and_are_uniform():
    members = 4
    draw = jax.jit(jax.vmap(lambda key: rotation(members, np.dtype(float), key=key)))
    turns = np.asarray(draw(jr.split(jr.key(0), 2000)))
    identity = np.broadcast_to(np.eye(members), turns.shape)
    np.testing.assert_allclose(turns @ turns.mT, identity, atol=1e-13)
    np.testing.assert_allclose(turns.sum(-1), 1.0, atol=1e-13)
    # Uniform: a fixed axis across the mean goes to a point of the 2-sphere, any
    # coordinate of which is uniform (Archimedes).
    axis, other = np.asarray([1, -1, 0, 0]) / 2**0.5, np.asarray([1, 1, -2, 0]) / 6**0.5
    coordinate = turns @ axis @ other
    assert stats.kstest(coordinate, stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        count_members(jnp.ones((1, 3)))
    with pytest.raises(ValueError, match=r"same leading `member` axis.*\(2,\), \(3,\)"):
        count_members({"a": jnp.ones(2), "b": jnp.ones(3)})
    with pytest.raises(ValueError, match="same leading `member` axis"):
        count_members({"a": jnp.ones(2), "b": jnp.asarray(0.0)})
    with pytest.raises(ValueError, match="`where` selects leaves of int"):
        split({"n": jnp.arange(3)}, lambda state: state["n"])
    with pytest.raises(ValueError, match="nothing to update"):
        split({"n": jnp.arange(3)}, None)
