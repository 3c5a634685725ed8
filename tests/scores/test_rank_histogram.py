import chex
import jax.numpy as jnp
import numpy as np
import pytest

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


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        RankHistogram(0)
    stat = RankHistogram(4)
    with pytest.raises(ValueError, match=r"has 3 members, but .* is for 4"):
        stat.update(stat.init(), jnp.zeros((3, 2)), jnp.zeros(2))
