import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens.scores import CRPS, MeanScore, crps, energy_score


def euclidean(ensemble, truth, where=None):
    """Return the error of the mean vector along the last axis."""
    del where
    return jnp.sqrt(jnp.sum((ensemble.mean(0) - truth) ** 2, axis=-1))


def draw(shape=(4, 2, 3, 5)):
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(shape[0] + 1, *shape[1:]))
    return jnp.asarray(draws[1:]), jnp.asarray(draws[0])


class MeanScoreTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_of_the_crps_it_is_the_statistic_crps(self):
        ensemble, truth = draw()
        weights = jnp.array([0.2, 1.0, 0.5])[:, None]
        where = jnp.asarray(np.random.default_rng(1).random(ensemble.shape) < 0.6)
        own = MeanScore(functools.partial(crps, alpha=0.95), least=2)
        for stat in own, MeanScore(crps, 2):
            alpha = 0.95 if stat is own else 1.0
            run = self.variant(
                lambda x, y, w, m, stat=stat: stat.update(stat.init((2,)), x, y, w, m)
            )
            found = stat.finalize(run(ensemble, truth, weights, where))
            peer = CRPS(alpha)
            expected = peer.update(peer.init((2,)), ensemble, truth, weights, where)
            chex.assert_trees_all_close(found, peer.finalize(expected), rtol=1e-13)


def test_a_score_of_vectors_has_one_weight_for_each():
    ensemble, truth = draw()
    weights = jnp.array([0.2, 1.0, 0.5])[:, None]  # nothing along the vectors
    stat = MeanScore(euclidean, event_axes=1)
    state = stat.update(stat.init((2,)), ensemble, truth, weights)
    errors = np.linalg.norm(np.asarray(ensemble).mean(0) - np.asarray(truth), axis=-1)
    expected = np.average(errors, axis=1, weights=weights[:, 0])
    np.testing.assert_allclose(stat.finalize(state), expected, rtol=1e-13)
    np.testing.assert_allclose(state["weight"].value, [1.7, 1.7], rtol=1e-14)


def test_vectors_count_with_the_members_that_have_all_of_them():
    ensemble, truth = draw((3, 6, 4))
    where = np.ones((3, 6, 4), bool)
    where[0, 1, 2] = where[:2, 2, 0] = where[:, 3, 1] = where[:, 4] = False
    stat = MeanScore(energy_score, least=2, event_axes=1)
    found = stat.update(stat.init((6,)), ensemble, truth, where=jnp.asarray(where))
    # All members, two of them, one, all but without a dimension, none, all.
    np.testing.assert_array_equal(found["weight"].value, [1, 1, 0, 1, 0, 1])
    score = energy_score(ensemble[1:, 1], truth[1])
    np.testing.assert_allclose(found["score"].value[1], score, rtol=1e-13)
    here = jnp.array([0, 2, 3])
    score = energy_score(ensemble[:, 3, here], truth[3, here])
    np.testing.assert_allclose(found["score"].value[3], score, rtol=1e-13)


def test_a_vector_that_is_masked_throughout_does_not_count():
    ensemble, truth = draw()
    stat = MeanScore(euclidean, event_axes=1)
    where = jnp.array([True, False, True])[:, None]
    spoilt = truth.at[:, 1].set(jnp.nan)
    state = stat.update(stat.init(), ensemble, spoilt, where=where)
    here = jnp.array([0, 2])
    plain = stat.update(stat.init(), ensemble[:, :, here], truth[:, here])
    chex.assert_trees_all_close(state, plain, rtol=1e-14)


def test_gradients_pass_through_and_not_into_what_is_masked():
    ensemble, truth = draw((4, 6))
    stat = MeanScore(
        lambda x, y, where: jnp.where(where.any(0), (x.mean(0) - y) ** 2, 0)
    )
    where = jnp.arange(6) < 4
    spoilt = jnp.where(where[None], ensemble, jnp.nan)
    total = lambda x: stat.finalize(stat.update(stat.init(), x, truth, where=where))
    slope = jax.grad(total)(spoilt)
    error = 2 * (ensemble.mean(0) - truth) / 4 / 4
    expected = jnp.where(where, error, 0)
    chex.assert_trees_all_close(slope, jnp.tile(expected, (4, 1)), rtol=1e-13)


def test_wrong_use_is_reported():
    ensemble, truth = draw()
    with pytest.raises(ValueError, match="`least` must be at least 1, got 0"):
        MeanScore(crps, least=0)
    stat = MeanScore(crps, least=2)
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        stat.update(stat.init(), ensemble[:1], truth)
    stat = MeanScore(euclidean, event_axes=1)
    with pytest.raises(ValueError, match="vary along the last 1 axes"):
        stat.update(stat.init(), ensemble, truth, weights=jnp.ones(5))
    with pytest.raises(ValueError, match=r"gave shape \(2, 3\).*which 3 axes are kept"):
        stat.update(stat.init((2, 3, 5)), ensemble, truth)
    with pytest.raises(ValueError, match="with `event_axes=0` it must give"):
        MeanScore(euclidean).update(stat.init(), ensemble, truth)
    with pytest.raises(ValueError, match="`event_axes` must not be negative"):
        MeanScore(crps, event_axes=-1)
    stat = MeanScore(lambda ensemble, truth: (ensemble.mean(0) - truth).mean(0))
    with pytest.raises(ValueError, match=r"gave shape \(3, 5\).*has shape \(2, 3, 5\)"):
        stat.update(stat.init(), ensemble, truth)
