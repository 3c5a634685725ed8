import jax
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens import sphere
from skyens.sphere import Grid

MAKERS = [sphere.gauss_legendre, sphere.equiangular, sphere.cell_centred]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("n", [2, 5, 32, 61])
def test_weights_integrate_powers_of_sine_latitude(make, n):
    grid = make(n, 8)
    x = np.sin(np.deg2rad(grid.latitude))
    exact_to = 2 * n - 1 if grid.kind == "gauss-legendre" else n - 1
    assert np.isclose(grid.weights.sum() * 8, 4 * np.pi, rtol=1e-14)
    for power in range(min(exact_to, 12) + 1):
        integral = np.sum(x**power * grid.weights) * 8
        exact = 4 * np.pi / (power + 1) if power % 2 == 0 else 0
        assert np.isclose(integral, exact, rtol=1e-12, atol=1e-13)


@settings(deadline=None, max_examples=60)
@given(
    make=st.sampled_from(MAKERS),
    n=st.integers(3, 200),
    m=st.integers(3, 300),
    north_first=st.booleans(),
    origin=st.floats(-180, 180).map(lambda x: round(x, 3)),
)
def test_coordinates_are_recognised(make, n, m, north_first, origin):
    grid = make(n, m, north_first=north_first, longitude_origin=origin)
    assert Grid.from_coordinates(grid.latitude, grid.longitude) == grid


def test_published_grids_are_recognised():
    weatherbench = np.linspace(-87.1875, 87.1875, 32)
    grid = Grid.from_coordinates(weatherbench, np.arange(64) * 5.625)
    assert grid == sphere.cell_centred(32, 64)
    era5 = np.linspace(90, -90, 721, dtype=np.float32)
    longitude = np.arange(1440, dtype=np.float32) * np.float32(0.25)
    grid = Grid.from_coordinates(era5, longitude)
    assert grid == sphere.equiangular(721, 1440, north_first=True)
    # T21 Gaussian latitudes as printed in tables, to three decimals.
    printed = [85.761, 80.269, 74.745, 69.213, 63.679, 58.143, 52.607, 47.070]
    printed += [41.532, 35.995, 30.458, 24.920, 19.382, 13.844, 8.307, 2.769]
    latitude = np.array(printed + [-x for x in printed[::-1]])
    grid = Grid.from_coordinates(latitude, np.arange(64) * 5.625)
    assert grid == sphere.gauss_legendre(32, 64, north_first=True)


def test_longitudes_may_jump_by_a_turn():
    longitude = np.concatenate([np.arange(0, 180, 10), np.arange(-180, 0, 10)])
    grid = Grid.from_coordinates(sphere.equiangular(19, 36).latitude, longitude)
    assert grid == sphere.equiangular(19, 36)


def test_a_grid_is_static_and_hashable():
    grid = sphere.equiangular(19, 36)
    assert not jax.tree.leaves(grid)
    assert hash(grid) == hash(sphere.equiangular(19, 36))
    shape = jax.jit(lambda grid: grid.weights.sum() * grid.n_longitude)(grid)
    assert np.isclose(shape, 4 * np.pi)


@pytest.mark.parametrize(
    ("latitude", "longitude", "message"),
    [
        (np.linspace(-80, 80, 17), np.arange(0, 360, 10), "differs by up to"),
        (np.linspace(-90, 90, 19), np.arange(0, 370, 10), "wrap column"),
        (np.linspace(-90, 90, 19), np.arange(0, 180, 10), "cover the circle"),
        (np.linspace(-90, 90, 19), np.arange(350, -10, -10), "runs west"),
        (np.arange(0, 360, 10), np.linspace(-90, 90, 19), "are the arguments swapped"),
        (np.array([0.0, 10, 5]), np.arange(0, 360, 10), "strictly"),
        (np.array([0.0, np.nan]), np.arange(0, 360, 10), "not finite"),
        (np.zeros((2, 2)), np.arange(0, 360, 10), "one axis"),
    ],
)
def test_unknown_coordinates_are_explained(latitude, longitude, message):
    with pytest.raises(ValueError, match=message):
        Grid.from_coordinates(latitude, longitude)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="at least 2, got 1"):
        sphere.equiangular(1, 4)
    with pytest.raises(ValueError, match=r"must be \(latitude, longitude\) = \(4, 8\)"):
        sphere.equiangular(4, 8).check(np.zeros((8, 4)))
