import cartopy.crs as ccrs
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection

from skyens.data import station_positions
from skyens.plot import increment, map_field, map_forecast, spaghetti


@pytest.mark.parametrize(
    "projection",
    [
        None,
        ccrs.PlateCarree(central_longitude=180),
        ccrs.NorthPolarStereo(),
        ccrs.SouthPolarStereo(),
    ],
    ids=["robinson", "plate", "north", "south"],
)
def test_a_field_is_drawn_on_any_projection(height, era5_grid, drawn, projection):
    ax = map_field(
        jnp.asarray(height[0, 0], jnp.float32),
        era5_grid,
        projection=projection,
        units="m",
        label="500 hPa height",
        title="Analysis",
        lines=True,
    )
    texts = drawn(ax)
    assert "500 hPa height (m)" in texts
    assert "Analysis" in texts
    assert any("5300" in text for text in texts)  # a number on the colour bar


def test_worlds_without_land_have_no_coastlines(height, era5_grid, drawn):
    for wanted in (True, False):
        ax = map_field(height[0, 0], era5_grid, coastlines=wanted)
        assert any(type(c) is LineCollection for c in ax.collections) is wanted


def test_contours_stay_where_the_field_is_on_a_half_of_the_globe(era5_grid, drawn):
    # Longitude east of the centre: a step there must be drawn as the central meridian.
    east = np.where(era5_grid.longitude < 180, 1.0, -1.0) * np.ones((61, 1))
    globe = ccrs.Orthographic(0, 0)
    ax = map_field(east, era5_grid, projection=globe, levels=[-2, 0, 2], lines=True)
    drawn(ax)
    filled = next(c for c in ax.collections if hasattr(c, "levels"))
    west, right = (path.vertices[:, 0] for path in filled.get_paths())
    width = ax.get_xlim()[1]
    assert west.max() < 0.03 * width
    assert right.min() > -0.03 * width


def test_a_polar_map_is_round_and_a_part_of_the_globe_is_not(height, era5_grid):
    polar = map_field(height[0, 0], era5_grid, projection=ccrs.NorthPolarStereo())
    south, north = polar.get_ylim()
    assert north == -south == polar.get_xlim()[1]
    outline = np.hypot(*polar.spines["geo"].get_path().vertices.T)
    np.testing.assert_allclose(outline, north, rtol=1e-6)

    rows, columns = slice(40, 55), slice(0, 15)
    latitude = era5_grid.latitude[rows]
    longitude = era5_grid.longitude[columns]
    part = map_field(
        height[0, 0][rows, columns],
        (latitude, longitude),
        projection=ccrs.PlateCarree(),
        extent=(-10, 50, 20, 80),
    )
    assert part.get_xlim() == (-10, 50)


def test_what_lies_beyond_given_levels_has_its_own_colour(era5_grid, height, drawn):
    field = height[0, 0]
    for levels, extend in [
        ([4000, 5000, 7000], "neither"),
        ([5000, 5200, 7000], "min"),
        ([4000, 5000, 5500], "max"),
        ([5000, 5200, 5500], "both"),
    ]:
        ax = map_field(field, era5_grid, levels=levels, colour_bar=False)
        (filled,) = (c for c in ax.collections if hasattr(c, "extend"))
        assert filled.extend == extend


def test_a_constant_field_and_one_with_gaps_can_be_drawn(era5_grid, drawn):
    drawn(map_field(jnp.ones((61, 120), jnp.bfloat16), era5_grid, units="K"))
    gaps = np.where(np.arange(120) < 60, np.nan, 1.0) * np.ones((61, 1))
    drawn(map_field(gaps * era5_grid.latitude[:, None], era5_grid))


def test_a_forecast_shows_mean_truth_and_spread(height, era5_grid, drawn):
    members = height[:, 3]
    for projection in (None, ccrs.Robinson()):
        figure = map_forecast(
            members.mean(0),
            members.std(0, ddof=1),
            height[0, 3],
            era5_grid,
            projection=projection,
            units="m",
            label="500 hPa height",
            title="36 h",
        )
        texts = drawn(figure)
        wanted = {"Ensemble mean", "Truth", "Spread", "36 h", "500 hPa height (m)"}
        assert wanted | {"standard deviation (m)"} <= set(texts)
        mean, truth, _ = figure.axes[:3]
        np.testing.assert_array_equal(levels_of(mean), levels_of(truth))


def test_spaghetti_draws_the_contour_where_it_is(era5_grid, drawn):
    # Height that falls with latitude alone: the contour 45 is the parallel 45 N.
    fields = era5_grid.latitude[:, None] * np.ones((5, 1, 120))
    ax = spaghetti(fields, era5_grid, contour=45, truth=fields[0], units="m", label="z")
    texts = drawn(ax)
    assert {"5 members", "truth", "z 45 m"} <= set(texts)
    lines = [c for c in ax.collections if isinstance(c, LineCollection)]
    assert len(lines) == 1 + 5 + 1  # coast, members, truth
    for collection in lines[1:]:
        points = np.concatenate(collection.get_segments())
        place = ccrs.PlateCarree().transform_points(ax.projection, *points.T)
        np.testing.assert_allclose(place[:, 1], 45, atol=0.05)


def test_spaghetti_takes_several_contours_and_failed_members(height, era5_grid, drawn):
    members = height[:, 3].copy()
    members[4] = np.nan
    ax = spaghetti(members, era5_grid, contour=[5100, 5520], units="m")
    assert {"5100 and 5520 m", "9 members"} <= set(drawn(ax))


def test_an_increment_is_even_about_zero_and_shows_its_stations(
    height, era5_grid, drawn
):
    stations = station_positions()
    ax = increment(
        height[0, 1] - height[3, 1],
        era5_grid,
        station_latitude=stations["latitude"].values,
        station_longitude=stations["longitude"].values,
        units="m",
        title="At 12 h",
    )
    texts = drawn(ax)
    assert "analysis - background (m)" in texts
    assert "stations" in texts
    (dots,) = (c for c in ax.collections if type(c) is PathCollection)
    east, north = stations["longitude"].values, stations["latitude"].values
    expected = ccrs.Robinson().transform_points(ccrs.PlateCarree(), east, north)
    offsets = np.asarray(dots.get_offsets())
    np.testing.assert_allclose(offsets, expected[:, :2], atol=1e-3)
    np.testing.assert_allclose(levels_of(ax), -levels_of(ax)[::-1])
    drawn(increment(np.zeros((61, 120)), era5_grid))


def test_wrong_use_is_reported(height, era5_grid):
    field = height[0, 0]
    with pytest.raises(ValueError, match=r"shape \(60, 120\) does not lie on `grid`"):
        map_field(field[1:], era5_grid)
    with pytest.raises(
        ValueError, match=r"`field` must be \(latitude, longitude\), go"
    ):
        map_field(field[0], era5_grid)
    with pytest.raises(ValueError, match="`field` has no finite value"):
        map_field(np.full((61, 120), np.nan), era5_grid)
    with pytest.raises(ValueError, match=r"must be cartopy axes.*got Axes"):
        map_field(field, era5_grid, ax=plt.figure().add_subplot())
    with pytest.raises(ValueError, match=r"`truth` must be .* got the shape \(61,\)"):
        map_forecast(field, field, field[:, 0], era5_grid)
    with pytest.raises(ValueError, match=r"shape \(60, 120\) does not lie"):
        map_forecast(field, field, field[1:], era5_grid)
    with pytest.raises(ValueError, match=r"`members` must be \(member, latitude"):
        spaghetti(field, era5_grid, contour=5520)
    with pytest.raises(ValueError, match="given together"):
        increment(field, era5_grid, station_latitude=np.zeros(3))
    with pytest.raises(
        ValueError, match=r"vectors of one length, .* \(3,\) and \(2,\)"
    ):
        increment(
            field,
            era5_grid,
            station_latitude=np.zeros(3),
            station_longitude=np.zeros(2),
        )


def levels_of(ax):
    """Return the levels of the first contours on `ax`."""
    return np.asarray(next(c.levels for c in ax.collections if hasattr(c, "levels")))
