import chex
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from skyens.scores._event_counts import EventCounts, at_least

MEMBERS = 4
COUNTS = EventCounts(MEMBERS, (0.0, 2.0), above=True)
# Whole numbers from -1 to 3: many ties with each other and with the thresholds.
values = hnp.arrays(float, (MEMBERS + 1, 6), elements=st.integers(-1, 3).map(float))


@jax.jit
def count(draws, where):
    weights = jnp.full(6, 0.5)
    state = COUNTS.init((), None)
    return COUNTS.update(state, draws[1:], draws[0], weights, where, None)


@settings(deadline=None, max_examples=25)
@given(draws=values, seed=st.integers(0, 2**31))
def test_bins_are_counted_and_members_may_be_shuffled_or_masked(draws, seed):
    rng = np.random.default_rng(seed)
    where = rng.random((MEMBERS, 6)) < 0.8
    state = count(draws, where)
    for i, threshold in enumerate((0.0, 2.0)):
        happened = draws[0] > threshold
        valid = where.sum(0)
        share = ((draws[1:] > threshold) & where).sum(0) / np.maximum(valid, 1)
        nearest = np.round(share * MEMBERS).astype(int)
        for bin in range(MEMBERS + 1):
            inside = 0.5 * ((nearest == bin) & (valid > 0))
            offset = share - bin / MEMBERS
            for name, expected in [
                ("forecasts", inside),
                ("events", inside * happened),
                ("offsets", inside * offset),
                ("event_offsets", inside * offset * happened),
            ]:
                found = state[name].value[i, bin]
                np.testing.assert_allclose(found, expected.sum(), atol=1e-15)
    order = rng.permutation(MEMBERS)
    shuffled = np.concatenate([draws[:1], draws[1:][order]])
    again = count(shuffled, where[order])
    chex.assert_trees_all_close(again, state, rtol=1e-15, atol=0)


def test_equal_to_the_threshold_is_no_event_on_either_side():
    for above in (True, False):
        counts = EventCounts(2, (1.0,), above=above)
        state = counts.init((), None)
        ones = jnp.ones((2, 3))
        state = counts.update(state, ones, ones[0], None, None, None)
        expected = np.array([[3.0, 0.0, 0.0]])
        np.testing.assert_array_equal(state["forecasts"].value, expected)
        assert not state["events"].value.any()


def test_thresholds_of_each_point_are_those_of_anomalies():
    rng = np.random.default_rng(0)
    draws, normal = rng.normal(size=(MEMBERS + 1, 3, 6)), rng.normal(size=(3, 6))
    given = EventCounts(MEMBERS, 2, above=True)
    thresholds = normal + np.array([0.0, 2.0])[:, None, None]
    more = None, None, jnp.asarray(thresholds)
    ensemble = jnp.asarray(draws[1:] + normal), jnp.asarray(draws[0] + normal)
    state = given.update(given.init((3,), None), *ensemble, *more)
    fixed = COUNTS.init((3,), None)
    args = jnp.asarray(draws[1:]), jnp.asarray(draws[0]), None, None, None
    chex.assert_trees_all_equal(state, COUNTS.update(fixed, *args))


def test_sums_from_each_bin_on():
    found = at_least(jnp.array([1.0, 2.0, 4.0]))
    np.testing.assert_array_equal(found, [7, 6, 4, 0])
