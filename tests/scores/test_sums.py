import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from skyens.scores import Sum
from skyens.scores._sums import add_terms, empty_sums, merge_sums, ratio, root


def normal(seed, shape, dtype=float):
    """Draw by NumPy, which has nothing to compile."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def exact(total):
    return np.asarray(total.high, float) + np.asarray(total.low, float)


class SumTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_a_million_float32_terms_add_up_as_in_float64(self):
        values = abs(normal(0, (999_983,), jnp.float32))
        total = self.variant(lambda x: Sum.over(x, 0))(values)
        chex.assert_trees_all_equal_dtypes(total, Sum.zeros((), jnp.float32))
        expected = math.fsum(np.asarray(values).tolist())
        np.testing.assert_allclose(exact(total), expected, rtol=1e-11)
        plain = float(jnp.cumsum(values)[-1])
        assert abs(plain - expected) > 1e-9 * expected  # or this would prove nothing


def test_a_scan_of_float32_terms_adds_up_as_in_float64():
    values = normal(1, (20_000, 2), jnp.float32) + 3e4
    step = lambda total, x: (total.merge(Sum.over(x, 1)), None)
    total, _ = lax.scan(step, Sum.zeros((2,), jnp.float32), values)
    expected = np.asarray(values, float).sum(0)
    np.testing.assert_allclose(exact(total), expected, rtol=1e-11)


def test_cancelling_terms_leave_what_float32_cannot_hold():
    values = jnp.array([1e8, 1.0, -1e8, 1.0], jnp.float32)
    chex.assert_trees_all_equal(Sum.over(values, 0).value, jnp.float32(2))


@pytest.mark.parametrize("field", [(), (1,), (2,), (3, 5), (0,)])
def test_trailing_axes_are_summed_and_leading_ones_kept(field):
    values = normal(2, (4, 2, *field))
    expected = np.asarray(values).reshape(4, 2, -1).sum(-1)
    total = Sum.over(values, 2)
    chex.assert_trees_all_close(total.value, expected, atol=1e-14)
    batched = jax.vmap(lambda x: Sum.over(x, 1))(values)
    chex.assert_trees_all_equal(batched, total)


def test_the_gradient_of_a_sum_is_one_for_each_term():
    values = normal(3, (7,), jnp.float32)
    slope = jax.grad(lambda x: Sum.over(x, 0).value)(values)
    chex.assert_trees_all_equal(slope, jnp.ones(7, jnp.float32))


def test_a_sum_changes_precision_without_loss():
    wide = Sum.over(normal(4, (100,)), 0)
    narrow = wide.astype(jnp.float32)
    assert narrow.high.dtype == jnp.float32
    np.testing.assert_allclose(exact(narrow), exact(wide), rtol=2**-46)
    chex.assert_trees_all_equal(
        narrow.astype(jnp.float64).value, jnp.asarray(exact(narrow))
    )


def test_named_sums_keep_their_own_axes_and_default_precision():
    sums = empty_sums({"weight": (2,), "ranks": (2, 3)}, None)
    assert sums["weight"].high.dtype == jnp.float64
    values = normal(5, (2, 3, 4), jnp.float32)
    sums = add_terms(sums, weight=values, ranks=values)
    wide = values.astype(float)
    chex.assert_trees_all_close(sums["weight"].value, wide.sum((1, 2)), rtol=1e-12)
    chex.assert_trees_all_close(sums["ranks"].value, wide.sum(2), rtol=1e-12)


def test_quotients_and_roots_have_finite_gradients_at_zero():
    zero = jnp.zeros(())
    value, slopes = jax.value_and_grad(ratio, (0, 1))(jnp.ones(()), zero)
    chex.assert_trees_all_equal((value, *slopes), (zero, zero, zero))
    chex.assert_trees_all_equal(jax.value_and_grad(root)(zero), (zero, zero))
    assert jnp.isnan(root(jnp.array(-1.0)))


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match=r"float32 or float64, got .*bfloat16"):
        empty_sums({"weight": ()}, jnp.bfloat16)
    first = empty_sums({"weight": ()}, None)
    with pytest.raises(ValueError, match=r"float64\[\].*float64\[2\]"):
        merge_sums(first, empty_sums({"weight": (2,)}, None))


def test_a_sum_of_constants_is_not_left_to_the_compiler():
    """Weights that are 1 everywhere: folding their sum takes it half a minute."""
    total = lambda: Sum.over(jnp.ones((3, 4), jnp.float32), 0).value
    steps = str(jax.make_jaxpr(total)())
    assert -1 < steps.find("optimization_barrier") < steps.find("= reduce")
    np.testing.assert_array_equal(jax.jit(total)(), 12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_an_infinite_term_makes_the_sum_infinite_and_only_opposite_ones_nan(dtype):
    def total(*terms):
        sums = add_terms(empty_sums({"x": ()}, dtype), x=jnp.asarray(terms, dtype))
        return float(merge_sums(sums, sums)["x"].value)

    assert total(1, jnp.inf, 2) == np.inf
    assert total(-jnp.inf, 1) == -np.inf
    assert np.isnan(total(-jnp.inf, jnp.inf))
    assert np.isnan(total(jnp.nan, 1))
