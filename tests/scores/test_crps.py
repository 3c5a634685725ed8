import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scoringrules
from hypothesis import given, settings, strategies as st

from skyens.scores import crps, crps_normal

SIZES = [2, 3, 9, 33]  # each way of sorting


def pairwise(ensemble, truth, alpha):
    """Return the definition in float64: all pairs of members."""
    x, y = np.asarray(ensemble, float), np.asarray(truth, float)
    size = len(x)
    weight = (1 - alpha) / size**2 + (alpha / (size * (size - 1)) if alpha else 0)
    distance = np.abs(x[:, None] - x[None]).sum((0, 1))
    return np.abs(x - y).mean(0) - weight * distance / 2


def pairwise_gradient(ensemble, truth, alpha):
    x, y = np.asarray(ensemble, float), np.asarray(truth, float)
    size = len(x)
    weight = (1 - alpha) / size**2 + (alpha / (size * (size - 1)) if alpha else 0)
    signs = np.sign(x[:, None] - x[None]).sum(1)
    return np.sign(x - y) / size - weight * signs


def normal(seed, shape, dtype=float):
    """Draw by NumPy, which has nothing to compile."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@jax.jit
def with_slopes(ensemble, truth, alpha, where=None):
    score = lambda x, y: crps(x, y, alpha=alpha, where=where)
    value, pull = jax.vjp(score, ensemble, truth)
    return value, pull(jnp.ones_like(value))


def tied(seed, members, points=(3, 5)):
    """Return members and truth on a coarse lattice, so that many are equal."""
    draws = np.random.default_rng(seed).normal(size=(members + 1, *points))
    draws = np.round(2 * draws) / 2
    return jnp.asarray(draws[1:]), jnp.asarray(draws[0])


class CRPSTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_fair_and_standard_are_those_of_scoringrules(self):
        ensemble, truth = normal(0, (6, 2, 4)), normal(1, (2, 4))
        for alpha, estimator in [(1.0, "fair"), (0.0, "nrg")]:
            score = self.variant(lambda x, y: crps(x, y, alpha=alpha))(ensemble, truth)
            peer = scoringrules.crps_ensemble(
                np.asarray(truth), np.asarray(ensemble), m_axis=0, estimator=estimator
            )
            chex.assert_trees_all_close(score, np.asarray(peer), rtol=1e-12)


@pytest.mark.parametrize("members", SIZES)
def test_value_and_gradient_are_those_of_all_pairs_with_ties(members):
    ensemble, truth = tied(0, members)
    for alpha in (0.0, 0.95, 1.0):
        score, (by_member, by_truth) = with_slopes(ensemble, truth, alpha)
        expected = pairwise(ensemble, truth, alpha)
        chex.assert_trees_all_close(score, expected, rtol=1e-12, atol=1e-13)
        slope = pairwise_gradient(ensemble, truth, alpha)
        chex.assert_trees_all_close(by_member, slope, atol=1e-13)
        chex.assert_trees_all_close(by_truth, -slope.sum(0), atol=1e-13)


@pytest.mark.parametrize("members", SIZES)
def test_masked_members_might_as_well_not_be_there(members):
    ensemble, truth = tied(1, members)
    where = normal(2, ensemble.shape) > 0
    spoilt = jnp.where(where, ensemble, jnp.nan)
    for alpha in (0.0, 0.95, 1.0):
        score, slopes = jax.device_get(with_slopes(spoilt, truth, alpha, where))
        slope, by_truth = slopes
        for point in np.ndindex(truth.shape):
            here = np.asarray(where)[(slice(None), *point)]
            few = here.sum() < (2 if alpha else 1)
            x, y = np.asarray(ensemble)[(here, *point)], np.asarray(truth)[point]
            value = 0.0 if few else pairwise(x, y, alpha)
            np.testing.assert_allclose(score[point], value, atol=1e-13)
            expected = np.zeros(members)
            expected[here] = 0.0 if few else pairwise_gradient(x, y, alpha)
            found = slope[(slice(None), *point)]
            np.testing.assert_allclose(found, expected, atol=1e-13)
            np.testing.assert_allclose(by_truth[point], -expected.sum(), atol=1e-13)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    alpha=st.sampled_from([0.0, 0.95, 1.0]),
    shift=st.floats(-1e3, 1e3),
    scale=st.floats(1e-3, 1e3),
)
def test_order_shift_and_scale(seed, alpha, shift, scale):
    ensemble, truth = tied(seed, 5)
    score = crps(ensemble, truth, alpha=alpha)
    assert (score >= 0).all()
    shuffled = jnp.asarray(np.random.default_rng(seed).permutation(ensemble))
    chex.assert_trees_all_equal(crps(shuffled, truth, alpha=alpha), score)
    moved = crps(scale * ensemble + shift, scale * truth + shift, alpha=alpha)
    rounding = 1e-14 * (scale + abs(shift))
    chex.assert_trees_all_close(moved, scale * score, rtol=1e-12, atol=rounding)
    mirrored = crps(-ensemble, -truth, alpha=alpha)
    chex.assert_trees_all_close(mirrored, score, rtol=1e-12, atol=1e-13)


def test_any_axis_any_broadcast_and_vmap():
    ensemble, truth = normal(3, (4, 2, 3)), normal(4, (5, 1, 3))
    score = crps(ensemble, truth)
    chex.assert_shape(score, (5, 2, 3))
    one = crps(ensemble, jnp.broadcast_to(truth[2], (2, 3)))
    chex.assert_trees_all_close(score[2], one, rtol=1e-14)
    last = crps(jnp.moveaxis(ensemble, 0, -1), truth, axis=-1)
    chex.assert_trees_all_equal(last, score)
    point_by_point = jax.vmap(lambda y: crps(ensemble, y))(truth)
    chex.assert_trees_all_close(point_by_point, score, rtol=1e-14)
    # A mask of members and one of points broadcast too.
    members = jnp.array([True, True, False, True])[:, None, None]
    without = crps(ensemble[jnp.array([0, 1, 3])], truth)
    chex.assert_trees_all_close(crps(ensemble, truth, where=members), without)
    points = jnp.array([True, False, True])
    chex.assert_trees_all_close(
        crps(ensemble, truth, where=points), jnp.where(points, score, 0)
    )


def test_one_member_is_the_absolute_error():
    ensemble, truth = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([3.0, 2.0, 1.0])
    chex.assert_trees_all_equal(
        crps(ensemble, truth, alpha=0.0), jnp.array([2.0, 0.0, 2.0])
    )
    slope = jax.grad(lambda x: crps(x, truth, alpha=0.0).sum())(ensemble)
    chex.assert_trees_all_equal(slope, jnp.array([[-1.0, 0.0, 1.0]]))


@pytest.mark.parametrize("members", [4, 40])
def test_float32_is_exact_at_a_large_offset(members):
    ensemble = 5e5 + 0.5 * normal(5, (members, 1000), jnp.float32)
    truth = 5e5 + 0.5 * normal(6, (1000,), jnp.float32)
    score, (slope, _) = with_slopes(ensemble, truth, 1.0)
    assert score.dtype == slope.dtype == jnp.float32
    expected = pairwise(ensemble, truth, 1.0)
    np.testing.assert_allclose(score, expected, rtol=1e-6, atol=1e-6 * expected.mean())
    expected = pairwise_gradient(ensemble, truth, 1.0)
    np.testing.assert_allclose(slope, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_rounded_once(dtype):
    ensemble = (3 + 0.05 * normal(6, (4, 500), jnp.float32)).astype(dtype)
    truth = jnp.full(500, 3, dtype)
    score = crps(ensemble, truth)
    assert score.dtype == dtype
    wide = crps(ensemble.astype(jnp.float32), truth.astype(jnp.float32))
    chex.assert_trees_all_equal(score, wide.astype(dtype))
    slope = jax.grad(lambda x: crps(x, truth).astype(jnp.float32).sum())(ensemble)
    assert slope.dtype == dtype


def test_forward_mode_and_vmap_agree_and_curvature_is_zero():
    ensemble, truth = tied(7, 3)
    slopes = pairwise_gradient(ensemble, truth, 1.0)
    moves = normal(8, ensemble.shape), normal(9, truth.shape)
    _, change = jax.jit(lambda *x: jax.jvp(crps, x, moves))(ensemble, truth)
    expected = (slopes * np.asarray(moves[0] - moves[1][None])).sum(0)
    chex.assert_trees_all_close(change, expected, atol=1e-13)
    total = lambda x, y: crps(x, y).sum()
    batched = jax.vmap(jax.grad(total), in_axes=(1, 0), out_axes=1)(ensemble, truth)
    chex.assert_trees_all_close(batched, slopes, atol=1e-13)
    curvature = jax.jit(jax.hessian(total, (0, 1)))(ensemble[:, 0], truth[0])
    chex.assert_trees_all_equal(curvature, jax.tree.map(jnp.zeros_like, curvature))


@pytest.mark.parametrize("members", [4, 9, 33])
def test_a_nan_that_no_mask_hides_spoils_its_point_alone(members):
    ensemble, truth = normal(9, (members, 5)), jnp.zeros(5)
    truth = truth.at[1].set(jnp.nan)
    ensemble = ensemble.at[2, 3].set(jnp.nan)
    lost = jnp.array([False, True, False, True, False])
    chex.assert_trees_all_equal(jnp.isnan(crps(ensemble, truth)), lost)
    others = jnp.ones((members, 5), bool).at[0].set(False)
    chex.assert_trees_all_equal(jnp.isnan(crps(ensemble, truth, where=others)), lost)


def test_all_masked_is_zero_with_zero_gradients():
    ensemble, truth = jnp.full((3, 4), jnp.nan), jnp.full(4, jnp.nan)
    where = jnp.zeros((3, 4), bool)
    total = lambda x, y: crps(x, y, where=where).sum()
    value, slopes = jax.value_and_grad(total, (0, 1))(ensemble, truth)
    chex.assert_trees_all_equal(value, jnp.zeros(()))
    chex.assert_trees_all_equal(slopes, (jnp.zeros((3, 4)), jnp.zeros(4)))


@pytest.mark.parametrize("members", [2, 5])
def test_the_fair_score_is_unbiased_in_the_number_of_members(members):
    ensemble = normal(10, (members, 40_000))
    truth = 0.5 + 1.5 * normal(11, (40_000,))
    limit = crps_normal(jnp.zeros(()), jnp.ones(()), truth)
    difference = crps(ensemble, truth) - limit
    error = difference.std() / np.sqrt(difference.size)
    assert abs(difference.mean()) < 4 * error
    bias = (crps(ensemble, truth, alpha=0.0) - limit).mean()
    # The standard score is too large by E|x - x'| / (2 M).
    assert abs(bias - 1 / (np.sqrt(np.pi) * members)) < 4 * error


def test_the_fair_score_is_proper_where_the_standard_one_is_not():
    draws = normal(12, (3, 40_000))
    truth = normal(13, (40_000,))
    for scale in (0.7, 1.4):
        loss = crps(scale * draws, truth) - crps(draws, truth)
        assert loss.mean() > 4 * loss.std() / np.sqrt(loss.size)
    narrow = lambda x: crps(x, truth, alpha=0.0)
    gain = narrow(draws) - narrow(0.7 * draws)
    assert gain.mean() > 4 * gain.std() / np.sqrt(gain.size)


def test_a_thousand_members_are_all_pairs():
    ensemble, truth = tied(14, 1000, (3,))
    score, slopes = with_slopes(ensemble, truth, 1.0)
    chex.assert_trees_all_close(score, pairwise(ensemble, truth, 1.0), rtol=1e-12)
    expected = pairwise_gradient(ensemble, truth, 1.0)
    chex.assert_trees_all_close(slopes[0], expected, atol=1e-15)


def test_a_traced_alpha_is_as_good_as_a_known_one():
    ensemble, truth = tied(15, 3)
    score = lambda alpha, x, y: crps(x, y, alpha=alpha)
    found = jax.vmap(score, (0, None, None))(
        jnp.array([0.0, 0.3, 1.0]), ensemble, truth
    )
    for alpha, value in zip((0.0, 0.3, 1.0), found, strict=True):
        chex.assert_trees_all_close(
            value, crps(ensemble, truth, alpha=alpha), atol=1e-15
        )
    slope = jax.jit(jax.jacfwd(score))(0.3, ensemble, truth)
    chex.assert_trees_all_close(slope, found[2] - found[0], atol=1e-14)
    outside = jax.jit(score)(1.5, ensemble, truth)
    assert jnp.isnan(outside).all()
    # One member: the absolute error, or no fair score.
    one = jax.vmap(score, (0, None, None))(jnp.array([0.0, 0.5]), ensemble[:1], truth)
    chex.assert_trees_all_equal(one, jnp.stack([abs(ensemble[0] - truth), 0 * truth]))


def test_gradients_of_many_members_hold_no_array_of_pairs():
    members, points = 64, 8192
    shape = jax.ShapeDtypeStruct((members, points), jnp.float32)
    truth = jax.ShapeDtypeStruct((points,), jnp.float32)
    gradient = jax.jit(jax.grad(lambda x, y: crps(x, y).sum()))
    memory = gradient.lower(shape, truth).compile().memory_analysis()
    assert memory is not None
    one_array = members * points * 4
    assert memory.temp_size_in_bytes < members / 4 * one_array


def test_wrong_use_is_reported():
    ensemble, truth = jnp.zeros((3, 4)), jnp.zeros(4)
    with pytest.raises(ValueError, match=r"`alpha` must lie in \[0, 1\], got 1.5"):
        crps(ensemble, truth, alpha=1.5)
    with pytest.raises(ValueError, match=r"1 member along axis 0.*`alpha=0`"):
        crps(ensemble[:1], truth)
    with pytest.raises(ValueError, match=r"no members: axis 0 of shape \(0, 4\)"):
        crps(ensemble[:0], truth)
    with pytest.raises(ValueError, match=r"`truth` of shape \(5,\)"):
        crps(ensemble, jnp.zeros(5))
    with pytest.raises(ValueError, match=r"`where` has shape \(2, 4\)"):
        crps(ensemble, truth, where=jnp.ones((2, 4), bool))
    with pytest.raises(ValueError, match="`axis` is 2"):
        crps(ensemble, truth, axis=2)
