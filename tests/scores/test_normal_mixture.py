import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scoringrules
from jax.test_util import check_grads
from scipy import stats

from skyens.scores import (
    crps,
    crps_normal,
    crps_normal_mixture,
    log_score_normal,
    log_score_normal_mixture,
)


def forecast(dtype=jnp.float64):
    """Return means, standard deviations, weights and truths of 5 components."""
    keys = jr.split(jr.key(0), 4)
    mean = jr.normal(keys[0], (5, 3), dtype)
    std = jr.uniform(keys[1], (5, 3), dtype, 0.2, 2.0)
    weights = jr.uniform(keys[2], (5, 3), dtype, 0.1, 1.0)
    return mean, std, weights, jr.normal(keys[3], (3,), dtype)


def absolute(mean, std):
    """Return the mean absolute value of a normal variable."""
    return mean * (1 - 2 * stats.norm.cdf(-mean / std)) + 2 * std * stats.norm.pdf(
        mean / std
    )


def direct(mean, std, weights, truth, alpha):
    """Return the score with all pairs at once."""
    mean, std, weights, truth = map(np.asarray, (mean, std, weights, truth))
    weights = weights / weights.sum(0)
    pairs = (
        weights[:, None]
        * weights
        * absolute(mean[:, None] - mean, np.hypot(std[:, None], std))
    )
    itself = np.einsum("iix->x", pairs)
    every = pairs.sum((0, 1))
    fair = (every - itself) / (1 - (weights**2).sum(0))
    near = (weights * absolute(mean - truth, std)).sum(0)
    return near - alpha * fair / 2 - (1 - alpha) * every / 2


@pytest.mark.parametrize("alpha", [0.0, 0.95, 1.0])
def test_it_is_the_sum_over_pairs(alpha):
    mean, std, weights, truth = forecast()
    score = crps_normal_mixture(mean, std, truth, weights=weights, alpha=alpha)
    expected = direct(mean, std, weights, truth, alpha)
    np.testing.assert_allclose(score, expected, rtol=1e-13)
    moved = crps_normal_mixture(
        mean.T, std.T, truth, weights=weights.T, alpha=alpha, axis=1
    )
    np.testing.assert_allclose(moved, score, rtol=1e-14)


def test_it_agrees_with_scoringrules_and_one_component_is_normal():
    mean, std, weights, truth = forecast()
    shares = weights / weights.sum(0, keepdims=True)
    peer = scoringrules.crps_mixnorm(
        *map(np.asarray, (truth, mean, std, shares)), m_axis=0
    )
    score = crps_normal_mixture(mean, std, truth, weights=weights)
    np.testing.assert_allclose(score, peer, rtol=1e-12)
    one = crps_normal_mixture(mean[:1], std[:1], truth)
    np.testing.assert_allclose(one, crps_normal(mean[0], std[0], truth), rtol=1e-13)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("alpha", [0.0, 0.95, 1.0])
def test_without_spread_it_is_the_score_of_the_ensemble(alpha, dtype):
    mean, std, _, truth = forecast(dtype)
    mean = mean.at[1].set(mean[0]).at[2].set(truth)  # ties
    score = lambda mean: crps_normal_mixture(mean, 0 * std, truth, alpha=alpha).sum()
    ensemble = lambda mean: crps(mean, truth, alpha=alpha).sum()
    tolerance = 20 * float(jnp.finfo(dtype).eps)
    for actual, expected in zip(
        jax.value_and_grad(score)(mean), jax.value_and_grad(ensemble)(mean), strict=True
    ):
        np.testing.assert_allclose(actual, expected, atol=tolerance)
    by_std = jax.grad(lambda std: crps_normal_mixture(mean, std, truth).sum())(0 * std)
    chex.assert_tree_all_finite(by_std)
    np.testing.assert_allclose(by_std[0], by_std[1], atol=tolerance)


def test_it_is_the_expected_fair_score_of_dressed_members():
    mean, std, _, truth = (x[..., :1] for x in forecast())
    noise = jr.normal(jr.key(1), (5, 40_000))
    dressed = crps(mean + std * noise, truth)
    error = float(dressed.std()) / 200
    score = crps_normal_mixture(mean, std, truth, alpha=1.0)
    np.testing.assert_allclose(dressed.mean(), score[0], atol=4 * error)


def test_slopes_are_those_of_finite_differences():
    mean, std, weights, truth = forecast()
    crps_of = lambda mean, std, weights, truth: crps_normal_mixture(
        mean, std, truth, weights=weights, alpha=0.7
    )
    log_score_of = lambda mean, std, weights, truth: log_score_normal_mixture(
        mean, std, truth, weights=weights
    )
    for score in (crps_of, log_score_of):
        check_grads(
            jax.jit(score), (mean, std, weights, truth), order=1, modes=("fwd", "rev")
        )
    total = lambda mean: crps_of(mean, std, weights, truth).sum()
    check_grads(jax.jit(jax.grad(total)), (mean,), order=1, modes=("fwd",))


def test_a_mask_is_removal_and_nothing_masked_matters():
    mean, std, weights, truth = forecast()
    where = jnp.ones((5, 1), bool).at[2].set(False)
    keep = jnp.array([0, 1, 3, 4])
    dirty = mean.at[2].set(jnp.nan), std.at[2].set(-1.0)
    for score in (
        lambda *args, **more: crps_normal_mixture(*args, alpha=1.0, **more),
        log_score_normal_mixture,
    ):
        masked = lambda mean, std: score(mean, std, truth, weights=weights, where=where)
        removed = score(mean[keep], std[keep], truth, weights=weights[keep])
        np.testing.assert_allclose(masked(*dirty), removed, rtol=1e-14)
        slopes = jax.grad(lambda *args: masked(*args).sum(), (0, 1))(*dirty)
        chex.assert_tree_all_finite(slopes)
        nothing = lambda mean: score(mean, std, truth, where=jnp.zeros((5, 1), bool))
        assert (nothing(mean) == 0).all()
        slope = jax.grad(lambda mean: nothing(mean).sum())(mean)
        chex.assert_trees_all_equal(slope, jnp.zeros_like(slope))
    alone = jnp.zeros((5, 1), bool).at[0].set(True)
    assert (crps_normal_mixture(mean, std, truth, alpha=1.0, where=alone) == 0).all()


def test_the_log_score_is_that_of_the_density_and_finite_far_out():
    mean, std, weights, truth = forecast()
    shares = weights / weights.sum(0, keepdims=True)
    density = (shares * stats.norm.pdf(truth[None], mean, std)).sum(0)
    score = log_score_normal_mixture(mean, std, truth, weights=weights)
    np.testing.assert_allclose(score, -np.log(density), rtol=1e-13)
    far = log_score_normal_mixture(mean, jnp.ones((5, 3)), truth + 1e4)
    nearest = log_score_normal(mean.max(0), jnp.ones(3), truth + 1e4)
    # The nearest component is all that counts, with its fifth of the weight.
    np.testing.assert_allclose(far, nearest + np.log(5), rtol=1e-9)


def test_single_precision_is_exact_at_an_offset():
    mean, std, _, truth = (jnp.round(16 * x) / 16 for x in forecast())
    std = std + 0.5
    near = crps_normal_mixture(mean, std, truth, alpha=1.0)
    narrow = [x.astype(jnp.float32) for x in (mean + 5e5, std, truth + 5e5)]
    far = crps_normal_mixture(*narrow, alpha=1.0)
    np.testing.assert_allclose(far, near, rtol=1e-5)
    half = [x.astype(jnp.bfloat16) for x in (mean, std, truth)]
    assert crps_normal_mixture(*half).dtype == jnp.bfloat16


def test_memory_does_not_grow_with_the_pairs():
    def peak(members):
        shape = jax.ShapeDtypeStruct((members, 8), jnp.float32)
        truth = jax.ShapeDtypeStruct((8,), jnp.float32)
        total = lambda mean, std, truth: crps_normal_mixture(mean, std, truth).sum()
        slopes = jax.jit(jax.grad(total, (0, 1)))
        compiled = slopes.lower(shape, shape, truth).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    # Squared it would be a hundredfold.
    assert peak(400) < 20 * peak(40)


def test_wrong_use_is_reported():
    mean, std, _, truth = forecast()
    with pytest.raises(ValueError, match=r"`mean` \(5, 3\), `std` \(2, 3\)"):
        crps_normal_mixture(mean, std[:2], truth)
    with pytest.raises(ValueError, match=r"`truth` of shape \(2,\)"):
        crps_normal_mixture(mean, std, truth[:2])
    with pytest.raises(ValueError, match="`mean` has no members"):
        log_score_normal_mixture(mean[:0], std[:0], truth)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 1.5"):
        crps_normal_mixture(mean, std, truth, alpha=1.5)
    with pytest.raises(ValueError, match="a fair score needs 2"):
        crps_normal_mixture(mean[:1], std[:1], truth, alpha=1.0)
    negative = crps_normal_mixture(mean, std.at[0, 0].set(-1.0), truth)
    assert jnp.isnan(negative).tolist() == [True, False, False]
    with pytest.raises(eqx.EquinoxRuntimeError, match="`weights` must be not negative"):
        crps_normal_mixture(mean, std, truth, weights=-jnp.ones((5, 1)))
