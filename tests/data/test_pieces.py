from typing import Any

import numpy as np
import pytest
import xarray

from skyens.data._pieces import cut
from skyens.data._task import make_task
from skyens.data._times import forecast_times

HOURS = np.timedelta64(1, "h").astype("m8[ns]")


def task(starts=7, leads=3, members=2, points=4, chunks=None, **settings):
    time = np.datetime64("2020-01-01", "ns") + 24 * np.arange(starts + leads) * HOURS
    coordinates = {"time": time, "station": np.arange(points)}
    truth = xarray.DataArray(
        np.zeros((time.size, points)), coordinates, ("time", "station")
    )
    forecast = xarray.DataArray(
        np.zeros((starts, leads, members, points), np.float32),
        coordinates | {"time": time[:starts], "step": 24 * np.arange(leads) * HOURS},
        ("time", "step", "member", "station"),
    )
    forecast = forecast_times(forecast.to_dataset(name="x"))["x"]
    if chunks:
        forecast = forecast.chunk(chunks)
    return make_task(forecast, truth, {}, **({"by": None, "bounds": {}} | settings))


def seen(pieces, leads=3):
    """Return how often each start and lead time is scored."""
    count = np.zeros((7, leads), int)
    for piece in pieces:
        for unit in piece.units:
            starts = piece.starts[unit.first : unit.first + unit.size]
            count[np.ix_(starts, piece.leads)] += 1
    return count


@pytest.mark.parametrize("blocks", [None, 1, 3])
@pytest.mark.parametrize("chunks", [None, {"forecast_reference_time": 2}])
@pytest.mark.parametrize("memory", [1, 200, 10**9])
def test_every_forecast_is_scored_once(monkeypatch, blocks, chunks, memory):
    for unit in (1, 16, 10**6):
        monkeypatch.setattr("skyens.data._pieces._UNIT", unit)
        pieces = cut(task(blocks=blocks, chunks=chunks), memory).pieces
        np.testing.assert_array_equal(seen(pieces), 1)


def test_pieces_follow_chunks_as_far_as_memory_goes(monkeypatch):
    monkeypatch.setattr("skyens.data._pieces._UNIT", 8)  # one start a unit
    chunked = task(chunks={"forecast_reference_time": 4, "lead_time": 3})
    pieces, width, _ = cut(chunked, 10**9)
    assert width == 1
    assert [(p.starts.size, p.leads.size) for p in pieces] == [(4, 3), (3, 3)]
    field = 2 * 4 * 4  # bytes of one start and lead time
    largest = max(p.starts.size * p.leads.size for p in cut(chunked, 6 * field).pieces)
    assert largest == 6
    assert len(cut(chunked, 1).pieces) == 21


def test_kept_axes_are_read_together_where_they_share_chunks(monkeypatch):
    monkeypatch.setattr("skyens.data._pieces._UNIT", 1)
    kept: dict[str, Any] = {"by": ("lead_time", "station")}
    for size, number in ((4, 1), (1, 4)):
        chunked = task(chunks={"station": size}, **kept)
        pieces, _, together = cut(chunked, 10**9)
        assert not together
        assert len(pieces) == number
        assert {len(piece.places or ()) for piece in pieces} == {4 // number}
    assert cut(task(**kept), 10**9).width == 1
