import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings, strategies as st

from skyens import sphere
from skyens.sphere import Grid

MAKERS = [sphere.gauss_legendre, sphere.equiangular, sphere.cell_centred]
EVERY_TEN = np.arange(0, 360, 10)
WITH_POLES = np.linspace(-90, 90, 19)
GAUSS_17 = np.rad2deg(np.arcsin(scipy.special.roots_legendre(17)[0][0]))


@settings(deadline=None, max_examples=60)
@given(
    make=st.sampled_from(MAKERS),
    n=st.integers(3, 200),
    m=st.integers(1, 300),
    north_first=st.booleans(),
    origin=st.floats(-180, 180).map(lambda x: round(x, 3)),
)
def test_coordinates_are_recognised(make, n, m, north_first, origin):
    grid = make(n, m, north_first=north_first, longitude_origin=origin)
    assert Grid.from_coordinates(grid.latitude, grid.longitude) == grid
    # Stored in single precision, the origin is known to single precision.
    single = [x.astype(np.float32) for x in (grid.latitude, grid.longitude)]
    found = Grid.from_coordinates(*single)
    assert (found.kind, found.shape, found.north_first) == (
        grid.kind,
        grid.shape,
        north_first,
    )
    assert abs(found.longitude_origin - origin) <= 2.0**-23 * abs(origin)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("latitude", "longitude", "grid"),
    [
        # WeatherBench 2, cell-centred and with poles.
        (
            np.linspace(-87.1875, 87.1875, 32),
            np.arange(64) * 5.625,
            sphere.cell_centred(32, 64),
        ),
        (
            np.linspace(-90, 90, 32),
            np.arange(64) * 5.625,
            sphere.equiangular(32, 64),
        ),
        # ERA5 with poles and cell-centred, from Greenwich and from the date line.
        (
            np.linspace(90, -90, 721),
            np.arange(1440) * 0.25,
            sphere.equiangular(721, 1440, north_first=True),
        ),
        (
            np.linspace(89.875, -89.875, 720),
            np.arange(1440) * 0.25 - 179.875,
            sphere.cell_centred(720, 1440, north_first=True, longitude_origin=-179.875),
        ),
        # Origins that single precision does not hold.
        (
            np.linspace(-90, 90, 19),
            np.arange(1080) / 3 + 1 / 6,
            sphere.equiangular(19, 1080, longitude_origin=1 / 6),
        ),
        (
            np.linspace(-90, 90, 19),
            np.arange(36) * 10 + 0.1,
            sphere.equiangular(19, 36, longitude_origin=0.1),
        ),
    ],
)
def test_published_grids_are_recognised_in_either_precision(
    latitude, longitude, grid, dtype
):
    found = Grid.from_coordinates(latitude.astype(dtype), longitude.astype(dtype))
    assert found == grid


def test_printed_gaussian_latitudes_are_recognised():
    # T21's as tables print them, to three decimals.
    printed = [85.761, 80.269, 74.745, 69.213, 63.679, 58.143, 52.607, 47.070]
    printed += [41.532, 35.995, 30.458, 24.920, 19.382, 13.844, 8.307, 2.769]
    latitude = jnp.array(printed + [-x for x in printed[::-1]])
    grid = Grid.from_coordinates(latitude, np.arange(64) * 5.625)
    assert grid == sphere.gauss_legendre(32, 64, north_first=True)


def test_longitudes_may_jump_by_a_turn():
    longitude = np.concatenate([np.arange(0, 180, 10), np.arange(-180, 0, 10)])
    assert Grid.from_coordinates(WITH_POLES, longitude) == sphere.equiangular(19, 36)


@pytest.mark.parametrize("make", MAKERS)
def test_the_tolerance_is_a_fraction_of_the_spacing(make):
    grid = make(18, 36)
    latitude, longitude = grid.latitude.copy(), grid.longitude.copy()
    latitude[4] += 0.09
    longitude[5] += 0.09
    assert Grid.from_coordinates(latitude, longitude) == grid
    with pytest.raises(ValueError, match=r"at row 4, which is"):
        Grid.from_coordinates(latitude, longitude, tolerance=5e-3)
    with pytest.raises(ValueError, match=r"from column 4 \(40\) to column 5 \(50.09\)"):
        Grid.from_coordinates(grid.latitude, longitude, tolerance=5e-3)


@pytest.mark.parametrize(
    ("latitude", "message"),
    [
        (
            np.linspace(-80, 80, 17),
            r"nearest, gauss-legendre, differs by up to .* degrees \(allowed: 0.11\), "
            f"at row 0, which is -80 and should be {GAUSS_17:g}. Its steps are all 10 ",
        ),
        (
            np.linspace(90, -89.75, 720),
            "the equiangular grid of 721 rows without its row at -90: put that back",
        ),
        (np.linspace(0, 180, 19), "is colatitude: give 90 - it"),
        (np.deg2rad(WITH_POLES), "is in radians: give degrees"),
        (np.arange(0, 360, 10), "are the arguments swapped"),
        (np.array([0.0, 10, 5]), r"from row 1 \(10\) to row 2 \(5\)"),
        (np.array([0.0, 0, 10]), r"strictly.*from row 0 \(0\) to row 1 \(0\)"),
        (np.array([0.0, np.nan]), "1 values that are not finite, the first at index 1"),
        (np.zeros((2, 2)), r"one axis, got shape \(2, 2\)"),
        (np.array([0.0]), "at least 2 values, got 1"),
    ],
)
def test_unknown_latitudes_are_explained(latitude, message):
    with pytest.raises(ValueError, match=message):
        Grid.from_coordinates(latitude, EVERY_TEN)


@pytest.mark.parametrize(
    ("longitude", "message"),
    [
        (np.arange(0, 370, 10), r"repeats its first value at the end \(0 and 360"),
        (np.arange(-180, 190, 10), "drop the wrap column"),
        (np.array([0.0, 360.0]), "drop the wrap column"),
        (np.arange(0, 180, 10), "steps of 10 cover 180 of 360 degrees"),
        (np.arange(350, -10, -10), "runs west"),
        (-EVERY_TEN, "runs west"),
        (np.deg2rad(EVERY_TEN), "is in radians"),
        (
            np.delete(EVERY_TEN, 7),
            r"from column 6 \(60\) to column 7 \(80\) it steps 20 degrees, "
            "elsewhere 10",
        ),
        (np.append(EVERY_TEN, 353.0), "equal steps east: from column 35"),
        (np.zeros(4), "steps of 0 cover 0 of 360"),
        (np.array([0.0, np.inf]), "not finite"),
        (np.zeros((2, 2)), "one axis"),
        (np.zeros(0), r"one axis, got shape \(0,\)"),
    ],
)
def test_unknown_longitudes_are_explained(longitude, message):
    with pytest.raises(ValueError, match=message):
        Grid.from_coordinates(WITH_POLES, longitude)
