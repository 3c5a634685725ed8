import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scoringrules
from scipy import stats

from skyens.scores import (
    crps_censored_shifted_gamma,
    crps_gamma,
    log_score_censored_shifted_gamma,
)


def test_it_agrees_with_scoringrules():
    shape, scale = jnp.array([0.6, 2.0, 9.0]), jnp.array([1.4, 0.5, 3.0])
    shift, truth = jnp.array([0.4, 0.1, 12.0]), jnp.array([0.0, 1.2, 20.0])
    score = crps_censored_shifted_gamma(shape, scale, shift, truth)
    peer = scoringrules.crps_csg0(
        *map(np.asarray, (truth, shape)),
        rate=1 / np.asarray(scale),
        shift=np.asarray(shift),
    )
    np.testing.assert_allclose(score, peer, rtol=1e-10)


def test_without_a_shift_it_is_the_gamma_score():
    shape, scale = jnp.array([0.6, 2.0, 9.0]), jnp.array([1.4, 0.5, 3.0])
    truth = jnp.array([-1.0, 0.0, 20.0])
    score = crps_censored_shifted_gamma(shape, scale, jnp.zeros(3), truth)
    np.testing.assert_allclose(score, crps_gamma(shape, scale, truth), rtol=1e-13)
    moved = crps_censored_shifted_gamma(shape, scale, -jnp.ones(3), truth + 3)
    np.testing.assert_allclose(moved, crps_gamma(shape, scale, truth + 2), rtol=1e-13)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_slopes_are_finite_at_the_point_mass_and_far_from_it(dtype):
    truth = jnp.array([-1, 0, 1e-6, 1, 100], dtype)
    ones = jnp.ones_like(truth)
    crps = jax.jit(
        jax.value_and_grad(
            lambda *args: crps_censored_shifted_gamma(*args).sum(), (0, 1, 2, 3)
        )
    )
    log_score = jax.jit(
        jax.grad(lambda *args: log_score_censored_shifted_gamma(*args).sum(), (0, 1, 2))
    )
    for shape in (0.05, 1.0, 200.0):
        for shift in (-1.0, 0.0, 0.5, 300.0):
            args = shape * ones, ones, shift * ones, truth
            chex.assert_tree_all_finite(crps(*args))
            chex.assert_tree_all_finite(log_score(*args))


def test_all_but_sure_dryness_scores_next_to_nothing():
    args = [jnp.array(x, jnp.float32) for x in (2.0, 1.0, 60.0, 0.0)]
    assert 0 <= crps_censored_shifted_gamma(*args) < 1e-12
    score = log_score_censored_shifted_gamma(*args)
    np.testing.assert_allclose(score, -stats.gamma(2.0).logcdf(60.0), atol=1e-12)


def test_what_cannot_be_is_infinite():
    ones = jnp.ones(3)
    truth = jnp.array([-1.0, 0.0, 0.5])
    score = log_score_censored_shifted_gamma(ones, ones, 0 * ones, truth)
    assert jnp.isposinf(score).tolist() == [True, True, False]
    score = log_score_censored_shifted_gamma(ones, ones, -ones, truth)
    assert jnp.isposinf(score).all()
