import chex
import jax
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


def observed_with_error(stat, members, truth, error):
    """Score single points; `members` leads with members."""
    points = [jnp.asarray(x)[..., None] for x in (members, truth, error)]
    state = stat.init(truth.shape)
    return stat.finalize(stat.update(state, *points[:2], truth_error=points[2]))


def test_with_an_error_of_the_truth_it_expects_the_fair_score_of_dressed_members():
    rng = np.random.default_rng(2)
    members, truth = rng.normal(size=(4, 3)), rng.normal(size=3)
    error, draws = np.array([0.3, 1.0, 0.0]), 40_000
    found = observed_with_error(CRPS(), members, truth, error)
    dressed = members[..., None] + error[:, None] * rng.normal(size=(4, 3, draws))
    observed = np.broadcast_to(truth[:, None], (3, draws))
    trials = np.asarray(
        scoringrules.crps_ensemble(observed, dressed, m_axis=0, estimator="fair")
    )
    noise = 5 * trials.std(1) / np.sqrt(draws) + 1e-12
    assert (abs(found - trials.mean(1)) < noise).all()


def test_with_an_error_of_the_truth_the_standard_score_is_that_of_a_mixture():
    rng = np.random.default_rng(4)
    members, truth = rng.normal(size=(4, 3)), rng.normal(size=3)
    error = np.array([0.3, 1.0, 2.0])
    found = observed_with_error(CRPS(0.0), members, truth, error)
    stds = np.broadcast_to(error, (4, 3))
    expected = scoringrules.crps_mixnorm(truth, members, stds, m_axis=0)
    chex.assert_trees_all_close(found, np.asarray(expected), rtol=1e-6)


def test_the_ensemble_that_forecasts_the_truth_is_best_if_its_error_is_known():
    rng = np.random.default_rng(3)
    points, error = 10_000, 1.0
    centre = rng.normal(size=points)
    observed = centre + rng.normal(size=points) + error * rng.normal(size=points)
    noise = rng.normal(size=(6, points))
    stat = CRPS()

    @jax.jit
    def score(spread, **more):
        members, truth = (
            jnp.asarray(centre)[None] + spread * noise,
            jnp.asarray(observed),
        )
        return stat.finalize(stat.update(stat.init(), members, truth, **more))

    known = {"truth_error": jnp.asarray([error])}
    right, wide = score(1.0, **known), score(2**0.5, **known)
    assert right < min(wide, score(0.6, **known))
    # Ignored, the errors make the ensemble win that has their spread added.
    assert score(2**0.5) < score(1.0)


def test_masked_members_and_points_have_no_error():
    error = jnp.full((3, 4), 0.5).at[0, 0].set(jnp.nan)
    where = jnp.ones((5, 2, 3, 4), bool).at[:, :, 0, 0].set(False).at[1].set(False)
    stat = CRPS()
    update = jax.jit(stat.update)
    run = lambda x, where: stat.finalize(
        update(stat.init((2,)), x, TRUTH, where=where, truth_error=error[None])
    )
    found = run(ENSEMBLE.at[1].set(jnp.nan), where)
    chex.assert_tree_all_finite(found)
    here = jnp.ones((4, 2, 3, 4), bool).at[:, :, 0, 0].set(False)
    plain = run(ENSEMBLE[jnp.array([0, 2, 3, 4])], here)
    chex.assert_trees_all_close(found, plain, rtol=1e-12)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match=r"`alpha` must lie in \[0, 1\], got -1"):
        CRPS(-1.0)
    stat = CRPS()
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        stat.update(stat.init((2,)), ENSEMBLE[:1], TRUTH)
