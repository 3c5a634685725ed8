import jax.numpy as jnp
import pytest

from skyens.diffusion._broadcast import aligned, wide


def test_numbers_and_tables_are_cast():
    for shape in ((), (1, 1), (2, 1), (2, 3)):
        table = aligned("table", jnp.ones(shape), (2, 3), jnp.float32)
        assert (table.shape, table.dtype) == (shape, jnp.float32)


@pytest.mark.parametrize("shape", [(3,), (1,), (3, 2), (1, 2, 3), (2, 3, 1)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"`table` of shape .* as many axes"):
        aligned("table", jnp.ones(shape), (2, 3), jnp.float32)


def test_narrow_dtypes_are_widened():
    dtypes = [wide(dtype) for dtype in (jnp.bfloat16, jnp.float16, "f4", "f8")]
    assert dtypes == [jnp.float32, jnp.float32, "f4", "f8"]
