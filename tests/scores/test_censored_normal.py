import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scoringrules
from scipy import stats

from skyens.scores import (
    crps_censored_normal,
    crps_normal,
    log_score_censored_normal,
    log_score_normal,
)

GRID = [
    x.ravel()
    for x in np.meshgrid(
        [-30.0, -3.0, -0.5, 0.0, 2.0, 30.0], [0.0, 1e-3, 1.0, 40.0, 100.0]
    )
]


def test_it_agrees_with_scoringrules():
    mean, truth = (jnp.asarray(x) for x in GRID)
    std = jnp.full(mean.shape, 1.7)
    score = crps_censored_normal(mean, std, truth, lower=0.0, upper=110.0)
    given = [*map(np.asarray, (truth, mean, std)), 0.0, 110.0]
    with np.errstate(invalid="ignore"):
        peer = scoringrules.crps_cnormal(*given)
    # The peer divides 0 by 0 where all mass lies at a limit, and cancels near there.
    lost = np.isnan(peer)
    assert (np.asarray(mean)[lost] == -30).all()
    assert jnp.isfinite(score).all()
    near = np.asarray(score)[~lost], peer[~lost]
    np.testing.assert_allclose(*near, rtol=1e-10, atol=1e-11)


def test_without_limits_it_is_the_normal_score():
    mean, truth = (jnp.asarray(x) for x in GRID)
    std = jnp.full(mean.shape, 1.7)
    for censored, normal in [
        (crps_censored_normal, crps_normal),
        (log_score_censored_normal, log_score_normal),
    ]:
        expected = normal(mean, std, truth)
        np.testing.assert_allclose(censored(mean, std, truth), expected, rtol=1e-13)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_rain_is_scored_and_learnt_however_dry_the_forecast(dtype):
    mean, truth = (jnp.asarray(x, dtype) for x in GRID)
    epsilon = float(jnp.finfo(dtype).eps)
    both = jax.jit(
        jax.value_and_grad(
            lambda *args: (
                (s := crps_censored_normal(*args, lower=0.0)).sum() + 0 * s[0]
            ),
            (0, 1, 2),
        )
    )
    curvature = jax.jit(
        jax.hessian(lambda *args: crps_censored_normal(*args, lower=0.0).sum(), (0, 1))
    )
    for std in (0.0, 1e-15, 1e-3, 1.0, 3.0):
        args = mean, jnp.full_like(mean, std), truth
        score = crps_censored_normal(*args, lower=0.0)
        exact = crps_censored_normal(*(x.astype(jnp.float64) for x in args), lower=0.0)
        assert (score >= 0).all()
        limit = 8 * epsilon * (np.asarray(exact) + std)
        assert (np.abs(np.asarray(score, float) - exact) <= limit).all()
        chex.assert_tree_all_finite(both(*args))
        chex.assert_tree_all_finite(curvature(*args))
    # Far below the limit nothing but the distance is left.
    far = crps_censored_normal(*(jnp.asarray(x, dtype) for x in (-30, 1, 5)), lower=0.0)
    assert far == 5


def test_a_truth_beyond_a_limit_adds_its_distance_and_cannot_be():
    mean, std = jnp.array([0.3]), jnp.array([1.2])
    at = crps_censored_normal(mean, std, jnp.array([0.0]), lower=0.0, upper=2.0)
    below = crps_censored_normal(mean, std, jnp.array([-1.5]), lower=0.0, upper=2.0)
    np.testing.assert_allclose(below, at + 1.5, rtol=1e-15)
    score = log_score_censored_normal(mean, std, jnp.array([-1.5]), lower=0.0)
    assert score == np.inf


def test_the_log_score_of_a_point_mass_is_exact_far_out():
    mean, std = jnp.array([1.0, 40.0, 1e4]), jnp.ones(3)
    zero = jnp.zeros(3)
    score = log_score_censored_normal(mean, std, zero, lower=0.0)
    np.testing.assert_allclose(score, -stats.norm.logcdf(-mean), rtol=1e-12)
    mirrored = log_score_censored_normal(-mean, std, zero, upper=0.0)
    np.testing.assert_allclose(mirrored, score, rtol=1e-14)
    total = lambda mean: log_score_censored_normal(mean, std, zero, lower=0.0).sum()
    # The hazard, which grows as the distance.
    hazard = np.exp(stats.norm.logpdf(mean) - stats.norm.logcdf(-mean))
    np.testing.assert_allclose(jax.grad(total)(mean), hazard, rtol=1e-8)


def test_moving_all_moves_nothing():
    args = [jnp.array(x) for x in (0.3, 1.2, 0.9, 0.0, 2.0)]
    score = lambda mean, std, truth, lower, upper: crps_censored_normal(
        mean, std, truth, lower=lower, upper=upper
    )
    for truth in (-1.0, 0.9, 3.0):
        args[2] = jnp.array(truth)
        slopes = jax.grad(score, (0, 2, 3, 4))(*args)
        np.testing.assert_allclose(sum(slopes), 0, atol=1e-15)


def test_wrong_limits_are_reported():
    args = [jnp.zeros(2), jnp.ones(2), jnp.zeros(2)]
    with pytest.raises(ValueError, match=r"`lower` is 2.0, more than `upper`, 1.0"):
        crps_censored_normal(*args, lower=2.0, upper=1.0)
    with pytest.raises(ValueError, match=r"`lower` \(3,\), `upper` \(\)"):
        crps_censored_normal(*args, lower=jnp.zeros(3))
    score = crps_censored_normal(*args, lower=jnp.array([0.0, 2.0]), upper=1.0)
    assert jnp.isnan(score).tolist() == [False, True]
