import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens import sphere
from skyens.nn import Plane
from skyens.nn._domain import check_on, coordinates, pad, pad_columns, pad_rows

GRIDS = [
    sphere.gauss_legendre(6, 8),
    sphere.equiangular(7, 8, north_first=True, longitude_origin=20.0),
    sphere.cell_centred(6, 8, north_first=True),
]


def smooth(colatitude, longitude):
    """A polynomial of place in space, which knows no edges of a map."""
    x = np.sin(colatitude)[:, None] * np.cos(longitude)
    y = np.sin(colatitude)[:, None] * np.sin(longitude)
    z = np.cos(colatitude)[:, None] + 0 * x
    return x + 2 * y - z + 3 * x * y + x * z - y**3


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.kind)
def test_beyond_the_pole_a_smooth_field_goes_on(grid, width):
    colatitude, longitude = grid.colatitude, np.deg2rad(grid.longitude)
    # Past a pole the angle from it goes on, with a sign or beyond pi.
    mirrored = int(grid.kind == "equiangular")
    ends = colatitude[[0, -1]].round()
    before = 2 * np.pi * (ends[0] > 1) - colatitude[mirrored : mirrored + width][::-1]
    stop = len(colatitude) - mirrored
    after = 2 * np.pi * (ends[1] > 1) - colatitude[stop - width : stop][::-1]
    step = np.deg2rad(360 / grid.n_longitude)
    sides = step * np.arange(1, width + 1)
    wide = np.concatenate(
        [longitude[0] - sides[::-1], longitude, longitude[-1] + sides]
    )
    expected = smooth(np.concatenate([before, colatitude, after]), wide)
    padded = pad(grid, jnp.asarray(smooth(colatitude, longitude)), width)
    np.testing.assert_allclose(padded, expected, atol=1e-13)


def test_an_odd_half_circle_ends_between_two_longitudes():
    grid = sphere.cell_centred(4, 5)
    field = np.random.default_rng(0).normal(size=(4, 5))
    padded = pad_rows(grid, jnp.asarray(field), 1, 0)
    mean = [(field[0, (j + 2) % 5] + field[0, (j + 3) % 5]) / 2 for j in range(5)]
    np.testing.assert_allclose(padded[0], mean, rtol=1e-14)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("columns", [False, True])
def test_a_plane_goes_on_as_its_axes_say(rows, columns):
    field = np.random.default_rng(0).normal(size=(2, 3, 4))
    padded = pad(Plane((3, 4), (rows, columns)), jnp.asarray(field), 2)
    places = lambda size, periodic: (
        np.arange(-2, size + 2) % size
        if periodic
        else np.clip(np.arange(-2, size + 2), 0, size - 1)
    )
    expected = field[:, places(3, rows)][:, :, places(4, columns)]
    np.testing.assert_array_equal(padded, expected)


def test_columns_alone_go_around_the_globe():
    field = jnp.arange(24.0, dtype=jnp.float32).reshape(6, 4)
    padded = pad_columns(sphere.cell_centred(6, 4), field, 1)
    assert padded.dtype == jnp.float32
    np.testing.assert_array_equal(padded[:, 0], field[:, -1])
    np.testing.assert_array_equal(padded[:, -1], field[:, 0])


def test_networks_are_told_the_latitude_on_the_sphere_only():
    grid = GRIDS[0]
    sine, cosine = coordinates(grid)
    np.testing.assert_allclose(sine[:, 3], np.sin(np.deg2rad(grid.latitude)))
    np.testing.assert_allclose(cosine[:, 5], np.cos(np.deg2rad(grid.latitude)))
    assert coordinates(Plane((3, 4))).shape == (0, 3, 4)


def test_planes_are_static():
    plane = Plane((3, 4), (True, False))
    assert jax.tree.leaves(plane) == []
    assert hash(plane) == hash(Plane((3, 4), (True, False)))


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match=r"two positive sizes, got \(0, 4\)"):
        Plane((0, 4))
    with pytest.raises(ValueError, match="7 rows beyond a pole"):
        pad(sphere.cell_centred(6, 4), jnp.zeros((6, 4)), 7)
    with pytest.raises(ValueError, match=r"= \(2, 6, 4\), got \(1, 6, 4\)"):
        check_on(sphere.cell_centred(6, 4), jnp.zeros((1, 6, 4)), 2, "x")
