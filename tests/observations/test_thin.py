import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens import sphere
from skyens.observations import (
    Diagonal,
    Observation,
    reject_duplicates,
    thin,
    thin_to_grid,
)

STATIONS = 50
see = lambda state: state


def reports(seed, mask=None, near_pole=True):
    rng = np.random.default_rng(seed)
    low = 75 if near_pole else -90
    place = {
        "latitude": jnp.asarray(rng.uniform(low, 90, STATIONS)),
        "longitude": jnp.asarray(rng.uniform(0, 360, STATIONS)),
    }
    return Observation(np.zeros(STATIONS), see, Diagonal(1.0), mask, place)


def distances(observation):
    place = observation.coordinates
    lat, lon = (np.deg2rad(np.asarray(place[n])) for n in ("latitude", "longitude"))
    unit = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])
    chord = np.linalg.norm(unit[:, :, None] - unit[:, None, :], axis=0)
    return 2 * 6.371e6 * np.arcsin(chord / 2)


thin_fast = eqx.filter_jit(thin)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_what_is_kept_is_apart_and_the_best_in_reach(seed):
    rng = np.random.default_rng(seed)
    mask = rng.uniform(size=STATIONS) > 0.2
    observation = reports(seed, mask)
    priority = rng.permutation(STATIONS).astype(float)
    thinned = thin_fast(observation, radius=400e3, priority=jnp.asarray(priority))
    kept = np.asarray(thinned.mask)
    apart = distances(observation)
    near = (apart < 400e3) & ~np.eye(STATIONS, dtype=bool)
    assert not near[np.ix_(kept, kept)].any()
    np.testing.assert_array_equal(thinned.rejected, mask & ~kept)
    for i in np.flatnonzero(thinned.rejected):
        better = near[i] & kept & (priority > priority[i])
        assert better.any()


def test_groups_do_not_thin_each_other():
    observation = reports(0)
    group = jnp.arange(STATIONS) % 2
    thinned = thin_fast(observation, radius=900e3, group=group)
    for which in range(2):
        alone = observation.reject(group != which)
        expected = thin(alone, radius=900e3).mask
        np.testing.assert_array_equal(thinned.mask & (group == which), expected)


def test_the_latest_of_duplicates_is_kept():
    place = {
        "latitude": jnp.asarray([10.0, 10.0, 10.0, 10.5, jnp.nan]),
        "longitude": jnp.asarray([0.0, 360.0, 0.0005, 0.0, 0.0]),
    }
    observation = Observation(np.arange(5.0), see, Diagonal(1.0), coordinates=place)
    time = jnp.asarray([0.0, 20.0, jnp.nan, 0.0, 0.0])
    checked = reject_duplicates(observation, priority=time)
    assert checked.rejected.tolist() == [True, False, True, False, False]
    # Equal in all: the first.
    checked = reject_duplicates(observation)
    assert checked.mask.tolist() == [True, False, False, True, True]


@pytest.mark.parametrize("near_pole", [False, True])
def test_one_entry_is_kept_in_each_cell(near_pole):
    grid = sphere.cell_centred(9, 18)  # 20 degrees
    rng = np.random.default_rng(3)
    mask = rng.uniform(size=STATIONS) > 0.3
    observation = reports(3, mask, near_pole)
    priority = rng.permutation(STATIONS).astype(float)
    thinned = eqx.filter_jit(thin_to_grid)(
        observation, grid, priority=jnp.asarray(priority)
    )
    place = observation.coordinates or {}
    row = np.floor((np.asarray(place["latitude"]) + 90) / 20).astype(int)
    column = np.floor((np.asarray(place["longitude"]) + 10) / 20).astype(int) % 18
    best = {}
    for i in np.flatnonzero(mask):
        cell = row[i], column[i]
        if cell not in best or priority[i] > priority[best[cell]]:
            best[cell] = i
    assert sorted(best.values()) == np.flatnonzero(thinned.mask).tolist()
    np.testing.assert_array_equal(thinned.rejected, mask & ~np.asarray(thinned.mask))


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match=r"`radius` must be above 0, got -1\."):
        thin(reports(0), radius=-1.0)
    with pytest.raises(ValueError, match=r"`priority` of shape \(2,\) does not"):
        thin(reports(0), radius=1e5, priority=jnp.zeros(2))
    nowhere = Observation(np.zeros(3), see, Diagonal(1.0))
    with pytest.raises(ValueError, match="needs its coordinates"):
        thin_to_grid(nowhere, sphere.cell_centred(9, 18))
