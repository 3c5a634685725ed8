import jax.numpy as jnp

from skyens.scores._members import score_dtype


def test_a_score_of_whole_numbers_is_a_float_and_other_dtypes_stay():
    whole, half = jnp.asarray([1, 2]), jnp.asarray([1], jnp.bfloat16)
    assert score_dtype(whole, whole) == jnp.float64
    assert score_dtype(half) == jnp.bfloat16
