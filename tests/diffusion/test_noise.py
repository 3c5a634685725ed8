import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

from skyens.diffusion import Noise, White


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_shape_and_dtype_are_those_asked_for(dtype):
    noise = White()((3, 4), dtype, key=jr.key(0))
    chex.assert_shape(noise, (3, 4))
    assert noise.dtype == dtype


def test_entries_are_independent_standard_normal():
    assert isinstance(White(), Noise)
    samples = jax.vmap(lambda key: White()((2,), key=key))(jr.split(jr.key(1), 4000))
    assert stats.kstest(np.ravel(samples), "norm").pvalue > 1e-3
    # A correlation of 4,000 independent pairs has standard deviation 1 / sqrt(4,000).
    assert abs(np.corrcoef(samples.T)[0, 1]) < 4 / 4000**0.5
