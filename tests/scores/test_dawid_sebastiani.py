import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scoringrules

from skyens.scores import dawid_sebastiani_score


def normal(seed, shape, dtype=float):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


value_of = jax.jit(
    dawid_sebastiani_score, static_argnames=("alpha", "shrinkage", "event_axes")
)


def direct(ensemble, truth, taper=None):
    """Return the definition in float64 for one event."""
    x, y = np.asarray(ensemble, float), np.asarray(truth, float)
    covariance = np.cov(x, rowvar=False).reshape(y.size, y.size)
    covariance *= 1 if taper is None else taper
    error = (y - x.mean(0)).ravel()
    volume = np.linalg.slogdet(covariance)[1]
    return volume + error @ np.linalg.solve(covariance, error)


class DawidSebastianiTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_it_is_the_definition_and_that_of_scoringrules(self):
        ensemble, truth = normal(0, (7, 4, 3)), normal(1, (4, 3))
        score = self.variant(dawid_sebastiani_score)(ensemble, truth)
        expected = [direct(ensemble[:, i], truth[i]) for i in range(4)]
        chex.assert_trees_all_close(score, np.array(expected), rtol=1e-10)
        # The peer divides by M, which makes another covariance of the same members.
        peer = scoringrules.dssmv_ensemble(
            np.asarray(truth), np.asarray(ensemble), m_axis=0, bias=False
        )
        chex.assert_trees_all_close(score, np.asarray(peer), rtol=1e-10)


def test_without_event_axes_it_is_that_of_mean_and_variance():
    ensemble, truth = normal(2, (5, 4)), normal(3, (4,))
    score = value_of(ensemble, truth, event_axes=())
    variance = ensemble.var(0, ddof=1)
    expected = jnp.log(variance) + (truth - ensemble.mean(0)) ** 2 / variance
    chex.assert_trees_all_close(score, expected, rtol=1e-12)


def test_fewer_members_than_entries_need_a_regular_covariance():
    ensemble, truth = normal(4, (3, 4)), normal(5, (4,))
    with pytest.raises(ValueError, match=r"at least 5 members .* got 3.*shrinkage"):
        dawid_sebastiani_score(ensemble, truth)
    taper = np.where(np.eye(4), 1, 0.6)
    score = value_of(ensemble, truth, shrinkage=0.4)
    chex.assert_trees_all_close(score, direct(ensemble, truth, taper), rtol=1e-9)
    distance = np.abs(np.arange(4)[:, None] - np.arange(4))
    taper = np.exp(-distance.astype(float))
    score = value_of(ensemble, truth, localisation=jnp.asarray(taper))
    chex.assert_trees_all_close(score, direct(ensemble, truth, taper), rtol=1e-9)


def test_masked_members_and_entries_might_as_well_not_be_there():
    ensemble, truth = normal(6, (6, 3, 2)), normal(7, (3, 2))
    where = np.ones((6, 3, 2), bool)
    where[0, 0], where[:, 1, 0], where[1:, 2] = False, False, False
    spoilt = jnp.where(jnp.asarray(where), ensemble, jnp.nan)
    hidden = jnp.where(jnp.asarray(where.any(0)), truth, jnp.nan)
    masked = lambda x, y: dawid_sebastiani_score(x, y, where=jnp.asarray(where))

    def with_slopes(x, y):
        score, pull = jax.vjp(masked, x, y)
        return score, pull(jnp.ones(3))

    score, slopes = jax.jit(with_slopes)(spoilt, hidden)
    expected = [
        direct(ensemble[1:, 0], truth[0]),
        direct(ensemble[:, 1, 1:], truth[1, 1:]),
        0.0,  # one member has no covariance
    ]
    chex.assert_trees_all_close(score, np.array(expected), rtol=1e-10)
    by_member, by_truth = slopes
    chex.assert_tree_all_finite((by_member, by_truth))
    chex.assert_trees_all_equal(by_member[:, 2], jnp.zeros((6, 2)))
    chex.assert_trees_all_equal(by_member[:, 1, 0], jnp.zeros(6))


@pytest.mark.parametrize("size", [1, 2])
def test_the_fair_score_is_unbiased_for_normal_members(size):
    truth = 0.3 + normal(8, (60_000, size))
    # The score of the distribution the members come from.
    limit = (truth**2).sum(-1)
    for members in (size + 4, 10):
        ensemble = normal(9, (members, 60_000, size))
        excess = value_of(ensemble, truth, alpha=1.0) - limit
        assert abs(excess.mean()) < 4 * excess.std() / np.sqrt(excess.size)
        excess = value_of(ensemble, truth) - limit
        assert excess.mean() > 4 * excess.std() / np.sqrt(excess.size)


def test_affine_maps_shift_it_by_their_volume():
    ensemble, truth = normal(10, (6, 4, 2)), normal(11, (4, 2))
    turn = normal(12, (2, 2))
    score = value_of(ensemble, truth)
    moved = value_of(ensemble @ turn + 3, truth @ turn + 3)
    volume = 2 * jnp.log(jnp.abs(jnp.linalg.det(turn)))
    chex.assert_trees_all_close(moved, score + volume, rtol=1e-9, atol=1e-9)


def test_gradient_is_that_of_finite_differences():
    ensemble, truth = normal(13, (5, 3, 2)), normal(14, (3, 2))
    total = jax.jit(lambda x, y: dawid_sebastiani_score(x, y).sum())
    steps = normal(15, ensemble.shape), normal(16, truth.shape)
    ahead, behind = (
        total(ensemble + h * steps[0], truth + h * steps[1]) for h in (1e-6, -1e-6)
    )
    slopes = jax.jit(jax.grad(total, (0, 1)))(ensemble, truth)
    change = sum(map(jnp.vdot, slopes, steps))
    chex.assert_trees_all_close(change, (ahead - behind) / 2e-6, rtol=1e-5)


def test_float32_is_exact_at_a_large_offset():
    ensemble = 5e5 + 0.5 * normal(17, (20, 50, 3), jnp.float32)
    truth = 5e5 + 0.5 * normal(18, (50, 3), jnp.float32)
    score = value_of(ensemble, truth)
    assert score.dtype == jnp.float32
    expected = [direct(ensemble[:, i], truth[i]) for i in range(50)]
    np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-4)


def test_wrong_use_is_reported():
    ensemble, truth = jnp.zeros((4, 2)), jnp.zeros(2)
    with pytest.raises(ValueError, match="`alpha` must lie in"):
        dawid_sebastiani_score(ensemble, truth, alpha=1.5)
    with pytest.raises(ValueError, match="`shrinkage` must lie in"):
        dawid_sebastiani_score(ensemble, truth, shrinkage=-0.1)
    with pytest.raises(ValueError, match="use `alpha=0`"):
        dawid_sebastiani_score(ensemble, truth, alpha=1.0, shrinkage=0.1)
    with pytest.raises(ValueError, match="at least 5 members"):
        dawid_sebastiani_score(ensemble, truth, alpha=1.0)
    with pytest.raises(ValueError, match=r"`localisation` must have shape \(2, 2\)"):
        dawid_sebastiani_score(ensemble, truth, localisation=jnp.ones((3, 3)))
    # Equal members have no density.
    assert jnp.isnan(dawid_sebastiani_score(ensemble, truth))
