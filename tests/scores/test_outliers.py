import jax
import jax.numpy as jnp
import numpy as np

from skyens.scores import Outliers, RankHistogram


@jax.jit
def shares(ensemble, truth, weights=None, where=None):
    stat = Outliers()
    return stat.finalize(stat.update(stat.init(), ensemble, truth, weights, where))


def test_shares_are_the_end_ranks():
    rng = np.random.default_rng(0)
    draws = rng.integers(0, 6, (5, 300)).astype(float)  # many ties
    weights = jnp.asarray(rng.random(300))
    found = shares(draws[1:], draws[0], weights)
    stat = RankHistogram(4)
    ensemble, truth = jnp.asarray(draws[1:]), jnp.asarray(draws[0])
    ranks = stat.finalize(stat.update(stat.init(), ensemble, truth, weights))
    np.testing.assert_allclose(found.below, ranks[0], rtol=1e-12)
    np.testing.assert_allclose(found.above, ranks[-1], rtol=1e-12)
    np.testing.assert_allclose(found.outside, ranks[0] + ranks[-1], rtol=1e-12)
    np.testing.assert_allclose(found.expected, 2 / 5, rtol=1e-12)
    np.testing.assert_allclose(found.ratio, found.outside * 5 / 2, rtol=1e-12)


def test_known_cases():
    ensemble = jnp.array([0.0, 0.0, 1.0])[:, None]
    for truth, below, above in [
        (-1.0, 1, 0),
        (0.0, 1 / 3, 0),
        (0.5, 0, 0),
        (1.0, 0, 1 / 2),
        (2.0, 0, 1),
    ]:
        found = shares(ensemble, jnp.array([truth]))
        np.testing.assert_allclose([found.below, found.above], [below, above])


def test_a_reliable_ensemble_has_a_ratio_of_one_with_ties_and_masks():
    rng = np.random.default_rng(1)
    points = 60_000
    draws = np.maximum(rng.normal(size=(6, points)), 0)  # half of all dry
    where = rng.random((5, points)) < 0.6
    found = shares(draws[1:], draws[0], where=where)
    # At most 0.5 / sqrt(points) is a standard error of a share; four of them.
    error = 2 / np.sqrt(points * 0.95)
    np.testing.assert_allclose(found.outside, found.expected, atol=error)
    valid = where.sum(0)
    expected = (2 / (valid[valid > 0] + 1)).mean()
    np.testing.assert_allclose(found.expected, expected, rtol=1e-12)
