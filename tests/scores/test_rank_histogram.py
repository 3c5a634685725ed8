import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from skyens.scores import RankHistogram


def normal(seed, shape, dtype=float):
    """Draw by NumPy, which has nothing to compile."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def histogram(ensemble, truth, **more):
    stat = RankHistogram(ensemble.shape[0])
    return stat.finalize(stat.update(stat.init(), ensemble, truth, **more))


class RankHistogramTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_without_ties_it_counts_the_members_below(self):
        ensemble, truth = normal(0, (6, 50)), normal(1, (50,))
        ranks = (np.asarray(ensemble) < np.asarray(truth)).sum(0)
        expected = np.bincount(ranks, minlength=7) / 50
        found = self.variant(histogram)(ensemble, truth)
        chex.assert_trees_all_close(found, expected, rtol=1e-14)


def test_a_tie_is_shared_in_equal_parts():
    ensemble = jnp.array([0.0, 0.0, 1.0, 2.0])[:, None]
    for truth, expected in [
        (0.0, [1 / 3, 1 / 3, 1 / 3, 0, 0]),
        (0.5, [0, 0, 1, 0, 0]),
        (1.0, [0, 0, 1 / 2, 1 / 2, 0]),
        (9.0, [0, 0, 0, 0, 1]),
    ]:
        found = histogram(ensemble, jnp.array([truth]))
        chex.assert_trees_all_close(found, np.array(expected), rtol=1e-14)


def test_fewer_members_share_their_part_of_the_unit_interval():
    ensemble = jnp.array([0.0, 1.0, 2.0])[:, None]
    where = jnp.array([True, False, False])[:, None]
    low = histogram(ensemble, jnp.array([-1.0]), where=where)
    chex.assert_trees_all_close(low, np.array([0.5, 0.5, 0, 0]), rtol=1e-14)
    where = jnp.array([True, False, True])[:, None]
    middle = histogram(ensemble, jnp.array([1.5]), where=where)
    # The second third of the interval, in quarters.
    expected = np.array([0, 1 / 2, 1 / 2, 0])
    chex.assert_trees_all_close(middle, expected, rtol=1e-14)


@pytest.mark.parametrize("masked", [False, True])
def test_it_is_flat_for_a_reliable_ensemble_with_many_ties(masked):
    draws = jnp.maximum(normal(2, (6, 60_000)), 0)  # half of all dry
    where = normal(3, (5, 60_000)) > -0.25 if masked else None
    found = histogram(draws[:5], draws[5], where=where)
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-12)
    # A count of 10,000 is known to 1 percent; four of its standard errors.
    np.testing.assert_allclose(found, 1 / 6, atol=4 * np.sqrt(5 / 36 / 50_000))


def poisson_binomial(chances):
    """The distribution of the number of successes, all outcomes listed."""
    ranks = np.zeros(len(chances) + 1)
    for outcome in itertools.product([0, 1], repeat=len(chances)):
        ranks[sum(outcome)] += np.prod(np.where(outcome, chances, 1 - chances))
    return ranks


@pytest.mark.parametrize("masked", [False, True])
def test_with_an_error_of_the_truth_members_lie_below_by_chance(masked):
    ensemble, truth, error = normal(4, (4, 5)), normal(5, (5,)), abs(normal(6, (5,)))
    where = jnp.ones((4, 5), bool)
    if masked:
        where = where.at[:, 1].set(False).at[2, 2].set(False).at[:3, 3].set(False)
    x, y, sigma = (np.asarray(a) for a in (ensemble, truth, error))
    expected = []
    for point in range(5):
        members = x[np.asarray(where)[:, point], point]
        if members.size == 0:
            continue
        chances = scipy.stats.norm.cdf((y[point] - members) / sigma[point])
        ranks = poisson_binomial(chances)
        # Parts of the unit interval that `rank` and `bin` share.
        edges, bins = np.linspace(0, 1, members.size + 2), np.linspace(0, 1, 6)
        overlap = np.minimum(edges[1:, None], bins[1:]) - np.maximum(
            edges[:-1, None], bins[:-1]
        )
        expected.append(ranks @ np.maximum(overlap, 0) * (members.size + 1))
    more = {"where": where} if masked else {}
    lost = jnp.where(where, ensemble, jnp.nan)
    found = histogram(lost, truth, truth_error=error, **more)
    chex.assert_trees_all_close(found, np.mean(expected, 0), rtol=1e-12, atol=1e-14)


def test_a_vanishing_error_leaves_the_rank_and_none_the_ties():
    ensemble, truth = normal(7, (6, 30)), normal(8, (30,))
    plain = histogram(ensemble, truth)
    small = histogram(ensemble, truth, truth_error=jnp.full((30,), 1e-12))
    chex.assert_trees_all_close(small, plain, atol=1e-14)
    tied = jnp.round(ensemble), jnp.round(truth)
    where = normal(9, (6, 30)) > -0.5
    for more in ({}, {"where": where}):
        found = histogram(*tied, truth_error=jnp.zeros(1), **more)
        chex.assert_trees_all_close(found, histogram(*tied, **more), rtol=1e-12)
    assert jnp.isnan(histogram(*tied, truth_error=-jnp.ones(1))).all()


def test_it_is_flat_if_the_error_of_the_truth_is_known():
    points = 30_000
    draws = normal(10, (6, points))
    observed = draws[5] + normal(11, (points,))
    known = histogram(draws[:5], observed, truth_error=jnp.ones(1))
    # Expected ranks scatter less than ranks do; four of the latter's errors.
    error = 4 * np.sqrt(5 / 36 / points)
    np.testing.assert_allclose(known, 1 / 6, atol=error)
    ignored = histogram(draws[:5], observed)
    assert min(ignored[0], ignored[-1]) > 1 / 6 + 5 * error


def test_expected_ranks_have_gradients():
    ensemble, truth = normal(12, (4, 5)), normal(13, (5,))
    first = jax.jit(lambda x, sigma: histogram(x, truth, truth_error=sigma)[0])
    slope = jax.jit(jax.grad(first, (0, 1)))
    slopes = slope(ensemble, jnp.ones(5))
    step = 1e-6
    rise = first(ensemble, jnp.ones(5) + step) - first(ensemble, jnp.ones(5) - step)
    np.testing.assert_allclose(slopes[1].sum(), rise / (2 * step), rtol=1e-6)
    equal = slope(truth[None] * jnp.ones((4, 1)), jnp.zeros(5))
    chex.assert_tree_all_finite((slopes, equal))


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        RankHistogram(0)
    stat = RankHistogram(4)
    with pytest.raises(ValueError, match=r"has 3 members, but .* is for 4"):
        stat.update(stat.init(), jnp.zeros((3, 2)), jnp.zeros(2))
