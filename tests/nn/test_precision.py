import jax.numpy as jnp
import pytest

from skyens.nn._precision import at_least_single


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (jnp.bfloat16, jnp.float32),
        (jnp.float16, jnp.float32),
        (jnp.float32, jnp.float32),
        (jnp.float64, jnp.float64),
    ],
)
def test_half_precision_becomes_single(dtype, expected):
    assert at_least_single(jnp.zeros(1, dtype).dtype) == expected
