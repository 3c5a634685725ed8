import chex
import jax.numpy as jnp
import numpy as np
import pytest

from skyens.scores import SpreadSkill


def normal(seed, shape, dtype=float):
    """Draw by NumPy, which has nothing to compile."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


class SpreadSkillTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_it_is_fortins_ratio(self):
        ensemble, truth = normal(0, (5, 2, 9)), normal(1, (2, 9))
        stat = SpreadSkill()
        run = self.variant(lambda x, y: stat.update(stat.init((2,)), x, y))
        found = stat.finalize(run(ensemble, truth))
        x, y = np.asarray(ensemble), np.asarray(truth)
        spread = np.sqrt(x.var(0, ddof=1).mean(-1))
        skill = np.sqrt(((x.mean(0) - y) ** 2).mean(-1))
        ratio = np.sqrt(6 / 5) * spread / skill
        chex.assert_trees_all_close(tuple(found), (spread, skill, ratio), rtol=1e-12)


@pytest.mark.parametrize("members", [2, 4, 20])
def test_a_reliable_ensemble_of_any_size_has_ratio_one(members):
    points = 40_000
    centre, x = normal(2, (points,)), normal(3, (members, points))
    truth = centre + normal(4, (points,))
    stat = SpreadSkill()
    where = normal(5, (members, points)) > -0.5
    for mask in (None, where):
        state = stat.update(stat.init(), centre[None] + x, truth, where=mask)
        # Two members: variance and squared error each know the ratio to 1 / sqrt(n).
        np.testing.assert_allclose(stat.finalize(state).ratio, 1, atol=0.025)


def test_points_with_one_member_left_have_no_weight():
    ensemble, truth = normal(6, (3, 4)), normal(7, (4,))
    where = jnp.ones((3, 4), bool).at[:2, 1].set(False).at[0, 2].set(False)
    stat = SpreadSkill()
    found = stat.update(stat.init(), ensemble, truth, where=where)
    assert found["weight"].value == 3
    state = stat.init()
    for point, members in [(0, 3), (2, 2), (3, 3)]:
        state = stat.update(state, ensemble[3 - members :, point], truth[point])
    chex.assert_trees_all_close(stat.finalize(found), stat.finalize(state), rtol=1e-12)


def test_an_error_of_the_truth_counts_as_spread():
    points, members = 40_000, 5
    centre, x = normal(8, (points,)), normal(9, (members, points))
    error = jnp.where(jnp.arange(points) % 2 == 0, 0.5, 2.0)
    observed = centre + normal(10, (points,)) + error * normal(11, (points,))
    stat = SpreadSkill()
    run = lambda **more: stat.finalize(
        stat.update(stat.init(), centre[None] + x, observed, **more)
    )
    found, ignored = run(truth_error=error), run()
    np.testing.assert_allclose(found.ratio, 1, atol=0.025)
    # Expected squares: 6 / 5 without the errors' (0.25 + 4) / 2.
    np.testing.assert_allclose(ignored.ratio, (1.2 / 3.325) ** 0.5, atol=0.025)
    assert (found.spread, found.skill) == (ignored.spread, ignored.skill)
    chex.assert_trees_all_equal(run(truth_error=jnp.zeros(1)), ignored)
    assert jnp.isnan(run(truth_error=-error).ratio)


def test_wrong_errors_are_reported():
    stat = SpreadSkill()
    with pytest.raises(ValueError, match=r"`truth_error` of shape \(3,\)"):
        stat.update(
            stat.init(), jnp.zeros((2, 4)), jnp.zeros(4), truth_error=jnp.ones(3)
        )
