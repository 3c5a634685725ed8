import importlib.resources
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import skyens

ROOT = Path(__file__).parent.parent
EDGES = "cartopy", "h5netcdf", "h5py", "matplotlib", "netCDF4", "orbax", "zarr"
LAZY = *EDGES, "pandas", "tqdm", "xarray"


def run_python(code):
    """Run `code` in a fresh interpreter and return the JSON it prints."""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_importing_the_package_imports_nothing_heavy():
    modules = run_python("import skyens, sys, json; print(json.dumps([*sys.modules]))")
    assert "skyens" in modules
    heavy = {"jax", "numpy", "equinox", "optax", "diffrax", "lineax", *LAZY}
    assert not heavy & set(modules)


def test_every_room_imports_without_the_extras():
    imported = run_python(
        "import sys, json, skyens\n"
        f"for name in {LAZY}: sys.modules[name] = None  # importing it fails\n"
        "rooms = [getattr(skyens, room) for room in skyens._ROOMS]\n"
        "print(json.dumps([room.__name__ for room in rooms]))"
    )
    assert imported == [f"skyens.{room}" for room in skyens._ROOMS]


def test_the_rooms_are_those_on_disk():
    folders = ROOT.joinpath("src", "skyens").glob("*/__init__.py")
    rooms = {path.parent.name for path in folders} - {"demo"}
    assert rooms == set(skyens._ROOMS)
    assert rooms < set(dir(skyens))


def test_what_is_no_room_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'spheer'"):
        skyens.spheer  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_types_and_samples_ship():
    package = importlib.resources.files("skyens")
    assert package.joinpath("py.typed").is_file()
    assert package.joinpath("data", "samples", "ATTRIBUTION.md").is_file()


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("pyproject.toml", r'^version = "(.*)"$'),
        ("CHANGELOG.md", r"^## \[(.*)\]"),  # the first is the latest
        ("CITATION.cff", r"^version: (.*)$"),
    ],
)
def test_the_version_is_the_same_everywhere(file, pattern):
    found = re.search(pattern, ROOT.joinpath(file).read_text(), re.MULTILINE)
    assert found is not None
    assert found[1] == skyens.__version__
