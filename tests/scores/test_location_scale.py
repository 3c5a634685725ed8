import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens.scores import crps_laplace, crps_logistic, crps_normal

SCORES = [crps_normal, crps_laplace, crps_logistic]


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_slopes_and_curvatures_are_finite_at_any_scale(score, dtype):
    scale = jnp.array([0, jnp.finfo(dtype).tiny, 1e-30, 1e-3, 1, 1e30], dtype)
    for error in (0.0, 1e-3, 40.0, 1e5):
        args = jnp.zeros_like(scale), scale, jnp.full_like(scale, error)
        total = lambda *args: score(*args).sum()
        chex.assert_tree_all_finite(jax.grad(total, (0, 1, 2))(*args))
        curvature = jax.grad(lambda x: jax.grad(total)(x, *args[1:]).sum())
        chex.assert_tree_all_finite(curvature(args[0]))


@pytest.mark.parametrize("score", SCORES)
def test_far_out_it_is_the_error_less_a_constant_times_the_scale(score):
    error, scale = jnp.float32(40.0), jnp.float32(1.0)
    constant = {crps_normal: 1 / np.sqrt(np.pi), crps_laplace: 0.75, crps_logistic: 1.0}
    for sign in (-1, 1):
        value = score(jnp.float32(0.0), scale, sign * error)
        np.testing.assert_allclose(value, 40 - constant[score], rtol=1e-6)


@pytest.mark.parametrize("score", SCORES)
def test_the_score_is_flat_at_the_centre(score):
    zero, one = jnp.array(0.0), jnp.array(1.0)
    assert jax.grad(score, 2)(zero, one, zero) == 0
