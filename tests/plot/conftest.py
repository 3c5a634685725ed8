import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.text import Text

from skyens import sphere
from skyens.data import open_sample


@pytest.fixture(autouse=True)
def clean_matplotlib():
    """No test changes the global settings or leaves a figure open."""
    before = dict(mpl.rcParams)
    yield
    plt.close("all")
    assert dict(mpl.rcParams) == before


@pytest.fixture(scope="session")
def height():
    """500 hPa height of the ten ERA5 members at four times, m."""
    sample = open_sample("era5_eda")
    return sample["geopotential"].sel(level=500).values / 9.80665


@pytest.fixture(scope="session")
def era5_grid():
    return sphere.equiangular(61, 120)


@pytest.fixture
def drawn():
    """Draw a picture and return all its text, checked to be legible at its size."""

    def draw(picture):
        figure = getattr(picture, "figure", picture)
        figure.canvas.draw()
        assert figure.get_figwidth() * 100 <= 900  # pixels of a README
        texts = [text for text in figure.findobj(Text) if text.get_text()]
        visible = [text for text in texts if text.get_visible()]
        assert min(text.get_fontsize() for text in visible) >= 7
        pixels = np.asarray(figure.canvas.buffer_rgba())
        assert np.unique(pixels.copy().view("u4")).size > 20  # not empty
        return [text.get_text() for text in visible]

    return draw
