import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray

from skyens import sphere
from skyens.data import open_sample, station_observation, station_windows
from skyens.observations import Diagonal, Interpolate, StudentT

GRID = sphere.cell_centred(18, 36)
see = lambda place: Interpolate(GRID, place["latitude"], place["longitude"])
TIMES = np.asarray(["2020-01-01T00", "2020-01-01T01"], "datetime64[ns]")


def table(**changes):
    values = {
        "temperature": ("obs", np.asarray([10.0, np.nan, -5.0]), {"units": "degC"}),
        "lat": ("obs", np.asarray([50.0, 60.0, -10.0])),
        "lon": ("obs", np.asarray([5.0, 355.0, 100.0])),
        "station_height": ("obs", np.asarray([100.0, 0.0, np.nan])),
    }
    return xarray.Dataset(values | changes)


def test_a_table_becomes_an_observation():
    observation = station_observation(table(), "temperature", operator=see, error=2.0)
    np.testing.assert_allclose(observation.value, [283.15, np.nan, 268.15], rtol=1e-14)
    assert observation.mask.tolist() == [True, False, True]
    places = observation.coordinates or {}
    np.testing.assert_array_equal(places["elevation"][:2], [100, 0])
    assert isinstance(observation.error, Diagonal)
    field = jnp.broadcast_to(jnp.asarray(GRID.latitude)[:, None], (18, 36))
    np.testing.assert_allclose(observation.predict(field), [50, 60, -10], rtol=1e-12)


def test_a_static_width_is_filled_with_masked_entries():
    short = station_observation(
        table().isel(obs=slice(2)), "temperature", operator=see, error=1.0, width=4
    )
    long = station_observation(table(), "temperature", operator=see, error=1.0, width=4)
    assert long.mask.tolist() == [True, False, True, False]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), short, long)
    field = jnp.full((18, 36), 280.0)
    innovation = jax.vmap(lambda o: o.innovation(field))(stacked)
    np.testing.assert_allclose(
        innovation, [[3.15, 0, 0, 0], [3.15, 0, -11.85, 0]], rtol=1e-10
    )


def test_float32_and_a_robust_law():
    values = np.asarray([1000.0, 990.0, 980.0], np.float32)
    pressure = table(ps=("obs", values, {"units": "hPa"}))
    law = StudentT(100.0)
    observation = station_observation(pressure, "ps", operator=see, error=law)
    assert observation.value.dtype == jnp.float32
    np.testing.assert_array_equal(observation.value, 100 * values)
    assert isinstance(observation.error, StudentT)


@pytest.mark.parametrize(
    ("units", "value", "expected"),
    [
        ("knot", 10.0, 5.144444444444445),
        ("%", 50.0, 0.5),
        ("degF", 212.0, 373.15),
        ("g kg-1", 7.0, 0.007),
        ("degree", 270.0, 270.0),
    ],
)
def test_units_become_si(units, value, expected):
    known = table(x=("obs", np.full(3, value), {"units": units}))
    observation = station_observation(known, "x", operator=see, error=1.0)
    np.testing.assert_allclose(observation.value, expected, rtol=1e-12)


def test_the_sample_is_a_table():
    synop = open_sample("synop")
    observation = station_observation(
        synop, "temperature", operator=see, error=2.0, width=8000
    )
    assert observation.value.shape == (8000,)
    assert int(observation.mask.sum()) == int(synop["temperature"].count())
    assert observation.value.dtype == jnp.float32


def reports(**changes):
    minutes = np.asarray([-20, 10, 5, 55, 80], "timedelta64[m]")
    values = {
        "temperature": (
            "obs",
            np.asarray([1.0, 2.0, np.nan, 4.0, 5.0]),
            {"units": "degC"},
        ),
        "station": ("obs", np.asarray(["a", "a", "b", "b", "a"])),
        "time": ("obs", TIMES[0] + minutes),
        "latitude": ("obs", np.asarray([50.0, 50.0, 60.0, 60.0, 50.0])),
        "longitude": ("obs", np.asarray([359.99, 0.0, 5.0, 5.0, 0.0])),
    }
    return xarray.Dataset(values | changes)


def test_the_latest_report_of_each_window_counts():
    windows = station_windows(reports(), "temperature", TIMES, width=3)
    assert windows["temperature"].dims == ("time", "station")
    assert windows["temperature"].attrs["units"] == "K"
    expected = 273.15 + np.asarray([[2.0, np.nan, np.nan], [5.0, 4.0, np.nan]])
    np.testing.assert_allclose(windows["temperature"], expected, rtol=1e-14)
    assert windows["station"].values.tolist() == ["a", "b", ""]
    np.testing.assert_array_equal(windows["latitude"], [50, 60, np.nan])
    # An hour of it is a table again.
    hour = windows.isel(time=1)
    observation = station_observation(hour, "temperature", operator=see, error=1.0)
    assert observation.mask.tolist() == [True, True, False]


def test_windows_are_open_at_their_start():
    half = np.timedelta64(30, "m")
    edge = reports(
        time=("obs", TIMES[0] + np.asarray([-30, -29, 30, 31, 90]) * half / 30)
    )
    windows = station_windows(edge, "temperature", TIMES, outside=True)
    # The first lies 30 minutes before, in no window; the third 30 after, in the first.
    expected = 273.15 + np.asarray([[2.0, np.nan], [5.0, 4.0]])
    np.testing.assert_allclose(windows["temperature"], expected, rtol=1e-14)
    with pytest.raises(ValueError, match="1 of 5 reports outside of all windows"):
        station_windows(edge, "temperature", TIMES)


def test_wrong_tables_are_reported():
    build = lambda table, variable="temperature", **settings: station_observation(
        table, variable, operator=see, error=1.0, **settings
    )
    with pytest.raises(ValueError, match="no variable 'rain', only"):
        build(table(), "rain")
    with pytest.raises(ValueError, match="`x` has no units; set them"):
        build(table(x=("obs", np.zeros(3))), "x")
    with pytest.raises(ValueError, match="`x` has the unknown units 'furlong'"):
        build(table(x=("obs", np.zeros(3), {"units": "furlong"})), "x")
    with pytest.raises(ValueError, match="`table` has no latitude"):
        build(table().drop_vars("lat"))
    with pytest.raises(ValueError, match=r"in \[-90, 90\].*1 of 3 do not.* is 95"):
        build(table(lat=("obs", np.asarray([50.0, 95.0, 0.0]))))
    with pytest.raises(ValueError, match="1 values of `temperature` have no place"):
        build(table(lon=("obs", np.asarray([5.0, 355.0, np.nan]))))
    with pytest.raises(ValueError, match="3 stations, which is more than the width"):
        build(table(), width=2)
    with pytest.raises(ValueError, match="must have one dimension"):
        build(table().expand_dims("time"))


def test_wrong_windows_are_reported():
    build = lambda reports, **settings: station_windows(
        reports, "temperature", settings.pop("times", TIMES), **settings
    )
    with pytest.raises(ValueError, match="no 'station'"):
        build(reports().drop_vars("station"))
    with pytest.raises(ValueError, match="2 stations, 1 more than the width of 1"):
        build(reports(), width=1)
    with pytest.raises(ValueError, match="`times` must be a vector that rises"):
        build(reports(), times=TIMES[::-1])
    with pytest.raises(ValueError, match="windows overlap"):
        build(reports(), before=np.timedelta64(40, "m"))
    moved = np.asarray([50.0, 51.0, 60.0, 60.0, 50.0])
    with pytest.raises(ValueError, match="station 'a' moves: its latitude"):
        build(reports(latitude=("obs", moved)))
