import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens import sparse
from skyens.sparse import stlsq

compress = eqx.filter_jit(sparse.compress)
ridge = eqx.filter_jit(sparse.ridge)


def data(dtype=float):
    random = np.random.default_rng(0)
    phi = random.normal(size=(50, 6)) * 10.0 ** np.arange(-3, 3)
    return jnp.asarray(phi, dtype), jnp.asarray(random.normal(size=50), dtype)


@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_the_minimum_is_that_of_the_normal_equations(penalty):
    phi, y = data()
    support = jnp.array([True, True, False, True, True, True])
    solution = ridge(compress(phi, y), penalty, support=support)
    kept = np.flatnonzero(support)
    columns = np.asarray(phi)[:, kept]
    normal = columns.T @ columns + penalty * np.diag((columns**2).sum(0))
    expected = np.linalg.solve(normal, columns.T @ y)
    np.testing.assert_allclose(solution.mean[kept], expected, rtol=1e-8)
    assert solution.mean[2] == 0
    misfit = np.sum((y - columns @ expected) ** 2)
    np.testing.assert_allclose(solution.misfit, misfit, rtol=1e-12)
    shape = np.linalg.inv(normal)
    np.testing.assert_allclose(solution.shape[kept][:, kept], shape, rtol=1e-8)


def test_duplicates_share_what_they_explain():
    phi, y = data()
    twice = jnp.concatenate([phi, phi[:, :1]], axis=1)
    both, alone = ridge(compress(twice, y)), ridge(compress(phi, y))
    np.testing.assert_allclose(both.mean[0], alone.mean[0] / 2, rtol=1e-5)
    np.testing.assert_allclose(both.mean[0] + both.mean[6], alone.mean[0], rtol=1e-5)


def test_the_gradient_is_that_of_finite_differences_and_float32_stays():
    phi, y = data()
    value = jax.jit(lambda t: ridge(compress(phi, y + t * y[::-1]), 0.1).mean[3])
    slope = (value(1e-5) - value(-1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(value)(0.0), slope, rtol=1e-7)
    single = ridge(compress(*data(jnp.float32)), 0.1)
    assert single.mean.dtype == single.shape.dtype == jnp.float32
    np.testing.assert_allclose(
        single.mean, ridge(compress(phi, y), 0.1).mean, rtol=1e-3
    )


def test_wrong_use_is_reported():
    problem = compress(*data())
    with pytest.raises(ValueError, match="6 booleans"):
        ridge(problem, support=jnp.ones(5, bool))
    with pytest.raises(eqx.EquinoxRuntimeError, match="not be negative"):
        ridge(problem, -1.0)
    with pytest.raises(eqx.EquinoxRuntimeError, match="not be negative"):
        stlsq(problem, -1.0)
