import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scoringrules
from hypothesis import given, settings, strategies as st
from scipy import integrate, stats

from skyens.scores import (
    crps,
    crps_normal,
    outcome_weighted_crps,
    threshold_weighted_crps,
)

smooth = lambda x: jax.nn.sigmoid(2 * x)
smooth_numpy = lambda x: 1 / (1 + np.exp(-2 * x))


def normal(seed, shape, dtype=float):
    """Draw by NumPy, which has nothing to compile."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def tied(seed, members, points=(3, 5)):
    draws = np.random.default_rng(seed).normal(size=(members + 1, *points))
    draws = np.round(2 * draws) / 2
    return jnp.asarray(draws[1:]), jnp.asarray(draws[0])


def conditional(weight, xp=np):
    """Return the definition: all pairs of weighted members."""

    def score(x, y):
        share = weight(x) / weight(x).sum(0, keepdims=True)
        distance = (share * abs(x - y[None])).sum(0)
        pairs = share[:, None] * share[None] * abs(x[:, None] - x[None])
        return weight(y) * (distance - pairs.sum((0, 1)) / 2)

    return score


@jax.jit
def outcome_with_slopes(ensemble, truth, where=None):
    score = lambda *x: outcome_weighted_crps(*x, weight=smooth, where=where)
    value, pull = jax.vjp(score, ensemble, truth)
    return value, pull(jnp.ones_like(value))


def test_clipping_integrates_the_squared_distance_over_the_interval():
    ensemble, truth = np.array([-1.0, 0.3, 0.4, 2.0]), 0.9
    distance = lambda t: (np.mean(ensemble <= t) - (truth <= t)) ** 2
    breaks = [*ensemble, truth]
    for lower, upper in [(0.0, 1.0), (-5.0, 0.35), (0.5, 5.0)]:
        inside = [x for x in breaks if lower < x < upper]
        area, _ = integrate.quad(distance, lower, upper, points=inside)
        score = threshold_weighted_crps(
            jnp.asarray(ensemble),
            jnp.asarray(truth),
            lower=lower,
            upper=upper,
            alpha=0.0,
        )
        np.testing.assert_allclose(score, area, rtol=1e-10)


def test_threshold_weights_are_those_of_scoringrules():
    ensemble, truth = tied(0, 6)
    peer = scoringrules.twcrps_ensemble(  # pyright: ignore[reportArgumentType]
        np.asarray(truth),
        np.asarray(ensemble),
        a=0.5,
        b=1.5,
        m_axis=0,
        estimator="nrg",
        backend="numpy",
    )
    score = threshold_weighted_crps(ensemble, truth, lower=0.5, upper=1.5, alpha=0.0)
    np.testing.assert_allclose(score, np.asarray(peer), atol=1e-14)


def test_thresholds_and_chaining_act_point_by_point():
    ensemble, truth = normal(1, (4, 2, 3)), normal(2, (2, 3))
    lower = jnp.array([-jnp.inf, 0.0, 0.5])
    score = threshold_weighted_crps(ensemble, truth, lower=lower)
    for point in range(3):
        one = threshold_weighted_crps(
            ensemble[..., point], truth[:, point], lower=float(lower[point])
        )
        chex.assert_trees_all_close(score[:, point], one, rtol=1e-14)
    chained = threshold_weighted_crps(
        ensemble, truth, chaining=lambda x: jnp.maximum(x, lower[None])
    )
    chex.assert_trees_all_close(chained, score, rtol=1e-14)
    plain = threshold_weighted_crps(ensemble, truth)
    chex.assert_trees_all_equal(plain, crps(ensemble, truth))
    last = threshold_weighted_crps(
        jnp.moveaxis(ensemble, 0, -1), truth, lower=lower, axis=-1
    )
    chex.assert_trees_all_equal(last, score)


def test_a_smooth_chaining_function_has_the_slopes_of_its_weight():
    ensemble, truth = normal(3, (4, 6)), normal(4, (6,))
    chaining = lambda x: jax.nn.softplus(x)
    total = lambda x: threshold_weighted_crps(x, truth, chaining=chaining).sum()
    by_chained = jax.grad(lambda v: crps(v, chaining(truth)).sum())(chaining(ensemble))
    expected = by_chained * jax.nn.sigmoid(ensemble)
    chex.assert_trees_all_close(jax.grad(total)(ensemble), expected, atol=1e-14)


def test_without_exceedance_the_threshold_weighted_score_and_its_slopes_are_zero():
    ensemble, truth = tied(5, 4)
    total = lambda x, y: threshold_weighted_crps(x, y, lower=9.0).sum()
    value, slopes = jax.value_and_grad(total, (0, 1))(ensemble, truth)
    assert value == 0
    chex.assert_trees_all_equal(slopes, jax.tree.map(jnp.zeros_like, slopes))


def test_outcome_weights_are_those_of_scoringrules():
    ensemble, truth = tied(6, 5, (9,))
    peer = scoringrules.owcrps_ensemble(
        np.asarray(truth),
        np.asarray(ensemble),
        w_func=smooth_numpy,
        m_axis=0,
        backend="numpy",
    )
    score, _ = outcome_with_slopes(ensemble, truth)
    np.testing.assert_allclose(score, np.asarray(peer), rtol=1e-12, atol=1e-14)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_outcome_weighting_equals_all_pairs_and_ignores_the_masked(seed):
    ensemble, truth = tied(seed, 5, (6,))
    where = np.random.default_rng(seed).random(ensemble.shape) < 0.6
    where[0] = True
    spoilt = jnp.where(where, ensemble, jnp.nan)
    score, slopes = outcome_with_slopes(spoilt, truth, jnp.asarray(where))
    assert (score >= 0).all()
    chex.assert_tree_all_finite(slopes)
    assert not slopes[0][~where].any()
    reference = conditional(smooth_numpy)
    for point in range(6):
        here = where[:, point]
        expected = reference(
            np.asarray(ensemble)[here, point, None], np.asarray(truth)[point, None]
        )
        np.testing.assert_allclose(score[point], expected[0], atol=1e-13)


def test_outcome_weighting_has_the_slopes_of_the_definition():
    ensemble, truth = normal(7, (5, 6)), normal(8, (6,))
    _, slopes = outcome_with_slopes(ensemble, truth)
    total = lambda x, y: conditional(smooth)(x, y).sum()
    expected = jax.jit(jax.grad(total, (0, 1)))(ensemble, truth)
    chex.assert_trees_all_close(slopes, expected, atol=1e-13)


def test_equal_members_get_equal_slopes_and_weight_one_is_the_crps():
    ensemble, truth = tied(9, 6)
    total = lambda x: outcome_weighted_crps(x, truth, weight=lambda x: x > -99.0).sum()
    value, slope = jax.value_and_grad(total)(ensemble)
    plain = lambda x: crps(x, truth, alpha=0.0).sum()
    expected, plain_slope = jax.value_and_grad(plain)(ensemble)
    chex.assert_trees_all_close((value, slope), (expected, plain_slope), atol=1e-13)
    doubled = jnp.concatenate([ensemble, ensemble])
    _, (slope, _) = outcome_with_slopes(doubled, truth)
    chex.assert_trees_all_close(slope[:6], slope[6:], atol=1e-15)


def test_a_missed_event_scores_zero_with_finite_slopes():
    ensemble, truth = tied(10, 4)
    truth = jnp.full_like(truth, 9.0)
    total = lambda *x: outcome_weighted_crps(*x, weight=lambda x: x > 8.0).sum()
    value, slopes = jax.value_and_grad(total, (0, 1))(ensemble, truth)
    assert value == 0
    chex.assert_trees_all_equal(slopes, jax.tree.map(jnp.zeros_like, slopes))
    # Weights that underflow, and all masked.
    tiny = lambda x: jnp.exp(-900 + x)
    total = lambda *x: outcome_weighted_crps(*x, weight=tiny).sum()
    chex.assert_tree_all_finite(jax.value_and_grad(total, (0, 1))(ensemble, truth))
    nan = jnp.full_like(ensemble, jnp.nan)
    value, slopes = outcome_with_slopes(nan, nan[0], jnp.zeros(nan.shape, bool))
    chex.assert_trees_all_equal(slopes, jax.tree.map(jnp.zeros_like, slopes))
    chex.assert_trees_all_equal(value, jnp.zeros_like(value))


def test_float32_is_exact_at_a_large_offset():
    ensemble = 5e5 + 0.5 * normal(11, (20, 500), jnp.float32)
    truth = 5e5 + 0.5 * normal(12, (500,), jnp.float32)
    weight = lambda x: x > 5e5
    score = outcome_weighted_crps(ensemble, truth, weight=weight)
    assert score.dtype == jnp.float32
    wide = np.asarray(ensemble, float), np.asarray(truth, float)
    expected = conditional(lambda x: (x > 5e5) * 1.0)(*wide)
    np.testing.assert_allclose(
        score, expected, rtol=1e-6, atol=1e-6 * float(expected.mean())
    )
    score = threshold_weighted_crps(ensemble, truth, lower=5e5)
    assert score.dtype == jnp.float32
    expected = threshold_weighted_crps(*(jnp.asarray(x) for x in wide), lower=5e5)
    np.testing.assert_allclose(
        score, expected, rtol=1e-6, atol=1e-6 * float(expected.mean())
    )


def test_float32_is_exact_for_many_members_of_an_event():
    ensemble, truth = normal(18, (1000, 3), jnp.float32), normal(19, (3,), jnp.float32)
    score = outcome_weighted_crps(ensemble, truth, weight=jnp.ones_like)
    wide = np.asarray(ensemble, float), np.asarray(truth, float)
    expected = conditional(np.ones_like)(*wide)
    np.testing.assert_allclose(score, expected, rtol=1e-6)


@pytest.mark.parametrize("members", [2, 6])
def test_the_fair_threshold_weighted_score_is_unbiased_in_members(members):
    ensemble, truth = normal(13, (members, 40_000)), 1.2 * normal(14, (40_000,))
    score = threshold_weighted_crps(ensemble, truth, lower=0.0)
    # Above 0 only: the rest of the closed-form CRPS lies below.
    below = lambda t, y: (stats.norm.cdf(t) - (y <= t)) ** 2
    grid, nodes = np.linspace(-8, 0, 4001), np.linspace(-6, 1, 141)
    lost = [np.trapezoid(below(grid, y), grid) for y in nodes]
    lost = np.interp(np.asarray(truth), nodes, lost)
    limit = crps_normal(jnp.zeros(()), jnp.ones(()), truth) - lost
    difference = np.asarray(score - limit)
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(difference.size)


def test_second_derivatives_follow_a_smooth_weight():
    ensemble, truth = normal(15, (3,)), jnp.asarray(0.2)
    score = lambda x: outcome_weighted_crps(x, truth, weight=smooth)
    curvature = jax.jit(jax.hessian(score))(ensemble)
    weights = jax.jit(jax.grad(score))
    steps = 1e-6 * jnp.eye(3)
    quotient = [(weights(ensemble + e) - weights(ensemble - e)) / 2e-6 for e in steps]
    chex.assert_trees_all_close(curvature, jnp.stack(quotient), atol=1e-7)


def test_no_array_of_pairs_is_held():
    members, points = 64, 8192
    shapes = (members, points), (points,)
    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    total = lambda *x: outcome_weighted_crps(*x, weight=smooth).sum()
    memory = jax.jit(jax.grad(total)).lower(*shapes).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < members / 4 * (members * points * 4)


def test_wrong_use_is_reported():
    ensemble, truth = jnp.zeros((3, 4)), jnp.zeros(4)
    with pytest.raises(ValueError, match=r"`lower` = 1.0 lies above `upper` = 0.0"):
        threshold_weighted_crps(ensemble, truth, lower=1.0, upper=0.0)
    with pytest.raises(ValueError, match="`chaining`, or `lower` and `upper`"):
        threshold_weighted_crps(ensemble, truth, lower=1.0, chaining=jnp.exp)
    with pytest.raises(ValueError, match=r"`upper` of shape \(5,\)"):
        threshold_weighted_crps(ensemble, truth, upper=jnp.zeros(5))
    with pytest.raises(ValueError, match="1 member along axis 1"):
        threshold_weighted_crps(jnp.zeros((4, 1)), truth, axis=1)
    with pytest.raises(
        eqx.EquinoxRuntimeError, match="`weight` must be finite and not"
    ):
        outcome_weighted_crps(ensemble, truth, weight=lambda x: x - 1.0)
    total = lambda x: jnp.ones(())
    with pytest.raises(ValueError, match=r"`weight` must .* shape, \(4,\), got \(\)"):
        outcome_weighted_crps(ensemble, truth, weight=total)
    with pytest.raises(ValueError, match=r"`chaining` must .* shape, \(4,\), got \(\)"):
        threshold_weighted_crps(ensemble, truth, chaining=total)
