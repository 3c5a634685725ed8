import cartopy.crs as ccrs
import matplotlib.pyplot as plt
import numpy as np
import pytest

from skyens.plot._canvas import even_levels, map_axes, round_levels


@pytest.mark.parametrize("largest", [1e-7, 0.3, 1.0, 47.0, 8e4])
def test_levels_are_round_and_hold_the_values(largest):
    levels = even_levels(largest)
    assert levels.size % 2 == 0
    assert levels[-1] >= largest * (1 - 1e-9)
    assert 4 <= levels.size <= 12
    some = round_levels(np.array([0.2 * largest, largest]), zero=True)
    assert some[0] == 0
    assert some[-1] >= largest * (1 - 1e-9)


def test_a_constant_has_levels_around_it():
    levels = round_levels(np.full((2, 2), 7.0))
    assert levels[0] < 7 < levels[-1]


@pytest.mark.parametrize(
    ("projection", "outermost"),
    [(ccrs.NorthPolarStereo(), 20), (ccrs.SouthPolarStereo(), -20)],
    ids=["north", "south"],
)
def test_polar_maps_reach_to_20_degrees(projection, outermost):
    ax = map_axes(None, projection, None)
    edge = ax.projection.transform_point(50, outermost, ccrs.PlateCarree())
    np.testing.assert_allclose(np.hypot(*edge), ax.get_xlim()[1], rtol=1e-9)


def test_given_axes_are_kept_and_their_extent_set():
    ax = plt.figure().add_subplot(projection=ccrs.PlateCarree())
    assert map_axes(ax, None, (-10, 30, 35, 60)) is ax
    assert ax.get_ylim() == (35, 60)
