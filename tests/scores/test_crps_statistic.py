import chex
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scoringrules

from skyens.scores import CRPS

ENSEMBLE, TRUTH = jr.normal(jr.key(0), (5, 2, 3, 4)), jr.normal(jr.key(1), (2, 3, 4))
WEIGHTS = jnp.array([0.2, 1.0, 0.5])[:, None]


class CRPSTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_it_is_the_weighted_mean_of_the_score(self):
        stat = CRPS()
        run = self.variant(lambda x, y, w: stat.update(stat.init((2,)), x, y, w))
        found = stat.finalize(run(ENSEMBLE, TRUTH, WEIGHTS))
        points = scoringrules.crps_ensemble(
            np.asarray(TRUTH), np.asarray(ENSEMBLE), m_axis=0, estimator="fair"
        )
        weights = np.broadcast_to(WEIGHTS, (3, 4)).ravel()
        expected = np.average(np.reshape(points, (2, 12)), axis=1, weights=weights)
        chex.assert_trees_all_close(found, expected, rtol=1e-12)


def test_points_with_too_few_members_have_no_weight():
    where = jnp.ones((5, 2, 3, 4), bool).at[1:, 0].set(False)  # one left
    for alpha, points in [(0.0, 12), (0.95, 0)]:
        stat = CRPS(alpha)
        state = stat.update(stat.init((2,)), ENSEMBLE, TRUTH, where=where)
        chex.assert_trees_all_equal(state["weight"].value, jnp.array([points, 12.0]))
        expected = jnp.abs(ENSEMBLE[0, 0] - TRUTH[0]).mean() if points else 0
        chex.assert_trees_all_close(stat.finalize(state)[0], expected, rtol=1e-12)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match=r"`alpha` must lie in \[0, 1\], got -1"):
        CRPS(-1.0)
    stat = CRPS()
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        stat.update(stat.init((2,)), ENSEMBLE[:1], TRUTH)
