import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scoringrules
from hypothesis import given, settings, strategies as st

from skyens.scores import crps, vertically_rescaled_crps

smooth = lambda x: jax.nn.sigmoid(2 * x)
smooth_numpy = lambda x: 1 / (1 + np.exp(-2 * x))


def normal(seed, shape, dtype=float):
    """Draw by NumPy, which has nothing to compile."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def tied(seed, members, points=(3, 5)):
    draws = np.random.default_rng(seed).normal(size=(members + 1, *points))
    draws = np.round(2 * draws) / 2
    return jnp.asarray(draws[1:]), jnp.asarray(draws[0])


def kernel_score(weight, centre, alpha):
    """Return the definition: pairs of the kernel, members twice only if not fair."""

    def score(x, y):
        size = x.shape[0]
        u, v = abs(x - centre), abs(y - centre)
        pairs = weight(x)[:, None] * weight(x)[None]
        pairs = pairs * (u[:, None] + u[None] - abs(x[:, None] - x[None]))
        same = (2 * weight(x) ** 2 * u).sum(0)
        fair = (pairs.sum((0, 1)) - same) / (size * (size - 1))
        members = alpha * fair + (1 - alpha) * pairs.sum((0, 1)) / size**2
        cross = weight(x) * weight(y)[None] * (u + v[None] - abs(x - y[None]))
        return members / 2 - cross.mean(0) + weight(y) ** 2 * v

    return score


@jax.jit
def with_slopes(ensemble, truth, alpha, where=None):
    score = lambda *x: vertically_rescaled_crps(
        *x, weight=smooth, centre=0.5, alpha=alpha, where=where
    )
    value, pull = jax.vjp(score, ensemble, truth)
    return value, pull(jnp.ones_like(value))


def test_it_is_that_of_scoringrules():
    # The peer takes the mean weight over axis 1 whatever the shape: flat points only.
    ensemble, truth = tied(0, 5, (9,))
    peer = scoringrules.vrcrps_ensemble(
        np.asarray(truth),
        np.asarray(ensemble),
        w_func=smooth_numpy,
        m_axis=0,
        backend="numpy",
    )
    score = vertically_rescaled_crps(ensemble, truth, weight=smooth, alpha=0.0)
    np.testing.assert_allclose(score, np.asarray(peer), rtol=1e-12, atol=1e-14)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), alpha=st.floats(0, 1))
def test_it_is_the_kernel_score_and_ignores_the_masked(seed, alpha):
    ensemble, truth = tied(seed, 5, (6,))
    where = np.random.default_rng(seed).random(ensemble.shape) < 0.6
    where[:2] = True
    spoilt = jnp.where(where, ensemble, jnp.nan)
    score, slopes = with_slopes(spoilt, truth, jnp.asarray(alpha), jnp.asarray(where))
    chex.assert_tree_all_finite(slopes)
    assert not slopes[0][~where].any()
    reference = kernel_score(smooth_numpy, 0.5, alpha)
    for point in range(6):
        here = where[:, point]
        expected = reference(
            np.asarray(ensemble)[here, point, None], np.asarray(truth)[point, None]
        )
        np.testing.assert_allclose(score[point], expected[0], atol=1e-13)


def test_it_has_the_slopes_of_the_definition():
    ensemble, truth = normal(1, (5, 6)), normal(2, (6,))
    for alpha in (0.0, 0.95, 1.0):
        _, slopes = with_slopes(ensemble, truth, jnp.asarray(alpha))
        total = lambda x, y: kernel_score(smooth, 0.5, alpha)(x, y).sum()
        expected = jax.grad(total, (0, 1))(ensemble, truth)
        chex.assert_trees_all_close(slopes, expected, atol=1e-13)


def test_with_weight_one_it_is_the_crps_ties_and_slopes_included():
    # Members on the centre too, from which the lattice does not keep away.
    ensemble, truth = tied(3, 6)
    one = lambda x: jnp.ones_like(x)
    for alpha in (0.0, 1.0):
        total = lambda *x: vertically_rescaled_crps(
            *x, weight=one, centre=0.5, alpha=alpha
        ).sum()
        found = jax.jit(jax.value_and_grad(total, (0, 1)))(ensemble, truth)
        plain = lambda *x: crps(*x, alpha=alpha).sum()
        expected = jax.jit(jax.value_and_grad(plain, (0, 1)))(ensemble, truth)
        chex.assert_trees_all_close(found, expected, atol=1e-13)


def test_indicators_of_an_event_are_never_negative_and_see_a_miss():
    ensemble, truth = tied(4, 4)
    wet = lambda x: x > 0.4
    for alpha in (0.0, 1.0):
        score = vertically_rescaled_crps(ensemble, truth, weight=wet, alpha=alpha)
        assert (score >= 0).all()
    missed = vertically_rescaled_crps(-jnp.ones((3, 1)), jnp.full(1, 2.0), weight=wet)
    chex.assert_trees_all_close(missed, jnp.full(1, 2.0))


def test_equal_members_get_equal_slopes():
    ensemble, truth = tied(5, 3)
    doubled = jnp.concatenate([ensemble, ensemble])
    _, (slope, _) = with_slopes(doubled, truth, 1.0)
    chex.assert_trees_all_close(slope[:3], slope[3:], atol=1e-15)


def test_no_exceedance_and_nothing_valid_score_zero_with_zero_slopes():
    ensemble, truth = tied(6, 4)
    total = lambda *x: vertically_rescaled_crps(*x, weight=lambda x: x > 9.0).sum()
    found = jax.value_and_grad(total, (0, 1))(ensemble, truth)
    chex.assert_trees_all_equal(found, jax.tree.map(jnp.zeros_like, found))
    nan = jnp.full_like(ensemble, jnp.nan)
    found = with_slopes(nan, nan[0], 1.0, jnp.zeros(nan.shape, bool))
    chex.assert_trees_all_equal(found, jax.tree.map(jnp.zeros_like, found))


def test_float32_is_exact_far_from_the_centre():
    ensemble = 5e5 + 0.5 * normal(7, (20, 500), jnp.float32)
    truth = 5e5 + 0.5 * normal(8, (500,), jnp.float32)
    one = lambda x: jnp.ones_like(x)
    score = vertically_rescaled_crps(ensemble, truth, weight=one)
    assert score.dtype == jnp.float32
    wide = jnp.asarray(ensemble, float), jnp.asarray(truth, float)
    expected = crps(*wide)
    np.testing.assert_allclose(
        score, expected, rtol=1e-6, atol=1e-6 * float(expected.mean())
    )


def test_a_centre_for_each_point_and_slopes_in_alpha():
    ensemble, truth = normal(9, (4, 2, 3)), normal(10, (2, 3))
    centre = jnp.array([-1.0, 0.0, 2.0])
    score = lambda alpha: vertically_rescaled_crps(
        ensemble, truth, weight=smooth, centre=centre, alpha=alpha
    )
    expected = kernel_score(smooth_numpy, np.asarray(centre), 1.0)(
        np.asarray(ensemble), np.asarray(truth)
    )
    chex.assert_trees_all_close(score(1.0), expected, atol=1e-14)
    slope = jax.jacfwd(score)(jnp.asarray(0.5))
    chex.assert_trees_all_close(slope, score(1.0) - score(0.0), atol=1e-14)


def test_wrong_use_is_reported():
    ensemble, truth = jnp.zeros((3, 4)), jnp.zeros(4)
    with pytest.raises(ValueError, match=r"`centre` of shape \(5,\)"):
        vertically_rescaled_crps(ensemble, truth, weight=smooth, centre=jnp.zeros(5))
    with pytest.raises(ValueError, match=r"`alpha` must lie in \[0, 1\]"):
        vertically_rescaled_crps(ensemble, truth, weight=smooth, alpha=-0.1)
    with pytest.raises(
        eqx.EquinoxRuntimeError, match="`weight` must be finite and not"
    ):
        vertically_rescaled_crps(ensemble, truth, weight=lambda x: x - 1.0)
