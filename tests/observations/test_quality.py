import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens.observations import (
    Diagonal,
    Observation,
    StudentT,
    buddy_check,
    gross_error_check,
    range_check,
)

STATIONS = 40
RNG = np.random.default_rng(0)
PLACE = {
    "latitude": jnp.asarray(45 + RNG.uniform(-3, 3, STATIONS)),
    "longitude": jnp.asarray(RNG.uniform(-3, 3, STATIONS) % 360),  # about Greenwich
}
ENSEMBLE = 280 + jr.normal(jr.key(0), (10, STATIONS))
see = lambda state: state


def reports(value, mask=None, error=None, place=None):
    place = PLACE if place is None else place
    return Observation(value, see, error or Diagonal(1.0), mask, place)


def test_range_check_rejects_what_lies_outside():
    value = np.asarray([200.0, 280.0, 372.0, np.nan])
    place = {name: where[:4] for name, where in PLACE.items()}
    checked = range_check(reports(value, place=place), 223, 330)
    assert checked.mask.tolist() == [False, True, False, False]
    assert checked.rejected.tolist() == [True, False, True, False]
    highest = jnp.asarray([300.0, 270.0, 400.0, 0.0])
    checked = range_check(reports(value, place=place), -jnp.inf, highest)
    assert checked.rejected.tolist() == [False, True, False, False]


check_gross = eqx.filter_jit(gross_error_check)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), limit=st.floats(0.5, 6))
def test_gross_errors_are_those_beyond_the_limit(seed, limit):
    rng = np.random.default_rng(seed)
    value = 280 + 5 * rng.normal(size=STATIONS)
    value[3] = np.nan
    checked = check_gross(reports(value), ENSEMBLE, limit=jnp.asarray(limit))
    seen = np.asarray(ENSEMBLE)
    expected = np.sqrt(seen.var(0, ddof=1) + 1)
    wrong = np.abs(value - seen.mean(0)) > limit * expected
    np.testing.assert_array_equal(checked.rejected, wrong)
    np.testing.assert_array_equal(checked.mask, ~wrong & np.isfinite(value))


def test_a_robust_law_does_not_excuse_a_gross_error():
    value = np.full(STATIONS, 280.0)
    value[5] = 380.0
    checked = gross_error_check(reports(value, error=StudentT(1.0)), ENSEMBLE)
    assert np.flatnonzero(checked.rejected).tolist() == [5]


def test_what_members_cannot_predict_is_rejected():
    lost = ENSEMBLE.at[4, 7].set(jnp.nan)
    checked = gross_error_check(reports(np.full(STATIONS, 280.0)), lost, limit=9.0)
    assert np.flatnonzero(checked.rejected).tolist() == [7]


check_buddies = eqx.filter_jit(buddy_check)


def test_buddies_reject_the_lone_liar_and_believe_the_front():
    rng = np.random.default_rng(1)
    # Far colder than foreseen, all of them: a front that the background missed.
    value = 266 + rng.normal(size=STATIONS)
    value[11] += 9  # near the background, and wrong
    checked = check_buddies(reports(value), ENSEMBLE, radius=300e3)
    assert np.flatnonzero(checked.rejected).tolist() == [11]
    assert gross_error_check(reports(value), ENSEMBLE).rejected.sum() > 30


def test_buddies_compare_directions_the_short_way_round():
    rng = np.random.default_rng(3)
    # Half a turn off everywhere: departures lie on both sides of 180 degrees.
    value = (90 + 180 + rng.normal(size=STATIONS)) % 360
    value[11] += 60
    observation = Observation(value, see, Diagonal(5.0), None, PLACE, period=360)
    checked = check_buddies(observation, 0 * ENSEMBLE + 90, radius=300e3)
    assert np.flatnonzero(checked.rejected).tolist() == [11]


def test_buddies_agree_with_a_reference():
    rng = np.random.default_rng(2)
    value = 280 + 3 * rng.standard_t(2, size=STATIONS)
    mask = rng.uniform(size=STATIONS) > 0.2
    group = jnp.asarray(rng.integers(0, 2, STATIONS))
    observation = reports(value, mask)
    checked = check_buddies(
        observation, ENSEMBLE, radius=250e3, limit=2.0, neighbours=5, group=group
    )
    departure = value - np.asarray(ENSEMBLE).mean(0)
    lat, lon = (np.deg2rad(np.asarray(PLACE[n])) for n in ("latitude", "longitude"))
    unit = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])
    chord = np.linalg.norm(unit[:, :, None] - unit[:, None, :], axis=0)
    distance = 2 * 6.371e6 * np.arcsin(chord / 2)
    wrong = np.zeros(STATIONS, bool)
    for i in np.flatnonzero(mask):
        others = [
            j
            for j in np.argsort(distance[i])
            if j != i and mask[j] and group[j] == group[i] and distance[i, j] <= 250e3
        ][:5]
        if len(others) < 3:
            continue
        middle = np.median(departure[others])
        scatter = 1.4826 * np.median(np.abs(departure[others] - middle))
        wrong[i] = abs(departure[i] - middle) > 2 * np.sqrt(1 + scatter**2)
    assert wrong.any()
    np.testing.assert_array_equal(checked.rejected, wrong)


def test_isolated_stations_pass():
    value = np.full(STATIONS, 280.0)
    value[0] = 350.0
    alone = {"latitude": PLACE["latitude"].at[0].set(-60.0)}
    place = PLACE | alone
    checked = check_buddies(reports(value, place=place), ENSEMBLE, radius=300e3)
    assert not checked.rejected.any()
    nowhere = PLACE | {"longitude": PLACE["longitude"].at[0].set(jnp.nan)}
    checked = check_buddies(reports(value, place=nowhere), ENSEMBLE, radius=300e3)
    assert not checked.rejected.any()


def test_a_lost_prediction_is_nobodys_buddy():
    lost = ENSEMBLE.at[4, 7].set(jnp.nan)
    value = np.full(STATIONS, 280.0)
    value[11] = 300.0
    checked = check_buddies(reports(value), lost, radius=300e3)
    assert np.flatnonzero(checked.rejected).tolist() == [11]


def test_checks_keep_dtype_shape_and_run_under_vmap():
    value = np.full((2, STATIONS), 280.0, np.float32)
    value[1, 11] = 330.0
    place = {name: where.astype(jnp.float32) for name, where in PLACE.items()}
    ensemble = ENSEMBLE.astype(jnp.float32)

    def check(value):
        observation = Observation(value, see, Diagonal(1.0), coordinates=place)
        return buddy_check(observation, ensemble, radius=300e3)

    checked = jax.jit(jax.vmap(check))(jnp.asarray(value))
    assert checked.value.dtype == jnp.float32
    assert np.argwhere(checked.rejected).tolist() == [[1, 11]]


def test_everything_masked_stays_so():
    nothing = reports(np.full(STATIONS, np.nan))
    for checked in (
        gross_error_check(nothing, ENSEMBLE),
        check_buddies(nothing, ENSEMBLE, radius=300e3),
    ):
        assert not checked.mask.any()
        assert not checked.rejected.any()


def test_wrong_use_is_reported():
    observation = reports(np.full(STATIONS, 280.0))
    with pytest.raises(ValueError, match="`lowest` must not be above `highest`, got 3"):
        range_check(observation, 3, 2)
    with pytest.raises(ValueError, match=r"`limit` must be above 0, got -1\."):
        gross_error_check(observation, ENSEMBLE, limit=-1.0)
    with pytest.raises(ValueError, match=r"`radius` must be above 0, got 0\."):
        buddy_check(observation, ENSEMBLE, radius=0.0)
    with pytest.raises(ValueError, match=r"`fewest` must not exceed .* got 9 and 8"):
        buddy_check(observation, ENSEMBLE, radius=1e5, fewest=9)
    with pytest.raises(ValueError, match=r"`group` of shape \(3,\) does not broadcast"):
        buddy_check(observation, ENSEMBLE, radius=1e5, group=np.zeros(3, int))
