import jax.numpy as jnp
import pytest

from skyens.observations._precision import wide


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (jnp.bfloat16, jnp.float32),
        (jnp.float16, jnp.float32),
        (jnp.float32, jnp.float32),
        (jnp.float64, jnp.float64),
    ],
)
def test_only_16_bit_numbers_are_widened(dtype, expected):
    assert wide(jnp.dtype(dtype)) == expected
