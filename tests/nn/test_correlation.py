import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from skyens.nn._correlation import correlate


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


X, WEIGHT = normal(2, 6, 7, 3), normal(3, 2, 3, 4, seed=1)


def reference(x, weight):
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, weight, (1, 1), "VALID", dimension_numbers=layout
    )


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_it_is_the_sum_it_says():
    expected = np.zeros((2, 4, 6, 4))
    for i in range(3):
        for j in range(2):
            window = np.asarray(X)[:, i : i + 4, j : j + 6]
            expected += window @ np.asarray(WEIGHT)[i, j]
    close(correlate(X, WEIGHT), expected)
    close(jax.jit(correlate)(X, WEIGHT), expected)


@pytest.mark.parametrize("mode", ["fwd", "rev"])
def test_derivatives_of_both_orders(mode):
    waves = lambda *both: jnp.sum(jnp.sin(correlate(*map(jnp.asarray, both))))
    check_grads(waves, (X, WEIGHT), order=2, modes=[mode], rtol=1e-5)


@pytest.mark.parametrize("number", [0, 1])
def test_one_argument_alone_is_differentiated(number):
    slope = lambda f: jax.grad(lambda *both: jnp.sum(f(*both) ** 3), number)
    close(slope(correlate)(X, WEIGHT), slope(reference)(X, WEIGHT))


@pytest.mark.parametrize("axes", [(0, None), (2, None), (None, 0), (None, 3), (1, 2)])
def test_batches_on_either_side(axes):
    x = X if axes[0] is None else jnp.stack([X, 2 * X + 1], axes[0])
    weight = WEIGHT if axes[1] is None else jnp.stack([WEIGHT, WEIGHT**2], axes[1])
    found, expected = (jax.vmap(f, axes)(x, weight) for f in (correlate, reference))
    close(found, expected)
    slope = lambda f: jax.grad(lambda w: jnp.sum(jax.vmap(f, axes)(x, w) ** 2))(weight)
    close(slope(correlate), slope(reference))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_dtype_is_kept(dtype):
    found = correlate(X.astype(dtype), WEIGHT.astype(dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(
        found.astype(float),
        correlate(X, WEIGHT),
        atol=100 * float(jnp.finfo(dtype).eps),
    )


def test_other_dtypes_and_channels_are_errors():
    with pytest.raises(TypeError):
        correlate(X.astype(jnp.float32), WEIGHT)
    with pytest.raises(TypeError):
        correlate(X[..., :2], WEIGHT)
