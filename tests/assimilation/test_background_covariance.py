import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings, strategies as st
from jax.flatten_util import ravel_pytree

from skyens.assimilation import (
    BackgroundCovariance,
    DenseCovariance,
    DiagonalCovariance,
    covariance_times,
    draw_perturbation,
)
from skyens.assimilation._background_covariance_root import symmetric_root

STATE = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(3)}  # seven entries
flat = lambda state: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state)])


def matrix(seed=0, rank=7):
    factor = np.random.default_rng(seed).normal(size=(7, rank))
    return factor @ factor.T


def columns(covariance, state):
    """The matrix that `covariance_times` multiplies with."""
    flat, unravel = ravel_pytree(state)
    times = lambda x: ravel_pytree(covariance_times(covariance, unravel(x)))[0]
    return jax.vmap(times)(jnp.eye(flat.size, dtype=flat.dtype))


@pytest.mark.parametrize("rank", [7, 3])
def test_a_dense_covariance_is_its_matrix_singular_or_not(rank):
    covariance = DenseCovariance(matrix(rank=rank))
    assert isinstance(covariance, BackgroundCovariance)
    np.testing.assert_allclose(
        jax.jit(columns)(covariance, STATE), matrix(rank=rank), atol=1e-11
    )


def test_a_diagonal_covariance_is_the_square_of_its_std():
    std = {"a": np.array([[1.0, 2.0]]), "b": np.array([0.0, 3.0, 4.0])}
    covariance = DiagonalCovariance(std)
    expected = np.diag([1.0, 4, 1, 4, 0, 9, 16])
    np.testing.assert_allclose(columns(covariance, STATE), expected)
    np.testing.assert_allclose(columns(DiagonalCovariance(3.0), STATE), 9 * np.eye(7))


def test_draws_have_the_covariance():
    covariance = DenseCovariance(matrix())
    draw = lambda key: draw_perturbation(covariance, STATE, key=key)
    draws = jax.vmap(draw)(jr.split(jr.key(0), 20_000))
    samples = np.concatenate([draws["a"].reshape(-1, 4), draws["b"]], axis=1)
    # The standard error of a sample covariance, six of them.
    variance = np.diag(matrix())
    error = np.sqrt((matrix() ** 2 + np.outer(variance, variance)) / len(samples))
    assert np.all(abs(np.cov(samples.T) - matrix()) < 6 * error)


def test_dtypes_are_those_of_the_state():
    state = {"a": STATE["a"].astype(jnp.float32), "b": STATE["b"].astype(jnp.bfloat16)}
    covariance = DenseCovariance(matrix())
    assert covariance.control(state).dtype == jnp.float32
    draw = draw_perturbation(covariance, state, key=jr.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(draw, state)
    spread = covariance_times(DiagonalCovariance(2.0), state)
    chex.assert_trees_all_equal_shapes_and_dtypes(spread, state)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), rank=st.integers(1, 7))
def test_the_root_is_that_of_scipy(seed, rank):
    full = matrix(seed, rank)
    root = np.asarray(jax.jit(symmetric_root)(jnp.asarray(full)))
    np.testing.assert_allclose(root, root.T, atol=1e-12)
    np.testing.assert_allclose(root @ root, full, atol=1e-11 * abs(full).max())
    assert np.linalg.eigvalsh(root)[0] > -1e-6


@pytest.mark.parametrize("start", [np.eye(3), np.diag([2.0, 2.0, 1.0])])
def test_the_root_has_the_derivative_where_eigenvalues_are_equal(start):
    start = jnp.asarray(start)
    change = np.random.default_rng(0).normal(size=(3, 3))
    change = jnp.asarray(change + change.T)
    _, slope = jax.jvp(symmetric_root, (start,), (change,))
    # dS S + S dS = dM
    root = scipy.linalg.sqrtm(start)
    expected = scipy.linalg.solve_sylvester(root, root, np.asarray(change))
    np.testing.assert_allclose(slope, expected, atol=1e-12)


def test_the_root_of_nothing_has_a_finite_gradient():
    gradient = jax.grad(lambda matrix: symmetric_root(matrix).sum())(jnp.zeros((3, 3)))
    np.testing.assert_array_equal(gradient, np.zeros((3, 3)))


def test_wrong_use_is_reported():
    with pytest.raises(eqx.EquinoxRuntimeError, match="positive semidefinite"):
        DenseCovariance(np.diag([1.0, -1.0]))
    with pytest.raises(eqx.EquinoxRuntimeError, match="symmetric"):
        DenseCovariance(np.array([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(eqx.EquinoxRuntimeError, match="`covariance` must be finite"):
        DenseCovariance(np.full((2, 2), np.nan))
    with pytest.raises(eqx.EquinoxRuntimeError, match="`std` must be finite"):
        DiagonalCovariance(np.array([1.0, -1.0]))
    with pytest.raises(ValueError, match="does not fit a state of 7 entries"):
        draw_perturbation(DenseCovariance(np.eye(2)), STATE, key=jr.key(0))
    with pytest.raises(ValueError, match="of real numbers, got a leaf of complex"):
        DiagonalCovariance(1.0).control(jnp.ones(2, complex))
    with pytest.raises(ValueError, match=r"`std` of shape \(2,\) does not broadcast"):
        covariance_times(DiagonalCovariance(jnp.ones(2)), jnp.ones(3))
    with pytest.raises(ValueError, match="`std` has the structure"):
        covariance_times(DiagonalCovariance({"a": jnp.ones(2)}), STATE)
