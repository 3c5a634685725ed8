import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
from matplotlib.image import imread

from skyens.plot import save, style
from skyens.plot._style import COLOURS, with_units


def test_the_style_ends_with_its_block_also_after_an_error():
    before = mpl.rcParams["axes.spines.top"]
    with style():
        assert mpl.rcParams["axes.spines.top"] is False
        assert mpl.rcParams["axes.prop_cycle"].by_key()["color"] == list(COLOURS)
    with pytest.raises(RuntimeError, match="inside"), style():
        raise RuntimeError("inside")
    assert mpl.rcParams["axes.spines.top"] == before


def test_saving_writes_closes_and_makes_folders(tmp_path):
    with style():
        figure, ax = plt.subplots(figsize=(9, 3))
    ax.plot([0, 1], [0, 1])
    path = save(ax, tmp_path / "new" / "picture.png", dpi=50)
    assert abs(imread(path).shape[1] - 450) < 30
    assert not plt.fignum_exists(figure.number)
    assert save(plt.figure(), str(tmp_path / "empty.png")).exists()


@pytest.mark.parametrize(
    ("text", "units", "expected"),
    [
        ("height", "m", "height (m)"),
        ("geopotential", "m2 s-2", "geopotential (m$^{2}$ s$^{-2}$)"),
        ("ratio", "1", "ratio"),
        ("ratio", "", "ratio"),
        ("", "K", "K"),
    ],
)
def test_units_stand_in_brackets(text, units, expected):
    assert with_units(text, units) == expected


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cartopy", None)
    with pytest.raises(ImportError, match=r'pip install "skyens\[plot\]"'), style():
        pass
