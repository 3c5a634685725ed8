from datetime import datetime
from itertools import pairwise

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens.dynamics import Purpose, member_keys, run_key

KEY = jr.key(0)


def bits(keys):
    """The keys as rows of integers."""
    data = np.asarray(jr.key_data(keys))
    return data.reshape(-1, data.shape[-1])


@settings(deadline=None, max_examples=25)
@given(
    start=st.datetimes(datetime(1800, 1, 1), datetime(2200, 1, 1)),
    purpose=st.sampled_from(Purpose),
    version=st.integers(0, 2**32 - 1),
)
def test_purpose_hours_and_version_are_folded_in_this_order(start, purpose, version):
    start = start.replace(minute=0, second=0, microsecond=0)
    hours = int((start - datetime(1800, 1, 1)).total_seconds()) // 3600
    expected = KEY
    for number in (int(purpose), hours, version):
        expected = jr.fold_in(expected, np.uint32(number))
    for spelling in (
        np.datetime64(start),
        start.isoformat(),
        np.datetime64(start, "h"),
    ):
        key = run_key(KEY, purpose, start=spelling, version=version)
        np.testing.assert_array_equal(bits(key), bits(expected))


def test_no_two_runs_share_a_key():
    keys = [
        run_key(key, purpose, start=start, version=version)
        for key in (KEY, jr.key(1))
        for purpose in Purpose
        for start in ("2017-01-01T00", "2017-01-01T12")
        for version in (0, 1)
    ]
    rows = np.concatenate([bits(key) for key in keys])
    assert len(np.unique(rows, axis=0)) == len(keys)


def test_purposes_keep_their_numbers():
    # They are folded into keys: renumbering would change the numbers of old runs.
    expected = ["PERTURB", "STEP", "ANALYSE", "OBSERVE", "TRAIN"]
    assert [purpose.name for purpose in Purpose] == expected
    assert all(b - a == 1 for a, b in pairwise(Purpose))


def test_members_do_not_depend_on_how_many_there_are():
    keys = bits(member_keys(KEY, 50))
    assert len(np.unique(keys, axis=0)) == 50
    np.testing.assert_array_equal(bits(member_keys(KEY, 7)), keys[:7])
    for some in (np.array([41, 3]), jnp.array([41, 3])):
        np.testing.assert_array_equal(bits(member_keys(KEY, some)), keys[[41, 3]])
    traced = jax.jit(member_keys)(KEY, jnp.array([41, 3]))
    np.testing.assert_array_equal(bits(traced), keys[[41, 3]])
    one = jr.fold_in(KEY, 41)
    np.testing.assert_array_equal(bits(one)[0], keys[41])


def test_no_members_have_no_keys():
    assert member_keys(KEY, 0).shape == (0,)


@pytest.mark.parametrize(
    "start",
    [
        "1799-12-31T23",
        "2017-01-01T12:30",
        np.datetime64("2017-01-01T00:00:00.5"),
        np.datetime64("NaT"),
    ],
)
def test_starts_without_a_number_are_reported(start):
    with pytest.raises(ValueError, match="`start` must be a whole hour from 1800"):
        run_key(KEY, Purpose.STEP, start=start)
