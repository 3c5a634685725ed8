import chex
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import sphere
from skyens.observations import Dense, Diagonal, Observation
from skyens.observations._departures import cells, departures, error_std, places

see = lambda state: state[:3]
ENSEMBLE = 1e4 + jr.normal(jr.key(0), (6, 5))
VALUE = np.asarray([1e4, np.nan, 1e4 + 2])


def test_departures_are_those_of_numpy():
    observation = Observation(VALUE, see, Diagonal(0.5))
    departure, spread, error = departures(observation, ENSEMBLE)
    seen = np.asarray(ENSEMBLE)[:, :3]
    expected = np.where(np.isnan(VALUE), 0, VALUE - seen.mean(0))
    np.testing.assert_allclose(departure, expected, rtol=1e-10, atol=1e-11)
    kept = np.isfinite(VALUE)
    np.testing.assert_allclose(spread, kept * seen.var(0, ddof=1), rtol=1e-10)
    np.testing.assert_allclose(error, 0.25, rtol=1e-14)


def test_float32_keeps_small_spreads_about_large_values():
    ensemble = (100_000 + jr.normal(jr.key(1), (20, 5))).astype(jnp.float32)
    observation = Observation(np.zeros(3, np.float32), see, Diagonal(1.0))
    departure, spread, error = departures(observation, ensemble)
    assert departure.dtype == spread.dtype == error.dtype == jnp.float32
    expected = np.asarray(ensemble, np.float64)[:, :3].var(0, ddof=1)
    np.testing.assert_allclose(spread, expected, rtol=1e-4)


def test_one_member_has_no_spread_and_a_lost_member_is_nan():
    observation = Observation(VALUE, see, Diagonal(0.5))
    _, spread, _ = departures(observation, ENSEMBLE[:1])
    np.testing.assert_array_equal(spread, 0)
    lost = ENSEMBLE.at[2, 0].set(jnp.nan)
    departure, spread, _ = departures(observation, lost)
    assert np.isnan(departure).tolist() == [True, False, False]
    chex.assert_tree_all_finite(spread)


def test_std_of_every_kind_of_error():
    covariance = np.asarray([[4.0, 1.0, 0.0], [1.0, 9.0, 0.0], [0.0, 0.0, 1.0]])
    prediction = jnp.zeros(3)
    dense = Observation(np.zeros(3), see, Dense(covariance))
    np.testing.assert_allclose(error_std(dense, prediction), [2, 3, 1], rtol=1e-14)
    diagonal = Observation(np.zeros(3), see, Diagonal(np.asarray([2.0, 3.0, 1.0])))
    np.testing.assert_allclose(error_std(diagonal, prediction), [2, 3, 1], rtol=1e-14)


@pytest.mark.parametrize("north_first", [False, True])
def test_a_grid_point_lies_in_its_own_cell(north_first):
    grid = sphere.Grid("cell-centred", 6, 8, north_first, 10.0)
    lat, lon = np.meshgrid(grid.latitude, grid.longitude, indexing="ij")
    shift = np.random.default_rng(0).uniform(-14, 14, (2, lat.size))
    place = (jnp.asarray(lat.ravel() + shift[0]), jnp.asarray(lon.ravel() + shift[1]))
    np.testing.assert_array_equal(cells(grid, *place), np.arange(48))
    turned = cells(grid, place[0], place[1] - 720)
    np.testing.assert_array_equal(turned, np.arange(48))


def test_places_must_be_known():
    with pytest.raises(ValueError, match=r"\['latitude', 'longitude'\] is missing"):
        places(Observation(VALUE, see, Diagonal(0.5)))
