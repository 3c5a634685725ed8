import numpy as np
import pytest
import xarray
from hypothesis import given, settings, strategies as st

from skyens import sphere
from skyens.data._areas import point_weights

LATLON = ("latitude", "longitude")
GRIDS = [
    sphere.gauss_legendre(6, 12, north_first=True),
    sphere.equiangular(7, 9, longitude_origin=-180.0),
    sphere.cell_centred(4, 8, longitude_origin=22.5),
]


def points(latitude, longitude):
    return xarray.DataArray(
        np.zeros((len(latitude), len(longitude))),
        {"latitude": latitude, "longitude": longitude},
        LATLON,
    )


def weigh(field, regions=None, weights=None, bounds=None, dimensions=LATLON):
    return point_weights(field, dimensions, regions, weights, bounds or {})


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.kind)
def test_cells_of_the_globe_have_the_areas_of_their_grid(grid):
    weights = weigh(points(grid.latitude, grid.longitude))
    expected = grid.cell_areas / grid.cell_areas.mean()
    np.testing.assert_allclose(weights, expected[:, None] * np.ones(grid.shape))


@settings(deadline=None, max_examples=30)
@given(
    grid=st.sampled_from(GRIDS),
    west=st.floats(-180, 360),
    width=st.floats(5, 360),
    south=st.floats(-90, 80),
    height=st.floats(5, 180),
)
def test_a_box_has_exactly_its_area(grid, west, width, south, height):
    box = (west, west + width, south, min(90.0, south + height))
    field = points(grid.latitude, grid.longitude)
    part = weigh(field, {"box": box})[0].sum() / weigh(field).sum()
    sines = np.sin(np.deg2rad([box[2], box[3]]))
    expected = (sines[1] - sines[0]) / 2 * width / 360
    np.testing.assert_allclose(part, expected, rtol=1e-9)


def test_boxes_that_share_a_border_add_up():
    field = points(np.arange(40.0, 60, 4), np.arange(-10.0, 30, 5))  # Europe
    halves = {"west": (-30, 8, 0, 90), "east": (8, 40, 0, 90)}
    west, east = weigh(field, halves)
    np.testing.assert_allclose(west + east, weigh(field))
    rows = np.sin(np.deg2rad(np.arange(38.0, 62, 4)))
    expected = np.diff(rows) / np.diff(rows).mean()
    np.testing.assert_allclose(weigh(field)[:, 0], expected)


def test_edges_of_cells_are_taken_where_they_are_given():
    field = points(np.array([10.0, 20]), np.array([0.0, 1]))
    bounds = {"latitude": np.array([[20.0, 0], [20, 50]])}
    rows = np.diff(np.sin(np.deg2rad([0, 20, 50])))
    expected = rows / rows.mean()
    np.testing.assert_allclose(weigh(field, bounds=bounds)[:, 0], expected)


def test_masks_and_weights_are_placed_by_name():
    field = points(np.array([-45.0, 45]), np.arange(0, 360, 90.0))
    mask = xarray.DataArray(
        np.array([[1, 0], [0, 0], [0, 1], [0.5, 0]]), field.coords, LATLON[::-1]
    )
    np.testing.assert_allclose(weigh(field, {"land": mask})[0], mask.T)
    equal = xarray.DataArray([1.0, 3], {"latitude": [-45, 45]}, "latitude")
    np.testing.assert_allclose(weigh(field, weights=equal)[:, 2], [0.5, 1.5])


def test_other_points_count_equally_and_lie_in_boxes():
    stations = xarray.DataArray(
        np.zeros(3),
        {
            "latitude": ("station", [10.0, 50, np.nan]),
            "longitude": ("station", [355.0, 10, 20]),
        },
        ("station",),
    )
    np.testing.assert_array_equal(weigh(stations, dimensions=("station",)), 1)
    boxes = {"a": (-10, 5, 0, 20), "b": (0, 360, -90, 90)}
    inside = weigh(stations, boxes, dimensions=("station",))
    np.testing.assert_array_equal(inside[0], [1, 0, 0])
    single = points(np.array([30.0]), np.array([0.0, 120, 240]))
    np.testing.assert_allclose(weigh(single), 1)


def test_wrong_use_is_reported():
    field = points(np.array([0.0, 10, 20]), np.arange(4.0))
    mask = xarray.ones_like(field)
    with pytest.raises(ValueError, match="at least one region"):
        weigh(field, {})
    with pytest.raises(ValueError, match=r"`regions\['a'\]` must be \(west, east"):
        weigh(field, {"a": (0, 10, 20, 10)})
    with pytest.raises(ValueError, match=r"`regions\['a'\]` holds no point"):
        weigh(field, {"a": (100, 120, 0, 10)})
    with pytest.raises(ValueError, match="`weights` must be finite, not negative"):
        weigh(field, weights=mask - 2)
    with pytest.raises(ValueError, match=r"has the dimensions \['level'\], which"):
        weigh(field, weights=mask.expand_dims("level"))
    with pytest.raises(ValueError, match=r"`latitude` at index 0 is 0 .* and 20 in `w"):
        weigh(field, weights=mask[::-1])
    with pytest.raises(ValueError, match="`latitude` must rise or fall strictly"):
        weigh(field[[0, 2, 1]])
    with pytest.raises(ValueError, match="dimension 'latitude' without coordinates"):
        weigh(field.drop_vars("latitude"))
    bare = field.drop_vars(LATLON).rename(latitude="y", longitude="x")
    with pytest.raises(ValueError, match="needs the coordinate 'latitude'"):
        weigh(bare, {"a": (0, 1, 2, 3)}, dimensions=("y", "x"))
    curved = bare.assign_coords(latitude=(("y", "x"), np.zeros((3, 4))))
    with pytest.raises(ValueError, match="areas of such cells are not known"):
        weigh(curved, dimensions=("y", "x"))
