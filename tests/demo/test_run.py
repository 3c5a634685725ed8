import subprocess
import sys

import pytest

from skyens import demo


def test_settings_are_checked_before_anything_runs():
    with pytest.raises(ValueError, match="multiple of 20, got 30"):
        demo.Settings(members=30)
    with pytest.raises(ValueError, match="multiple of 20, got 0"):
        demo.Settings(members=0)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        demo.Settings(epochs=0)


def test_somebody_elses_data_are_left_alone(tmp_path):
    (tmp_path / "forecast.zarr").mkdir()
    (tmp_path / "forecast.zarr" / "precious").write_text("data")
    with pytest.raises(FileExistsError, match="did not write"):
        demo.run(demo.Settings(output=str(tmp_path)))
    assert (tmp_path / "forecast.zarr" / "precious").read_text() == "data"


def test_help_says_what_it_does():
    call = [sys.executable, "-m", "skyens.demo"]
    text = subprocess.run([*call, "--help"], capture_output=True, text=True, check=True)
    for word in ("--members", "--seed", "--epochs", "--output", "radiosonde"):
        assert word in text.stdout
    wrong = subprocess.run([*call, "--members", "7"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "multiple of 20" in wrong.stderr
