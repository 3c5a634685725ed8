import signal
import subprocess
import sys

import numpy as np
import pytest
import xarray

from skyens import sphere
from skyens.data import _store, check_output, forecast_dataset, write_zarr


def forecast(value=0.0):
    grid = sphere.equiangular(5, 8)
    fields = {"geopotential": np.full((3, 2, 5, 8), value, np.float32)}
    lead_time = np.array([12, 36], "timedelta64[h]")
    return forecast_dataset(fields, grid, start="2017-01-01", lead_time=lead_time)


def test_a_store_opens_in_plain_xarray_as_it_was(tmp_path):
    # Warnings are errors here, so this opens without any.
    path = tmp_path / "new" / "forecast.zarr"
    write_zarr(forecast(3.0), path)
    assert [p.name for p in path.parent.iterdir()] == ["forecast.zarr"]
    for opened in (xarray.open_zarr(path, chunks=None), xarray.open_dataset(path)):
        with opened:
            xarray.testing.assert_equal(opened.load(), forecast(3.0))
            assert opened["lead_time"].dtype.kind == "m"
            assert opened["latitude"].attrs == forecast()["latitude"].attrs
            units = opened["geopotential"].attrs["units"]
            assert units == "m2 s-2"


def test_our_own_store_is_replaced_only_when_asked(tmp_path):
    path = tmp_path / "forecast.zarr"
    check_output(path)
    write_zarr(forecast(1.0), path)
    with pytest.raises(FileExistsError, match="`overwrite=True`"):
        write_zarr(forecast(2.0), path)
    write_zarr(forecast(2.0), path, overwrite=True)
    with xarray.open_zarr(path, chunks=None) as opened:
        assert (opened["geopotential"] == 2).all()
    assert [p.name for p in tmp_path.iterdir()] == ["forecast.zarr"]


def somebodys_folder(path):
    path.mkdir()
    (path / "thesis.txt").write_text("years of work")


def somebodys_file(path):
    path.write_text("years of work")


def somebodys_store(path):
    xarray.Dataset({"a": ("x", [1, 2])}).to_zarr(
        path, zarr_format=3, consolidated=False
    )


def somebodys_link(path):
    path.symlink_to(path.parent / "nowhere")


@pytest.mark.parametrize(
    "occupy", [somebodys_folder, somebodys_file, somebodys_store, somebodys_link]
)
def test_somebody_elses_data_are_never_touched(tmp_path, occupy):
    path = tmp_path / "forecast.zarr"
    occupy(path)
    before = sorted((p, p.lstat().st_mtime_ns) for p in tmp_path.rglob("*"))
    for act in (check_output, lambda path, **k: write_zarr(forecast(), path, **k)):
        with pytest.raises(FileExistsError, match="skyens did not write"):
            act(path, overwrite=True)
    after = sorted((p, p.lstat().st_mtime_ns) for p in tmp_path.rglob("*"))
    assert before == after


def test_an_empty_folder_is_free_and_a_file_is_no_parent(tmp_path):
    path = tmp_path / "forecast.zarr"
    path.mkdir()
    write_zarr(forecast(), path)
    xarray.open_zarr(path, chunks=None).close()
    somebodys_file(tmp_path / "file")
    with pytest.raises(NotADirectoryError, match="below a file"):
        check_output(tmp_path / "file" / "deep" / "forecast.zarr")


def test_a_failed_write_leaves_nothing_and_keeps_the_former(tmp_path, monkeypatch):
    path = tmp_path / "forecast.zarr"
    write_zarr(forecast(1.0), path)
    broken = forecast(2.0).assign(bad=("x", np.array([object()])))
    with pytest.raises((TypeError, ValueError)):
        write_zarr(broken, path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["forecast.zarr"]
    with xarray.open_zarr(path, chunks=None) as opened:
        assert (opened["geopotential"] == 1).all()


KILLED = """
import pathlib, sys, time
def stop(self, target):
    print("writing", flush=True)
    time.sleep(600)
pathlib.Path.rename = stop  # all is written but the name
import numpy as np
from skyens import sphere
from skyens.data import forecast_dataset, write_zarr
fields = {"geopotential": np.zeros((3, 2, 5, 8), np.float32)}
lead_time = np.array([12, 36], "timedelta64[h]")
grid = sphere.equiangular(5, 8)
dataset = forecast_dataset(fields, grid, start="2017-01-01", lead_time=lead_time)
write_zarr(dataset, sys.argv[1])
"""


def test_a_killed_run_leaves_no_half_store(tmp_path):
    path = tmp_path / "forecast.zarr"
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "writing\n"
        run.kill()
    assert run.returncode == -signal.SIGKILL
    assert not path.exists()
    assert list(tmp_path.iterdir())  # hidden rest of the killed run
    write_zarr(forecast(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["forecast.zarr"]


@pytest.mark.parametrize(
    ("shape", "chunks"),
    [
        ((100, 4, 61, 120), (35, 4, 61, 120)),
        ((100, 40, 721, 1440), (1, 1, 721, 1440)),
        ((3, 0, 2), (3, 1, 2)),
        ((5,), (5,)),
        ((), ()),
    ],
)
def test_chunks_keep_fields_whole(shape, chunks):
    assert _store._chunks(shape) == chunks
