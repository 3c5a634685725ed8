import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax import lax

from skyens import scores
from skyens.scores import MemberStream

STREAM = MemberStream()
POINTS = 40
LEVELS = jnp.array([-0.5, 0.0, 1.0])
update = jax.jit(STREAM.update)
merge = jax.jit(STREAM.merge)
finalize = jax.jit(STREAM.finalize)


def normal(seed, shape, dtype=float):
    """Draw by NumPy, which has nothing to compile."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def stream(truth, members, chunk, where=None, state=None):
    state = STREAM.init(truth, thresholds=LEVELS) if state is None else state
    for i in range(0, len(members), chunk):
        mask = None if where is None else where[i : i + chunk]
        state = update(state, members[i : i + chunk], mask)
    return state


def close(a, b, rtol=1e-12, atol=1e-13):
    chex.assert_trees_all_close(a, b, rtol=rtol, atol=atol)


def expected(truth, members):
    """Whole-ensemble values, by NumPy, of all fields but those of the CRPS."""
    x, y = np.asarray(members, float), np.asarray(truth, float)
    return {
        "count": np.full(y.shape, len(x)),
        "error": (x - y).mean(0),  # no digits lost to the offset
        "variance": (x - y).var(0, ddof=1),
        "minimum": x.min(0),
        "maximum": x.max(0),
        "closest": abs(x - y).min(0),
        "below": (x < y).sum(0),
        "tied": (x == y).sum(0),
        "exceedances": np.stack([(x > level).sum(0) for level in LEVELS]),
    }


class MemberStreamTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_one_chunk_of_all_members_is_exact(self):
        members, truth = normal(0, (8, POINTS)), normal(1, (POINTS,))
        run = self.variant(
            lambda y, x: STREAM.update(STREAM.init(y, thresholds=LEVELS), x)
        )
        found = STREAM.finalize(run(truth, members))._asdict()
        for name, value in expected(truth, members).items():
            np.testing.assert_allclose(found[name], value, 1e-12, 1e-14)
        close(found["crps"], scores.crps(members, truth))
        assert not found["crps_error"].any()
        assert not found["failed"].any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_any_chunks_give_the_whole_ensembles_moments_counts_and_extremes(dtype):
    # Multiples of 1/8 tie often; at 5e5 + 300 float32 holds them exactly.
    grain = lambda x: jnp.round(8 * x) / 8
    members = (grain(normal(2, (64, POINTS))) + 5e5).astype(dtype)
    truth = (grain(normal(3, (POINTS,))) + 5e5 - 300).astype(dtype)
    truth = truth.at[:20].add(300)
    found = STREAM.finalize(stream(truth, members, 8))
    assert found.crps.dtype == found.variance.dtype == dtype
    for name, value in expected(truth, members).items():
        # Rounded at the end; the squares, being sums of many, a little more.
        eps = float(jnp.finfo(dtype).eps) * (4 if name == "variance" else 1)
        np.testing.assert_allclose(getattr(found, name), value, eps, eps)
    exact = scores.crps(members.astype(float), truth.astype(float))
    gap = abs(found.crps.astype(float) - exact)
    assert (gap < 6 * found.crps_error.astype(float)).all()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3), bias=st.floats(-50, 50))
def test_states_merge_in_any_order_and_grouping(seed, scale, bias):
    truth = normal(seed, (POINTS,))
    parts = [scale * normal(seed + i, (8, POINTS)) + bias for i in (1, 2, 3)]
    empty = STREAM.init(truth, thresholds=LEVELS)
    a, b, c = (update(empty, part) for part in parts)
    one = finalize(merge(merge(a, b), c))
    tight = {"rtol": 1e-11, "atol": 1e-11 * (scale + abs(bias))}
    close(finalize(merge(c, merge(b, a))), one, **tight)
    close(finalize(update(update(a, parts[1]), parts[2])), one, **tight)
    chex.assert_trees_all_equal(merge(a, empty), a)
    chex.assert_trees_all_equal(merge(empty, a), a)


@pytest.mark.parametrize("sizes", [[16] * 4, [4] * 16, [16, 4, 4, 16, 4, 4, 16]])
def test_the_crps_is_unbiased_and_its_stated_error_is_the_actual_one(sizes):
    """Against the score by all pairs; points are independent trials."""
    trials = 3_000
    members = normal(7, (sum(sizes), trials), jnp.float32)
    truth = jnp.full((trials,), 0.5, jnp.float32)
    state = STREAM.init(truth)
    for chunk in np.split(np.asarray(members), np.cumsum(sizes)[:-1]):
        state = update(state, chunk)
    found = STREAM.finalize(state)
    gap = np.asarray(found.crps - scores.crps(members, truth), float)
    rms = np.sqrt(np.mean(gap**2))
    assert abs(gap.mean()) < 4 * rms / np.sqrt(trials)
    # An rms of n trials is known to 1 / sqrt(2 n), somewhat worse as tails are heavier.
    stated = np.sqrt(np.mean(np.asarray(found.crps_error, float) ** 2))
    np.testing.assert_allclose(stated, rms, rtol=6 / np.sqrt(2 * trials))
    # Normal pairs: variance 2 - 4 / pi, less twice that of E|x - X'| given x.
    zeta = 2 - 4 / np.pi - 2 * (1 / 3 + (2 * np.sqrt(3) - 4) / np.pi)
    load, size = sum(m / (m - 1) for m in sizes), sum(sizes)
    theory = np.sqrt(zeta / 2 * (load / size**2 - 1 / (size * (size - 1))))
    np.testing.assert_allclose(rms, theory, rtol=6 / np.sqrt(2 * trials))


def test_failed_members_are_counted_and_spoil_nothing():
    members, truth = normal(10, (16, POINTS)), normal(11, (POINTS,))
    failed = normal(12, (16, POINTS)) > 1.2
    bad = jnp.where(jnp.arange(16)[:, None] % 2 == 0, jnp.nan, jnp.inf)
    found = STREAM.finalize(stream(truth, jnp.where(failed, bad, members), 8))
    masked = STREAM.finalize(stream(truth, members, 8, where=~failed))
    chex.assert_trees_all_equal(found._replace(failed=masked.failed), masked)
    assert not masked.failed.any()
    np.testing.assert_array_equal(found.failed, failed.sum(0))


def test_masks_leave_out_as_if_members_had_never_been():
    members, truth = normal(13, (8, POINTS)), normal(14, (POINTS,))
    where = jnp.ones((8, POINTS), bool).at[jnp.array([0, 2, 3, 7])].set(False)
    found = finalize(stream(truth, members, 8, where))
    plain = finalize(stream(truth, members[where[:, 0]], 4))
    names = set(found._fields) - {"crps_error"}  # parts of other members
    for name in names:
        close(getattr(found, name), getattr(plain, name))


def test_few_members_are_zero_and_unknown_errors_are_nan():
    truth = normal(15, (POINTS,)).at[0].set(jnp.nan)
    empty = STREAM.init(truth, thresholds=LEVELS)
    nothing = finalize(empty)
    chex.assert_trees_all_equal(nothing, jax.tree.map(jnp.zeros_like, nothing))
    members = normal(16, (4, POINTS))
    alone = finalize(stream(truth, members[:1], 1))
    assert (alone.count == 1).all()
    assert not any(x[1:].any() for x in (alone.variance, alone.crps, alone.paired))
    close(alone.closest, abs(members[0] - truth))
    pairs = finalize(stream(truth, members, 2))
    assert (pairs.paired == 4).all()
    assert jnp.isnan(pairs.crps_error).all()
    assert jnp.isfinite(pairs.crps[1:]).all()


def test_a_truth_that_is_nan_or_not_the_same_spoils_its_point():
    members, truth = normal(17, (8, POINTS)), normal(18, (POINTS,))
    lost = truth.at[3].set(jnp.nan)
    a, b = (stream(x, members, 8) for x in (truth, lost))
    for state in (b, merge(a, b)):
        found = finalize(state)
        floats = [x for x in found if x.ndim == 1 and x.dtype == float]
        assert len(floats) == 7
        for x in floats:
            np.testing.assert_array_equal(np.flatnonzero(jnp.isnan(x)), [3])
    other = stream(truth, members, 8, state=STREAM.init(truth, thresholds=LEVELS + 1))
    assert jnp.isnan(finalize(merge(a, other)).error).all()
    hidden = finalize(stream(lost, members, 8, jnp.zeros((8, POINTS), bool)))
    chex.assert_trees_all_equal(hidden, jax.tree.map(jnp.zeros_like, hidden))


def test_thresholds_may_differ_from_point_to_point():
    members, truth = normal(19, (6, 3, 4)), normal(20, (3, 4))
    levels = normal(21, (2, 4))
    found = STREAM.update(STREAM.init(truth, thresholds=levels), members)
    above = np.asarray(members)[None] > np.asarray(levels)[:, None, None]
    np.testing.assert_array_equal(found.exceedances, above.sum(1))


def test_it_runs_in_scan_and_vmap_and_on_devices():
    truth, members = normal(22, (3, POINTS)), normal(23, (3, 4, 8, POINTS))
    grow = lambda state, chunk: (STREAM.update(state, chunk), None)
    run = lambda y, x: lax.scan(grow, STREAM.init(y), x)[0]
    states = jax.jit(jax.vmap(run))(truth, members)
    for i in range(3):
        start = STREAM.init(truth[i])
        one = stream(truth[i], members[i].reshape(32, POINTS), 8, state=start)
        close(jax.tree.map(lambda x, i=i: x[i], states), one)
    shared = jax.vmap(lambda x: run(truth[0], x))(members)
    gather = lambda state: scores.all_merge(STREAM, state, "device")  # pyright: ignore
    merged = jax.jit(jax.vmap(gather, axis_name="device"))(shared)
    start = STREAM.init(truth[0])
    whole = stream(truth[0], members.reshape(96, POINTS), 8, state=start)
    one = jax.tree.map(lambda x: x[1], merged)
    close(finalize(one), finalize(whole))


def test_gradients_are_those_of_the_whole_and_finite_at_ties():
    members, truth = normal(24, (8, POINTS)), normal(25, (POINTS,))

    def total(members, truth, name):
        state = STREAM.update(STREAM.init(truth), members)
        return getattr(STREAM.finalize(state), name).sum()

    slope = jax.jit(jax.grad(total, (0, 1)), static_argnums=2)
    slopes = slope(members, truth, "crps")
    exact = jax.grad(lambda x, y: scores.crps(x, y).sum(), (0, 1))(members, truth)
    close(slopes, exact)
    equal = jnp.ones((8, POINTS)), jnp.ones(POINTS)
    for name in ("crps", "crps_error", "variance", "closest"):
        chex.assert_tree_all_finite(slope(*equal, name))


def test_half_precision_is_accumulated_in_float32():
    members, truth = normal(26, (8, 5)), normal(27, (5,))
    members, truth = (x.astype(jnp.bfloat16) for x in (members, truth))
    found = update(STREAM.init(truth), members)
    wide = [x.astype(jnp.float32) for x in (members, truth)]
    same = update(STREAM.init(wide[1]), wide[0])
    chex.assert_trees_all_equal(found, same)


def test_wrong_use_is_reported():
    truth = jnp.zeros((2, 3))
    state = STREAM.init(truth)
    with pytest.raises(ValueError, match=r"one member or more .* got \(0, 2, 3\)"):
        STREAM.update(state, jnp.zeros((0, 2, 3)))
    with pytest.raises(ValueError, match=r"\(2, 3\); got \(4, 3\)"):
        STREAM.update(state, jnp.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"`where` of shape \(2,\)"):
        STREAM.update(state, jnp.zeros((4, 2, 3)), jnp.ones(2, bool))
    for thresholds in (jnp.zeros((1, 2)), jnp.zeros((1, 5, 2, 3))):
        with pytest.raises(ValueError, match="`thresholds` of shape"):
            STREAM.init(truth, thresholds=thresholds)
    with pytest.raises(ValueError, match="float32 or float64"):
        STREAM.init(truth, jnp.bfloat16)
    with pytest.raises(ValueError, match="do not merge"):
        STREAM.merge(state, STREAM.init(truth, thresholds=jnp.zeros(1)))
    assert eqx.tree_equal(STREAM.init(truth), state)
