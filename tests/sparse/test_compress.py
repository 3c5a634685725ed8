import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.sparse import SparseProblem, collinear, compress


def rows(n=60, p=7, seed=0, dtype=float):
    return jr.normal(jr.key(seed), (n, p), dtype), jr.normal(
        jr.key(seed + 1), (n,), dtype
    )


def misfit(problem, w):
    return jnp.sum((problem.target - problem.factor @ w) ** 2) + problem.rest


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("n", [4, 60])
def test_the_misfit_of_any_coefficients_is_that_of_all_rows(dtype, n):
    matrix, target = rows(n, dtype=dtype)
    problem = eqx.filter_jit(compress)(matrix, target)
    assert problem.factor.dtype == dtype
    w = jr.normal(jr.key(5), (7,), dtype)
    expected = np.sum(
        (np.asarray(target, float) - np.asarray(matrix, float) @ np.asarray(w, float))
        ** 2
    )
    np.testing.assert_allclose(
        misfit(problem, w), expected, rtol=50 * float(jnp.finfo(dtype).eps)
    )
    assert problem.rows == n


def test_a_small_residual_keeps_its_digits():
    matrix, _ = rows(200)
    w = jnp.arange(7.0)
    noise = 1e-7 * jr.normal(jr.key(9), (200,))
    problem = compress(matrix, matrix @ w + noise)
    exact, *_ = np.linalg.lstsq(matrix, noise, rcond=None)
    rest = np.sum((noise - matrix @ exact) ** 2)
    np.testing.assert_allclose(problem.rest, rest, rtol=1e-6)


def test_columns_of_any_scale_in_float32():
    matrix, target = rows(dtype=jnp.float32)
    scale = jnp.asarray([1e-25, 1e25, 1, 1e-10, 1e10, 1, 3], jnp.float32)
    plain, scaled = compress(matrix, target), compress(matrix * scale[None], target)
    np.testing.assert_allclose(scaled.factor / scale[None], plain.factor, atol=3e-5)


def test_problems_add_up_and_a_scan_streams_them():
    matrix, target = rows()
    whole = compress(matrix, target)
    blocks = matrix.reshape(6, 10, 7), target.reshape(6, 10)
    add = lambda problem, block: (problem + compress(*block), None)
    streamed, _ = jax.lax.scan(add, SparseProblem.zeros(7), blocks)
    w = jr.normal(jr.key(5), (7,))
    np.testing.assert_allclose(misfit(streamed, w), misfit(whole, w), rtol=1e-12)
    assert streamed.rows == 60
    with pytest.raises(ValueError, match="same terms"):
        _ = whole + SparseProblem.zeros(6)


def test_weights_scale_rows_and_zero_drops_one():
    matrix, target = rows()
    weights = jnp.linspace(0, 2, 60)
    problem = compress(matrix, target, weights)
    w = jr.normal(jr.key(5), (7,))
    expected = np.sum(weights * (target - matrix @ w) ** 2)
    np.testing.assert_allclose(misfit(problem, w), expected, rtol=1e-12)
    assert problem.rows == 59
    np.testing.assert_allclose(problem.log_weights, np.log(weights[1:]).sum())


def test_gradients_are_those_of_the_rows():
    matrix, target = rows()
    w = jr.normal(jr.key(5), (7,))
    value = lambda m: misfit(compress(m, target), w)
    direct = lambda m: jnp.sum((target - m @ w) ** 2)
    np.testing.assert_allclose(
        jax.grad(value)(matrix), jax.grad(direct)(matrix), atol=1e-9
    )


def test_rows_that_are_not_finite_are_named_or_dropped():
    matrix, target = rows()
    broken = matrix.at[3, 2].set(jnp.nan)
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"1 of 60 rows .* \[3\]"):
        compress(broken, target)
    with pytest.raises(eqx.EquinoxRuntimeError, match="not finite"):
        eqx.filter_jit(compress)(broken, target)
    dropped = compress(broken, target, drop_missing=True)
    without = compress(jnp.delete(matrix, 3, 0), jnp.delete(target, 3))
    w = jr.normal(jr.key(5), (7,))
    np.testing.assert_allclose(misfit(dropped, w), misfit(without, w), rtol=1e-12)
    assert dropped.rows == 59


def test_dependent_columns_are_grouped():
    matrix, target = rows()
    matrix = matrix.at[:, 4].set(-3 * matrix[:, 1])  # duplicates
    matrix = matrix.at[:, 6].set(matrix[:, 0] + matrix[:, 3])  # three together
    matrix = matrix.at[:, 5].set(0)
    problem = compress(matrix, target)
    assert collinear(problem).tolist() == [0, 1, 2, 0, 1, 5, 0]
    assert problem.empty.tolist() == [False] * 5 + [True, False]
    wide = compress(matrix[:4], target[:4])
    assert collinear(wide).tolist() == [0, 1, 2, 3, 1, 5, 6]


def test_wrong_use_is_reported():
    matrix, target = rows()
    with pytest.raises(ValueError, match="7 different names"):
        compress(matrix, target, names=["a", "b"])
    with pytest.raises(ValueError, match="7 different names"):
        compress(matrix, target, names=["a"] * 7)
    with pytest.raises(ValueError, match="each of 60 rows"):
        compress(matrix, target[:5])
    with pytest.raises(ValueError, match="needs rows and terms"):
        compress(matrix[:0], target[:0])
    with pytest.raises(eqx.EquinoxRuntimeError, match="not negative"):
        compress(matrix, target, -jnp.ones(60))
    with pytest.raises(ValueError, match="must be positive, got 0"):
        SparseProblem.zeros(0)
