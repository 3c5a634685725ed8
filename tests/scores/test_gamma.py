import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scoringrules
from scipy import stats

from skyens.scores import crps_gamma, crps_normal, log_score_gamma


def test_it_agrees_with_scoringrules_and_scipy():
    truth = jnp.array([0.5, 4.0, 0.9])
    parameters = [jnp.array(x) for x in [[0.6, 1.0, 7.0], [0.7, 2.0, 0.1]]]
    args = [*parameters, truth]
    peer = scoringrules.crps_gamma(
        np.asarray(truth), *map(np.asarray, [parameters[0], 1 / parameters[1]])
    )
    np.testing.assert_allclose(crps_gamma(*args), peer, rtol=1e-10)
    log_density = stats.gamma.logpdf(truth, parameters[0], scale=parameters[1])
    score = log_score_gamma(*args)
    np.testing.assert_allclose(score, -log_density, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_slopes_are_finite_at_the_edge_of_the_support_and_far_from_it(dtype):
    truth = jnp.array([-1, 0, 1e-30, 1e-3, 1, 50, 1e6], dtype)
    for shape in (0.01, 1.0, 30.0, 1e5):
        args = jnp.full_like(truth, shape), jnp.ones_like(truth), truth
        slopes = jax.grad(lambda *args: crps_gamma(*args).sum(), (0, 1, 2))(*args)
        chex.assert_tree_all_finite(slopes)
        slopes = jax.grad(lambda *args: log_score_gamma(*args).sum(), (0, 1))(*args)
        chex.assert_tree_all_finite(slopes)


def test_a_large_shape_is_a_normal_distribution():
    shape = jnp.full(3, 1e8)
    truth = shape + 1e4 * jnp.array([-1.0, 0.0, 2.0])
    normal = crps_normal(shape, jnp.full(3, 1e4), truth)
    # The skewness, 2 / sqrt(shape), is what is left.
    score = crps_gamma(shape, jnp.ones(3), truth)
    np.testing.assert_allclose(score, normal, rtol=1e-3)


def test_parameters_that_cannot_be_are_not_a_number():
    one, truth = jnp.ones(3), jnp.array([-1.0, 0.0, 1.0])
    for score in (crps_gamma, log_score_gamma):
        assert jnp.isnan(score(0 * one, one, truth)).all()
        assert jnp.isnan(score(one, -one, truth)).all()
    assert log_score_gamma(one, one, truth).tolist()[:2] == [np.inf, np.inf]
