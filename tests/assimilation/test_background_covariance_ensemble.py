import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from skyens.assimilation import (
    DenseCovariance,
    DiagonalCovariance,
    EnsembleCovariance,
    HybridCovariance,
    SharedCorrelation,
    covariance_times,
)

ENSEMBLE = {"a": jr.normal(jr.key(0), (4, 2)), "b": jr.normal(jr.key(1), (4, 3)) + 100}
STATE = jax.tree.map(lambda leaf: leaf[0], ENSEMBLE)
SAMPLE = np.cov(np.concatenate([ENSEMBLE["a"], ENSEMBLE["b"]], axis=1).T)
TAPER = np.exp(-0.5 * (np.arange(5)[:, None] - np.arange(5)) ** 2)


def columns(covariance, state):
    flat, unravel = ravel_pytree(state)
    times = lambda x: ravel_pytree(covariance_times(covariance, unravel(x)))[0]
    return jax.vmap(times)(jnp.eye(flat.size, dtype=flat.dtype))


def test_it_is_the_sample_covariance():
    found = columns(EnsembleCovariance(ENSEMBLE), STATE)
    np.testing.assert_allclose(found, SAMPLE, atol=1e-12)


def test_localised_it_is_the_product_entry_by_entry():
    found = columns(EnsembleCovariance(ENSEMBLE, DenseCovariance(TAPER)), STATE)
    np.testing.assert_allclose(found, TAPER * SAMPLE, atol=1e-12)


def test_a_shared_correlation_localises_levels_and_variables_alike():
    ensemble = {
        "t": jr.normal(jr.key(2), (3, 2, 2, 2)),
        "p": jr.normal(jr.key(3), (3, 2, 2)),
    }
    state = jax.tree.map(lambda leaf: leaf[0], ensemble)
    taper = TAPER[:4, :4]
    localisation = SharedCorrelation(DenseCovariance(taper))
    found = columns(EnsembleCovariance(ensemble, localisation), state)
    together = [ensemble["p"].reshape(3, -1), ensemble["t"].reshape(3, -1)]
    sample = np.cov(np.concatenate(together, axis=1).T)
    np.testing.assert_allclose(found, np.tile(taper, (3, 3)) * sample, atol=1e-12)


def test_a_hybrid_is_the_weighted_sum():
    both = (DiagonalCovariance(2.0), EnsembleCovariance(ENSEMBLE))
    found = columns(HybridCovariance(both, (0.3, 0.7)), STATE)
    np.testing.assert_allclose(found, 1.2 * np.eye(5) + 0.7 * SAMPLE, atol=1e-12)


def test_the_gradient_of_the_weights_is_right_and_finite_at_zero():
    both = (DiagonalCovariance(2.0), EnsembleCovariance(ENSEMBLE))

    def total(weights):
        covariance = HybridCovariance(both, weights)
        control = jax.tree.map(jnp.ones_like, covariance.control(STATE))
        return sum(map(jnp.sum, jax.tree.leaves(covariance.root(control, STATE))))

    weights = jnp.asarray([0.25, 1.0])
    slope = jax.jit(jax.grad(total))(weights)
    np.testing.assert_allclose(slope[0], 2.0 * 5 / (2 * 0.5), rtol=1e-12)
    assert float(jax.grad(total)(jnp.asarray([0.0, 1.0]))[0]) == 0


def test_single_precision_stays():
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), ENSEMBLE)
    state = jax.tree.map(lambda leaf: leaf[0], narrow)
    covariance = EnsembleCovariance(narrow, DenseCovariance(TAPER))
    hybrid = HybridCovariance((DiagonalCovariance(2.0), covariance), (0.5, 0.5))
    spread = covariance_times(hybrid, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(spread, state)
    assert hybrid.control(state)[1].dtype == jnp.float32


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        EnsembleCovariance(jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="the ensemble has shapes"):
        EnsembleCovariance(ENSEMBLE).control({"a": jnp.ones(3), "b": jnp.ones(3)})
    with pytest.raises(ValueError, match="one for each of the 2 covariances"):
        HybridCovariance((DiagonalCovariance(1.0), DiagonalCovariance(1.0)), (1.0,))
    with pytest.raises(eqx.EquinoxRuntimeError, match="`weights` must be finite"):
        HybridCovariance((DiagonalCovariance(1.0),), (-1.0,))
    shared = SharedCorrelation(DiagonalCovariance(1.0), axes=1)
    with pytest.raises(ValueError, match="must share their last 1 axes"):
        shared.control(STATE)
