import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from skyens.scores._incomplete_functions import (
    gamma_ratio,
    gamma_tails,
    log_gamma_lower,
    student_upper,
)

SHAPES = np.array([0.05, 0.7, 3.0, 9.9, 10.1, 80.0, 3e4])


def pairs(dtype):
    """Return shapes with arguments from far below to far above their mean."""
    spread = np.array([-3.0, -1.0, -0.1, 0.1, 1.0, 4.0])
    x = SHAPES[:, None] + np.sqrt(SHAPES)[:, None] * spread
    x = np.concatenate([np.abs(x), SHAPES[:, None] * [1e-3, 0.3, 5.0]], axis=1)
    shapes = np.broadcast_to(SHAPES[:, None], x.shape)
    return jnp.asarray(shapes, dtype), jnp.asarray(x, dtype)


@pytest.mark.parametrize(("dtype", "atol"), [(jnp.float64, 2e-14), (jnp.float32, 4e-6)])
def test_gamma_tails_are_those_of_scipy(dtype, atol):
    shapes, x = pairs(dtype)
    lower, upper = jax.jit(gamma_tails)(shapes, x)
    exact = np.asarray(shapes, float), np.asarray(x, float)
    np.testing.assert_allclose(lower, special.gammainc(*exact), atol=atol)
    np.testing.assert_allclose(upper, special.gammaincc(*exact), atol=atol)


def test_the_derivative_in_the_shape_is_that_of_central_differences():
    shapes, x = pairs(jnp.float64)
    by_shape = jax.jit(
        lambda a: jax.jvp(lambda a: gamma_tails(a, x)[0], (a,), (jnp.ones_like(a),))[1]
    )(shapes)
    step = 1e-3 * shapes / (1 + np.sqrt(shapes))
    at = lambda by: special.gammainc(shapes + by * step, x)
    expected = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)
    np.testing.assert_allclose(by_shape, expected, atol=3e-9, rtol=1e-8)


def test_the_logarithm_of_a_lower_tail_is_exact_where_the_tail_is_nothing():
    shapes, x = jnp.array([2.0, 50.0, 400.0]), jnp.array([1e-200, 1e-10, 1.0])
    # For so small x the first terms of the series are all.
    exact = shapes * np.log(x) - x - special.gammaln(shapes + 1)
    exact += np.log1p(x / (shapes + 1) + x**2 / ((shapes + 1) * (shapes + 2)))
    np.testing.assert_allclose(log_gamma_lower(shapes, x), exact, rtol=1e-10)
    nothing = jax.value_and_grad(log_gamma_lower, (0, 1))(
        jnp.array(2.0), jnp.array(0.0)
    )
    assert nothing == (-np.inf, (0, 0))


@pytest.mark.parametrize(("dtype", "rtol"), [(jnp.float64, 1e-13), (jnp.float32, 3e-6)])
def test_student_tails_are_those_of_scipy(dtype, rtol):
    df = np.repeat([0.6, 1.0, 2.5, 30.0, 1e6], 5)
    x = np.tile([0.0, 1e-3, 1.0, 4.0, 8.0], 5)
    args = jnp.asarray(df, dtype), jnp.asarray(x, dtype)
    exact = stats.t.sf(np.asarray(args[1], float), np.asarray(args[0], float))
    np.testing.assert_allclose(jax.jit(student_upper)(*args), exact, rtol=rtol)


def test_the_ratio_is_that_of_gamma_functions():
    shapes = jnp.array([0.3, 1.0, 7.5, 40.0])
    expected = special.gamma(shapes + 0.5) / special.gamma(shapes)
    np.testing.assert_allclose(gamma_ratio(shapes), expected, rtol=1e-13)
