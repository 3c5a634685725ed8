import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from skyens.observations._parameters import over, positive


def test_numbers_and_arrays_that_are_positive_pass():
    assert positive("x", 2).dtype == jnp.float64
    np.testing.assert_array_equal(positive("x", np.asarray([1.0, 3.0])), [1.0, 3.0])
    for wrong in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(eqx.EquinoxRuntimeError, match="`x` must be finite and abo"):
            positive("x", wrong)


def test_a_parameter_spreads_over_the_values_in_their_dtype():
    residual = jnp.zeros((3, 2), jnp.float32)
    spread = over("x", jnp.asarray([1.0, 2.0]), residual)
    assert spread.dtype == jnp.float32
    np.testing.assert_array_equal(spread, [[1.0, 2.0]] * 3)
    for shape in ((3,), (1, 3, 2)):
        with pytest.raises(ValueError, match=r"`x` of shape .* does not broadcast"):
            over("x", jnp.ones(shape), residual)
