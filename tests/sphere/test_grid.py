import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens import sphere

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
    n=st.integers(2, 300),
    m=st.integers(1, 100),
    north_first=st.booleans(),
    origin=st.floats(-360, 360),
)
def test_cells_cover_the_sphere_and_hold_their_points(make, n, m, north_first, origin):
    grid = make(n, m, north_first=north_first, longitude_origin=origin)
    south = np.sort(grid.latitude_edges)
    assert grid.latitude_edges.shape == (n + 1,)
    assert south[0] == -90
    assert south[-1] == 90
    assert (grid.latitude_edges[0] == 90) == north_first
    assert (np.diff(south) > 0).all()
    rows = np.sort(grid.latitude)
    assert (south[:-1] <= rows).all()
    assert (rows <= south[1:]).all()
    np.testing.assert_allclose(south[1:-1] * 2, rows[1:] + rows[:-1], atol=1e-13)
    middle = (grid.longitude_edges[1:] + grid.longitude_edges[:-1]) / 2
    np.testing.assert_allclose(middle, grid.longitude, atol=2e-13)
    np.testing.assert_allclose(np.ptp(grid.longitude_edges), 360, rtol=1e-14)
    np.testing.assert_allclose(grid.cell_areas.sum() * m, 4 * np.pi, rtol=3e-14)
    # The difference of sines itself loses digits, in proportion to 1.
    sines = np.abs(np.diff(np.sin(np.deg2rad(grid.latitude_edges)))) * 2 * np.pi / m
    np.testing.assert_allclose(grid.cell_areas, sines, atol=2e-15)


def test_the_polar_cap_of_a_fine_grid_has_its_area_to_rounding():
    grid = sphere.equiangular(721, 1440)
    # 1 - cos(a) = 2 sin(a / 2)^2, for the cap of half a row's width.
    cap = 2 * np.pi * 2 * np.sin(np.deg2rad(0.125) / 2) ** 2
    np.testing.assert_allclose(grid.cell_areas[[0, -1]] * 1440, cap, rtol=1e-12)


def test_latitudes_of_equal_steps_are_the_decimals_themselves():
    era5 = sphere.equiangular(721, 1440, north_first=True)
    assert era5.latitude.tolist() == [90 - i / 4 for i in range(721)]
    assert era5.longitude.tolist() == [i / 4 for i in range(1440)]
    cells = sphere.cell_centred(720, 1440)
    assert cells.latitude.tolist() == [-89.875 + i / 4 for i in range(720)]


def test_a_grid_is_static_and_hashable():
    grid = sphere.equiangular(19, 36)
    assert not jax.tree.leaves(grid)
    assert hash(grid) == hash(sphere.equiangular(19, 36))
    area = jax.jit(lambda grid: grid.weights.sum() * grid.n_longitude)(grid)
    assert np.isclose(area, 4 * np.pi)


def test_finite_fields_pass_and_traced_ones_are_left_alone():
    grid = sphere.equiangular(5, 8)
    field = jnp.ones((2, 5, 8))
    assert grid.check_finite(field) is field
    bad = field.at[1, 0, 2].set(jnp.nan)
    checked = jax.jit(grid.check_finite)(bad)
    np.testing.assert_array_equal(checked, bad)
    assert jnp.isnan(jax.vmap(grid.check_finite)(bad)).sum() == 1


@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
def test_the_first_value_that_is_not_finite_is_shown(as_array):
    grid = sphere.equiangular(5, 8, north_first=True, longitude_origin=-180.0)
    field = np.ones((2, 5, 8), np.float32)
    field[1, 1, 2], field[1, 4, 0] = np.inf, np.nan
    message = (
        r"`height` must be finite: 2 of 80 values are not, the first, at \(1, 1, 2\) "
        r"\(latitude 45, longitude -90\), is inf"
    )
    with pytest.raises(eqx.EquinoxRuntimeError, match=message):
        grid.check_finite(as_array(field), "height")
    with pytest.raises(ValueError, match="does not lie on this"):
        grid.check_finite(jnp.ones((8, 5)))


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="at least 2, got 1"):
        sphere.equiangular(1, 4)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        sphere.equiangular(2, 0)
    with pytest.raises(ValueError, match="must be finite, got nan"):
        sphere.equiangular(4, 8, longitude_origin=float("nan"))
    with pytest.raises(ValueError, match=r"must be \(latitude, longitude\) = \(4, 8\)"):
        sphere.equiangular(4, 8).check(np.zeros((8, 4)))
