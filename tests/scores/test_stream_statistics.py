import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from skyens import scores
from skyens.scores import MemberStream, StreamStatistics, StreamSummary

STARTS, MEMBERS, CHUNK = 3, 24, 8
SHAPE = (2, 5)  # regions, points
STREAM, STATISTICS = MemberStream(), StreamStatistics(MEMBERS + 1)


def normal(seed, shape, dtype=float):
    """Draw by NumPy, which has nothing to compile."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@jax.jit
def streamed(members, truth, where, weights):
    """Starts in a scan, chunks of members in a scan inside."""

    def verify_start(total, start):
        x, y, mask = start
        grow = lambda seen, chunk: (STREAM.update(seen, *chunk), None)
        chunks = (a.reshape(-1, CHUNK, *SHAPE) for a in (x, mask))
        seen, _ = lax.scan(grow, STREAM.init(y), tuple(chunks))
        seen = STREAM.finalize(seen)
        return STATISTICS.update(total, seen, weights), seen.crps_error

    start = STATISTICS.init(SHAPE[:1])
    return lax.scan(verify_start, start, (members, truth, where))


def whole(stat, members, truth, where, weights):
    """The standing statistic, given all members of each start."""
    state = stat.init(SHAPE[:1])
    update = jax.jit(stat.update)
    for x, y, mask in zip(members, truth, where, strict=True):
        state = update(state, x, y, weights, mask)
    return stat.finalize(state)


@pytest.mark.parametrize("masked", [False, True])
def test_two_scans_give_the_numbers_of_the_standing_statistics(masked):
    members = jnp.round(normal(0, (STARTS, MEMBERS, *SHAPE)) * 8) / 8  # ties
    truth = jnp.round(normal(1, (STARTS, *SHAPE)) * 8) / 8
    where = jnp.ones(members.shape, bool)
    if masked:
        where = normal(2, members.shape) > -0.5
        where = where.at[:, 1:, 0, 0].set(False).at[:, :, 1, 1].set(False)
    weights = abs(normal(3, SHAPE[1:]))
    total, errors = streamed(members, truth, where, weights)
    found = STATISTICS.finalize(total)
    expected = lambda stat: whole(stat, members, truth, where, weights)
    spread = expected(scores.SpreadSkill())
    plain = {
        "rmse": expected(scores.RMSE()),
        "bias": expected(scores.Bias()),
        "spread": spread.spread,
        "spread_skill": spread.ratio,
        "ranks": expected(scores.RankHistogram(MEMBERS)),
    }
    for name, value in plain.items():
        chex.assert_trees_all_close(getattr(found, name), value, rtol=1e-12)
    gap = abs(found.crps - expected(scores.CRPS()))
    # A mean of errors is at most their rms, and here 15 of them are independent.
    assert (gap < 5 * jnp.sqrt(jnp.nanmean(errors**2)) / jnp.sqrt(10)).all()
    assert (gap > 0).all()


def test_a_single_chunk_gives_the_crps_too():
    members, truth = normal(4, (CHUNK, *SHAPE)), normal(5, SHAPE)
    seen = STREAM.finalize(STREAM.update(STREAM.init(truth), members))
    found = STATISTICS.finalize(STATISTICS.update(STATISTICS.init(), seen))
    stat = scores.CRPS()
    expected = stat.finalize(stat.update(stat.init(), members, truth))
    chex.assert_trees_all_close(found.crps, expected, rtol=1e-12)


def test_fewer_bins_hold_the_sums_of_ranks_and_failures_are_a_share():
    members, truth = normal(6, (CHUNK, *SHAPE)), normal(7, SHAPE)
    seen = STREAM.finalize(STREAM.update(STREAM.init(truth), members))
    few = StreamStatistics(3)
    found = few.finalize(few.update(few.init(), seen))
    stat = scores.RankHistogram(CHUNK)
    ranks = stat.finalize(stat.update(stat.init(), members, truth))
    chex.assert_trees_all_close(found.ranks, ranks.reshape(3, 3).sum(1), rtol=1e-12)
    lost = members.at[1, 0, 2].set(jnp.nan).at[4].set(jnp.inf)
    seen = STREAM.finalize(STREAM.update(STREAM.init(truth), lost))
    failed = few.finalize(few.update(few.init((2,)), seen)).failed
    chex.assert_trees_all_close(failed, np.array([6, 5]) / (CHUNK * 5), rtol=1e-12)


def test_masked_points_count_nowhere_and_nothing_is_zero():
    truth = normal(8, SHAPE).at[0, 1].set(jnp.nan)
    seen = STREAM.finalize(
        STREAM.update(STREAM.init(truth), normal(9, (CHUNK, *SHAPE)))
    )
    empty = STATISTICS.init(SHAPE[:1])
    found = STATISTICS.finalize(STATISTICS.update(empty, seen))
    assert isinstance(found, StreamSummary)
    for value in found[:-1]:
        assert jnp.isnan(value[0]).any()
        chex.assert_tree_all_finite(value[1])
    state = STATISTICS.update(empty, seen, where=~jnp.isnan(truth))
    chex.assert_tree_all_finite(STATISTICS.finalize(state))
    assert state["weight"].value.tolist() == [4, 5]
    nothing = STATISTICS.finalize(STATISTICS.merge(empty, empty))
    chex.assert_trees_all_equal(nothing, jax.tree.map(jnp.zeros_like, nothing))


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        StreamStatistics(0)
    seen = STREAM.finalize(STREAM.init(jnp.zeros(SHAPE)))
    with pytest.raises(ValueError, match=r"init\(shape=\(3,\)\)"):
        STATISTICS.update(STATISTICS.init((3,)), seen)
    for name, value in [("weights", jnp.ones(2)), ("where", jnp.ones(2, bool))]:
        with pytest.raises(ValueError, match=rf"`{name}` of shape \(2,\)"):
            STATISTICS.update(STATISTICS.init(), seen, **{name: value})
