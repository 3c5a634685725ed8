import numpy as np
import pytest
import xarray

from skyens.data._times import (
    block_starts,
    day_and_hour,
    forecast_times,
    positions,
    rows_of,
    truth_times,
)

TIMES = np.array(["2020-02-28T18", "2020-03-01T06", "2021-12-31T00"], "M8[ns]")


def test_starts_and_lead_times_become_dimensions():
    dataset = xarray.Dataset(
        {"t": (("init", "lead"), np.zeros((3, 2)))},
        {
            "init_time": ("init", TIMES),
            "forecast_period": ("lead", [6, 12], {"units": "hours"}),
        },
    )
    named = forecast_times(dataset)
    assert named["t"].dims == ("forecast_reference_time", "lead_time")
    hours = named["lead_time"].values / np.timedelta64(1, "h")
    assert hours.tolist() == [6, 12]
    scalars = dataset.isel(init=0, lead=1)
    assert forecast_times(scalars).sizes == {"forecast_reference_time": 1} | {
        "lead_time": 1
    }


def test_the_time_of_an_analysis_is_valid_whatever_it_is_called():
    analysis = xarray.Dataset({"t": ("valid_time", np.zeros(3))}, {"valid_time": TIMES})
    assert forecast_times(analysis)["t"].dims == ("time",)
    assert truth_times(analysis, "truth")["t"].dims == ("time",)
    assert truth_times(analysis.isel(valid_time=0), "truth").sizes == {"time": 1}


def test_days_count_from_1_and_leap_years_have_366():
    found = day_and_hour(TIMES)
    assert found["dayofyear"].tolist() == [59, 61, 365]
    assert found["hour"].tolist() == [18, 6, 0]


def test_times_are_found_in_any_order():
    known = TIMES[[2, 0, 1]]
    assert rows_of(TIMES, known, "truth", allow_missing=False).tolist() == [1, 2, 0]
    later = TIMES + np.timedelta64(1, "h")
    assert rows_of(later, known, "truth", allow_missing=True).tolist() == [-1] * 3
    assert positions(np.array([[18, 6]]), [6, 12, 18], "x").tolist() == [[2, 0]]


def test_blocks_hold_each_start_once():
    for blocks in (None, 1, 2, 7, "day", "month", "year"):
        labels, groups = block_starts(TIMES, blocks)
        assert len(labels) == len(groups)
        assert np.concatenate(groups).tolist() == [0, 1, 2]
    labels, groups = block_starts(TIMES, xarray.DataArray(["b", "a", "b"], dims="x"))
    assert labels.tolist() == ["a", "b"]
    assert [group.tolist() for group in groups] == [[1], [0, 2]]


def test_wrong_times_are_reported():
    lead = {"lead_time": np.timedelta64(6, "h")}
    two = xarray.Dataset(coords=lead | {"init_time": TIMES[0], "start_time": TIMES[0]})
    with pytest.raises(ValueError, match=r"2 coordinates that could be its start"):
        forecast_times(two)
    with pytest.raises(ValueError, match="the start 'init_time' but no lead time"):
        forecast_times(xarray.Dataset(coords={"init_time": TIMES}))
    with pytest.raises(ValueError, match="must be timedelta64 or have units of days"):
        forecast_times(xarray.Dataset(coords={"step": [6, 12]}))
    with pytest.raises(ValueError, match="`time` of `truth` must be datetime64, got i"):
        truth_times(xarray.Dataset(coords={"time": [1, 2]}), "truth")
    with pytest.raises(ValueError, match=r"missing \(NaT\)"):
        truth_times(xarray.Dataset(coords={"time": [np.datetime64("NaT", "ns")]}), "x")
    table = xarray.Dataset(coords={"time": (("a", "b"), TIMES[None])})
    with pytest.raises(ValueError, match="must be a vector, got the dimensions"):
        truth_times(table, "truth")
    with pytest.raises(ValueError, match="`forecast` has the dimension 'time' without"):
        forecast_times(xarray.Dataset({"t": ("time", np.zeros(3))}))
    with pytest.raises(ValueError, match="2020-02-28T18:00 more than once"):
        rows_of(TIMES, TIMES[[0, 0, 1, 2]], "truth", allow_missing=False)
    with pytest.raises(ValueError, match="`x` by hour lacks 5"):
        positions(np.array([6, 5]), [0, 6], "`x` by hour")
    with pytest.raises(ValueError, match=r"one label for each of the 3 .* \(2,\)"):
        block_starts(TIMES, xarray.DataArray([1, 2], dims="x"))
    with pytest.raises(ValueError, match="needs forecasts with times"):
        block_starts(np.zeros(1), "month")
