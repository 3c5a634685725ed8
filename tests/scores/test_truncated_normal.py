import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scoringrules
from scipy import stats

from skyens.scores import (
    crps_exponential,
    crps_normal,
    crps_truncated_normal,
    log_score_truncated_normal,
)


def test_it_agrees_with_scoringrules_and_scipy():
    mean, std = jnp.array([0.3, -1.0, 2.0, 0.5]), jnp.array([1.0, 2.0, 0.7, 5.0])
    lower, upper = jnp.array([0.0, -1.0, -3.0, 0.0]), jnp.array([3.0, 1.0, 9.0, 1.0])
    truth = jnp.array([0.4, 0.0, 2.5, 0.9])
    score = crps_truncated_normal(mean, std, truth, lower=lower, upper=upper)
    peer = scoringrules.crps_tnormal(*map(np.asarray, (truth, mean, std, lower, upper)))
    np.testing.assert_allclose(score, peer, rtol=1e-10)
    limits = (lower - mean) / std, (upper - mean) / std
    log_density = stats.truncnorm.logpdf(truth, *limits, loc=mean, scale=std)
    score = log_score_truncated_normal(mean, std, truth, lower=lower, upper=upper)
    np.testing.assert_allclose(score, -log_density, rtol=1e-12)


def test_without_limits_it_is_the_normal_score():
    mean, std = jnp.array([0.3, -1.0]), jnp.array([1.0, 2.0])
    truth = jnp.array([9.0, -1.2])
    score = crps_truncated_normal(mean, std, truth)
    np.testing.assert_allclose(score, crps_normal(mean, std, truth), rtol=1e-14)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_far_in_a_tail_it_is_an_exponential_distribution(dtype):
    distance = 1e4
    truth = jnp.array([0.0, 0.5, 1.0, 7.0], dtype) / distance
    score = crps_truncated_normal(
        jnp.full_like(truth, -distance), jnp.ones_like(truth), truth, lower=0.0
    )
    expected = crps_exponential(jnp.full_like(truth, 1 / distance), truth)
    # The rate is the distance but for its square's inverse.
    np.testing.assert_allclose(score, expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_between_narrow_limits_it_is_a_uniform_distribution(dtype):
    width = 2.0**-12
    share = jnp.array([0.0, 0.25, 0.5, 1.0], dtype)
    mean, std = jnp.zeros_like(share), jnp.ones_like(share)
    score = crps_truncated_normal(mean, std, width * share, lower=0.0, upper=width)
    expected = width * (share**2 - share + 1 / 3)
    # The density falls by the square of the width.
    np.testing.assert_allclose(score, expected, rtol=1e-6)
    score = log_score_truncated_normal(mean, std, width * share, lower=0.0, upper=width)
    np.testing.assert_allclose(score, np.log(width), rtol=1e-6)


def test_all_forms_meet():
    std, mean = jnp.ones(3), jnp.zeros(3)
    score = lambda lower, width: crps_truncated_normal(
        mean,
        std,
        jnp.full(3, lower) + width * jnp.array([0.1, 0.5, 0.9]),
        lower=jnp.full(3, lower),
        upper=jnp.full(3, lower + width),
    )
    tiny = 1e-12
    for left, right in [
        (score(-tiny, 3.0), score(tiny, 3.0)),  # the mean at the limit
        (score(-0.7, 1.5 - tiny), score(-0.7, 1.5 + tiny)),  # narrow about the mean
        (score(0.2, 1.5 - tiny), score(0.2, 1.5 + tiny)),  # narrow beside it
        (score(8.0 - tiny, 0.9446), score(8.0 + tiny, 0.9446)),
    ]:
        np.testing.assert_allclose(left, right, rtol=1e-10)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_slopes_are_finite_everywhere(dtype):
    mean = jnp.array([-1e4, -30, -1, 0, 1, 30, 1e4], dtype)
    both = [
        jax.jit(
            jax.value_and_grad(
                lambda *args, score=score, upper=upper: score(
                    *args, lower=0.0, upper=upper
                ).sum(),
                (0, 1, 2),
            )
        )
        for score in (crps_truncated_normal, log_score_truncated_normal)
        for upper in (jnp.inf, 2.0)
    ]
    for truth in (0.0, 0.5, 2.0):
        for std in (1e-3, 1.0, 1e3):
            args = mean, jnp.full_like(mean, std), jnp.full_like(mean, truth)
            for function in both:
                chex.assert_tree_all_finite(function(*args))


def test_slopes_are_finite_where_the_spread_is_all_but_nothing():
    score = lambda *args: crps_truncated_normal(*args, lower=0.0)
    args = jnp.meshgrid(
        jnp.array([-2.0, 0.0, 5.0, 3e5], jnp.float32),
        jnp.array([0.0, 1e-30, 1e-20, 1e-15, 1e-10], jnp.float32),
        jnp.array([0.0, 3.0, 5.0, 3e5], jnp.float32),
    )
    value, pull = jax.vjp(score, *args)
    chex.assert_tree_all_finite(pull(jnp.ones_like(value)))
    mean, _, truth = args
    distance = jnp.abs(truth - jnp.maximum(mean, 0))
    np.testing.assert_allclose(value, distance, rtol=1e-6, atol=1e-9)


def test_the_mirror_image_has_the_same_score():
    mean, std, truth = (
        jnp.array([-2.0, 0.5]),
        jnp.array([1.0, 2.0]),
        jnp.array([0.1, 3.0]),
    )
    score = crps_truncated_normal(mean, std, truth, lower=0.0)
    mirrored = crps_truncated_normal(-mean, std, -truth, upper=0.0)
    np.testing.assert_allclose(mirrored, score, rtol=1e-15)


def test_a_truth_beyond_a_limit_adds_its_distance_and_cannot_be():
    mean, std = jnp.array([0.3, 0.3]), jnp.array([1.2, 1.2])
    truth = jnp.array([0.0, -1.5])
    at, below = crps_truncated_normal(mean, std, truth, lower=0.0)
    np.testing.assert_allclose(below, at + 1.5, rtol=1e-15)
    assert log_score_truncated_normal(mean, std, truth, lower=0.0)[1] == np.inf
    slope = jax.vmap(
        jax.grad(lambda y: crps_truncated_normal(mean[0], std[0], y, lower=0.0))
    )
    np.testing.assert_allclose(slope(truth), [-1, -1], atol=1e-15)
