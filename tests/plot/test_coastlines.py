import cartopy.crs as ccrs
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import LineCollection

from skyens.data import open_sample
from skyens.plot import coastlines, draw_coastlines, trace_coastlines
from skyens.plot._coastlines import store_coastlines


def test_the_shipped_lines_are_those_of_the_topography_sample():
    relief = open_sample("topography")
    traced = trace_coastlines(
        relief["elevation"].values,
        relief["latitude"].values,
        relief["longitude"].values,
    )
    assert len(traced) == len(coastlines())
    for line, shipped in zip(traced, coastlines(), strict=True):
        np.testing.assert_allclose(shipped, line, atol=0.005 + 1e-9)


@pytest.mark.parametrize(
    ("place", "longitude", "latitude"),
    [
        ("Cape Agulhas", 20.0, -34.83),
        ("Land's End", -5.72, 50.07),
        ("Cape Horn", -67.29, -55.98),
        ("Cape Comorin", 77.55, 8.08),
        ("Cape Dezhnev", -169.65, 66.08),
        ("Cape Blanco", -124.56, 42.84),
    ],
)
def test_known_capes_lie_on_the_coast(place, longitude, latitude):
    points = np.concatenate(coastlines())
    east = (points[:, 0] - longitude) * np.cos(np.deg2rad(latitude))
    assert np.hypot(east, points[:, 1] - latitude).min() < 0.7, (
        place
    )  # two cells of the relief


def test_the_middle_of_oceans_and_continents_has_no_coast():
    points = np.concatenate(coastlines())
    for longitude, latitude in [(-130, -40), (100, 60), (22, 5), (-35, 30)]:
        east = (points[:, 0] - longitude) * np.cos(np.deg2rad(latitude))
        assert np.hypot(east, points[:, 1] - latitude).min() > 5


@pytest.mark.parametrize("origin", [0.0, 5.0, -180.0])
def test_an_island_of_known_shape_is_traced_across_the_dateline(origin):
    # A round continent of 20 degrees about 180 E on the equator, and a speck.
    longitude = origin + np.arange(0, 360, 2.0)
    latitude = np.arange(-89.0, 90, 2)
    angle = np.arccos(
        np.clip(
            np.cos(np.deg2rad(latitude))[:, None] * np.cos(np.deg2rad(longitude - 180)),
            -1,
            1,
        )
    )
    elevation = 20.0 - np.rad2deg(angle)
    row, column = np.argmin(abs(latitude - 51)), np.argmin(abs(longitude % 360 - 60))
    elevation[row, column] = 1.0
    lines = trace_coastlines(elevation, latitude, longitude, smallest=500.0)
    points = np.concatenate(lines)
    assert np.abs(points[:, 0]).max() <= 180
    cosine = np.cos(np.deg2rad(points[:, 1])) * np.cos(np.deg2rad(points[:, 0] - 180))
    np.testing.assert_allclose(np.rad2deg(np.arccos(cosine)), 20, atol=0.2)
    assert len(lines) == 2  # one on each side of the dateline; the speck is gone
    with_speck = trace_coastlines(elevation, latitude, longitude, smallest=0.0)
    assert len(with_speck) == 3


def test_storing_and_reading_are_inverse(tmp_path, monkeypatch):
    lines = [np.array([[0.0, 1], [2, 3]]), np.array([[-179.99, 5], [6, 7], [8, 9]])]
    path = tmp_path / "lines.npz"
    store_coastlines(lines, path)
    monkeypatch.setattr("skyens.plot._coastlines._FILE", path)
    read = coastlines.__wrapped__()
    for line, back in zip(lines, read, strict=True):
        np.testing.assert_allclose(back, line, atol=1e-9)


@pytest.mark.parametrize(
    "projection",
    [
        ccrs.Robinson(),
        ccrs.Robinson(central_longitude=150),
        ccrs.PlateCarree(),
        ccrs.PlateCarree(central_longitude=180),
        ccrs.NorthPolarStereo(),
        ccrs.Orthographic(10, 50),
    ],
    ids=lambda projection: type(projection).__name__,
)
def test_no_line_runs_across_the_map(projection):
    ax = plt.figure().add_subplot(projection=projection)
    draw_coastlines(ax, colors="red")
    (drawn,) = (c for c in ax.collections if isinstance(c, LineCollection))
    longest = 0.0
    for segment in drawn.get_segments():
        inside = np.hypot(*segment.T) < 2e7  # where a polar map does not blow up
        steps = np.hypot(*np.diff(segment, axis=0).T)[inside[1:] & inside[:-1]]
        longest = max(longest, steps.max(initial=0))
    west, east = projection.x_limits if "Stereo" not in str(projection) else (0, 4e7)
    assert 0 < longest < 0.02 * min(east - west, 4e7)
