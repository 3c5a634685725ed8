import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens.observations import Block, Dense, Diagonal, Error

SHAPE = (3, 2)
masks = st.lists(st.booleans(), min_size=6, max_size=6).map(
    lambda mask: jnp.asarray(mask).reshape(SHAPE)
)


def blocks(seed=0):
    factor = np.random.default_rng(seed).normal(size=(3, 2, 2))
    return factor @ factor.swapaxes(1, 2) + 0.1 * np.eye(2)


def whole(seed=0):
    matrix = np.zeros((6, 6))
    for i, block in enumerate(blocks(seed)):
        matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = block
    return matrix


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), mask=masks)
def test_it_is_the_dense_law_of_the_whole_matrix(seed, mask):
    residual = jr.normal(jr.key(seed), SHAPE)
    error, dense = Block(blocks(seed)), Dense(whole(seed))
    for method in ("whiten", "log_prob"):
        np.testing.assert_allclose(
            getattr(error, method)(residual, mask),
            getattr(dense, method)(residual, mask),
            rtol=1e-8,
            atol=1e-9,
        )
    np.testing.assert_array_equal(error.covariance, whole(seed))


class BlockTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_a_masked_nan_changes_neither_value_nor_gradient(self):
        error = Block(blocks())
        residual = jnp.asarray([[1.0, jnp.nan], [0.5, -1.0], [jnp.inf, 2.0]])
        mask = jnp.isfinite(residual)
        value = self.variant(jax.value_and_grad(lambda r: error.log_prob(r, mask)))
        density, gradient = value(residual)
        variances = np.diagonal(whole()).reshape(SHAPE)
        alone = Diagonal(np.sqrt(variances[[0, 2], [0, 1]]))
        expected = alone.log_prob(jnp.asarray([1.0, 2.0]), jnp.ones(2, bool))
        pair = Dense(blocks()[1]).log_prob(residual[1], mask[1])
        np.testing.assert_allclose(density, expected + pair, rtol=1e-10)
        np.testing.assert_array_equal(gradient[~mask], 0)
        assert np.all(gradient[mask] != 0)
        assert isinstance(error, Error)
        assert not error.independent


def test_samples_have_the_covariance():
    error = Block(blocks(1))
    draw = lambda key: error.sample(jnp.zeros(SHAPE), key=key).reshape(-1)
    samples = jax.vmap(draw)(jr.split(jr.key(0), 20_000))
    scale = np.sqrt(np.diag(whole(1)))
    # A sample covariance of n draws is off by about scale^2 * sqrt(2 / n) = 0.01.
    off = (np.cov(samples.T) - whole(1)) / np.outer(scale, scale)
    assert np.abs(off).max() < 0.05


def test_blocks_of_one_are_independent_errors():
    residual, mask = jr.normal(jr.key(1), (4,)), jnp.ones(4, bool)
    error = Block(np.asarray([1.0, 4.0, 9.0, 0.25]).reshape(4, 1, 1))
    assert error.independent
    alike = Diagonal(np.asarray([1.0, 2.0, 3.0, 0.5]))
    white = error.whiten(residual, mask)
    np.testing.assert_allclose(white, alike.whiten(residual, mask), rtol=1e-14)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_dtype_is_that_of_the_residual(dtype):
    residual, mask = jnp.ones(SHAPE, dtype), jnp.ones(SHAPE, bool)
    error = Block(blocks())
    assert error.sample(residual, key=jr.key(0)).dtype == dtype
    wide = jnp.float32 if dtype == jnp.bfloat16 else dtype
    assert error.whiten(residual, mask).dtype == wide


def test_wrong_use_is_reported():
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"`blocks` .*block 2, the first"):
        Block(np.stack([np.eye(2), np.eye(2), np.ones((2, 2))]))
    residual, mask = jnp.ones(5), jnp.ones(5, bool)
    with pytest.raises(ValueError, match=r"\(3, 2, 2\) do not fit .* 5 entries"):
        Block(blocks()).whiten(residual, mask)
