import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from skyens.sparse import Constraints, compress, rvm

fit_jit = eqx.filter_jit(rvm)


def data():
    random = np.random.default_rng(4)
    phi = random.normal(size=(120, 12))
    w = np.zeros(12)
    w[:4] = 1, -1, 0.5, 2
    return jnp.asarray(phi), jnp.asarray(phi @ w + 0.1 * random.normal(size=120))


def test_the_equations_hold_and_the_noise_free_directions_are_certain():
    phi, y = data()
    matrix = jnp.zeros((2, 12)).at[0, :2].set(1).at[1, 2:4].set(jnp.array([2.0, 1.0]))
    fit = fit_jit(
        compress(phi, y), constraints=Constraints(matrix, jnp.array([0.0, 3]))
    )
    np.testing.assert_allclose(matrix @ fit.mean, [0, 3], atol=1e-12)
    np.testing.assert_allclose(matrix @ fit.covariance, 0, atol=1e-15)
    assert np.flatnonzero(np.abs(fit.z) > 4).tolist() == [0, 1, 2, 3]


def test_an_equation_is_the_regression_on_the_difference_of_columns():
    phi, y = data()
    equal = jnp.zeros((1, 12)).at[0, :2].set(1)  # w_1 = -w_0
    fit = fit_jit(compress(phi, y), constraints=Constraints(equal))
    merged = phi.at[:, 0].set(phi[:, 0] - phi[:, 1]).at[:, 1].set(0)
    other = fit_jit(compress(merged, y))
    np.testing.assert_allclose(fit.log_evidence, other.log_evidence, rtol=1e-10)
    np.testing.assert_allclose(fit.mean[2:], other.mean[2:], atol=1e-9)
    np.testing.assert_allclose(fit.mean[0], other.mean[0], rtol=1e-9)
    np.testing.assert_allclose(fit.mean[1], -other.mean[0], rtol=1e-9)


def test_wrong_use_is_reported():
    phi, y = data()
    with pytest.raises(ValueError, match="fewer equations"):
        Constraints(jnp.ones((3, 3)))
    with pytest.raises(ValueError, match=r"must have the shape \(1,\)"):
        Constraints(jnp.ones((1, 3)), jnp.ones(2))
    twice = Constraints(jnp.ones((2, 12)))
    with pytest.raises(eqx.EquinoxRuntimeError, match="depend on each other"):
        rvm(compress(phi, y), constraints=twice)
