import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scoringrules
from scipy import stats

from skyens.scores import crps_lognormal, crps_normal, log_score_lognormal


def test_it_agrees_with_scoringrules_and_scipy():
    truth = jnp.array([0.5, 4.0, 2.0])
    parameters = [jnp.array(x) for x in [[0.2, -1.0, 1.0], [0.7, 2.0, 0.1]]]
    args = [*parameters, truth]
    mean, std = map(np.asarray, parameters)
    peer = scoringrules.crps_lognormal(np.asarray(truth), mean, std)
    np.testing.assert_allclose(crps_lognormal(*args), peer, rtol=1e-10)
    log_density = stats.lognorm.logpdf(
        truth, parameters[1], scale=np.exp(parameters[0])
    )
    score = log_score_lognormal(*args)
    np.testing.assert_allclose(score, -log_density, rtol=1e-12)


def test_a_small_spread_is_a_normal_distribution_in_single_precision():
    mean, std = jnp.zeros(3, jnp.float32), jnp.full(3, 1e-5, jnp.float32)
    truth = jnp.exp(jnp.array([-2e-5, 0, 3e-5], jnp.float32))
    normal = crps_normal(jnp.ones_like(std), std, truth)
    # The truth is only known to a few hundredths of the spread.
    score = crps_lognormal(mean, std, truth)
    np.testing.assert_allclose(score, normal, atol=2e-7, rtol=0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_slopes_are_finite_everywhere(dtype):
    truth = jnp.array([-1, 0, 1e-30, 1e-3, 1, 1e20], dtype)
    for std in (0.0, 1e-6, 0.49, 0.51, 5.0, 12.0):
        args = jnp.zeros_like(truth), jnp.full_like(truth, std), truth
        value = crps_lognormal(*args)
        assert (value >= 0).all()
        slopes = jax.grad(lambda *args: crps_lognormal(*args).sum(), (0, 1, 2))(*args)
        chex.assert_tree_all_finite(slopes)


def test_both_forms_meet():
    truth, mean = jnp.array([0.0, 0.2, 1.0, 9.0]), jnp.zeros(4)
    below, above = (
        crps_lognormal(mean, jnp.full(4, s), truth) for s in (0.5 - 1e-13, 0.5)
    )
    np.testing.assert_allclose(below, above, rtol=1e-11)
