import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from skyens.scores._normal_functions import log_upper, lower, mills, mills_deficit

PLACES = np.concatenate([np.linspace(0, 30, 61), [1e3, 1e8]])


@pytest.mark.parametrize(("dtype", "rtol"), [(jnp.float64, 5e-15), (jnp.float32, 2e-6)])
def test_ratio_and_logarithm_are_exact_far_out(dtype, rtol):
    places = jnp.asarray(PLACES, dtype)
    expected = np.sqrt(np.pi / 2) * special.erfcx(PLACES / np.sqrt(2))
    np.testing.assert_allclose(mills(places), expected, rtol=rtol)
    expected = stats.norm.logsf(PLACES)
    np.testing.assert_allclose(log_upper(places), expected, rtol=rtol)
    expected = stats.norm.sf(PLACES[:10])
    np.testing.assert_allclose(lower(-places[:10]), expected, rtol=5 * rtol)


def test_the_deficit_is_minus_the_slope_and_falls_as_the_square():
    places = jnp.asarray(PLACES)
    slopes = jax.vmap(jax.grad(mills))(places)
    np.testing.assert_allclose(slopes, -mills_deficit(places), rtol=1e-15)
    # 1 - x M(x) = 1 / x^2 - 3 / x^4 + ...
    far = jnp.array([1e3, 1e4])
    np.testing.assert_allclose(mills_deficit(far), far**-2 - 3 * far**-4, rtol=1e-10)
    curves = jax.vmap(jax.grad(mills_deficit))(far)
    np.testing.assert_allclose(curves, -2 * far**-3 + 12 * far**-5, rtol=1e-9)
