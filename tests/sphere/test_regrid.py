from functools import partial

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.interpolate
import scipy.special
from hypothesis import given, settings, strategies as st

from skyens import sphere
from skyens.sphere import Regridder

MAKERS = [sphere.gauss_legendre, sphere.equiangular, sphere.cell_centred]
METHODS = [
    sphere.Conservative(),
    sphere.Bilinear(),
    sphere.Bicubic(),
    sphere.Spectral(),
]
# Both latitude orders, odd and even columns, origins that share no meridian.
SOURCE = sphere.gauss_legendre(9, 17, longitude_origin=5.0)
TARGET = sphere.equiangular(12, 20, north_first=True, longitude_origin=-101.3)
PAIRS = [
    (SOURCE, TARGET),
    (TARGET, SOURCE),
    (SOURCE, sphere.cell_centred(7, 9, north_first=True)),
    (sphere.cell_centred(4, 1), TARGET),
    (TARGET, sphere.equiangular(2, 3, longitude_origin=400.0)),
]

grids = st.builds(
    lambda make, n, m, north_first, origin: make(
        n, m, north_first=north_first, longitude_origin=origin
    ),
    st.sampled_from(MAKERS),
    st.integers(2, 40),
    st.integers(1, 50),
    st.booleans(),
    st.floats(-360, 360),
)


def harmonic(grid, l, m):
    colatitude, longitude = np.meshgrid(
        grid.colatitude, np.deg2rad(grid.longitude), indexing="ij"
    )
    return jnp.asarray(scipy.special.sph_harm_y(l, m, colatitude, longitude).real)


def integral(grid, field):
    return np.sum(grid.cell_areas[:, None] * np.array(field, np.float64), (-2, -1))


def shares(source, target):
    """The area of every source cell within every target cell, edge by edge."""
    rows = np.zeros((target.n_latitude, source.n_latitude))
    columns = np.zeros((target.n_longitude, source.n_longitude))
    inner = lambda grid: np.sin(np.deg2rad(grid.latitude_edges))
    for i, (a, b) in enumerate(zip(inner(target), inner(target)[1:], strict=False)):
        for j, (c, d) in enumerate(zip(inner(source), inner(source)[1:], strict=False)):
            rows[i, j] = max(0, min(max(a, b), max(c, d)) - max(min(a, b), min(c, d)))
    outer = lambda grid: np.deg2rad(grid.longitude_edges)
    for i, (a, b) in enumerate(zip(outer(target), outer(target)[1:], strict=False)):
        for j, (c, d) in enumerate(zip(outer(source), outer(source)[1:], strict=False)):
            for turn in 2 * np.pi * np.arange(-4, 5):
                columns[i, j] += max(0, min(b, d + turn) - max(a, c + turn))
    return rows, columns


@settings(deadline=None, max_examples=5)
@given(source=grids, target=grids, seed=st.integers(0, 2**31))
def test_conservative_means_are_areas_shared_and_keep_the_integral(
    source, target, seed
):
    field = np.random.default_rng(seed).normal(size=source.shape)
    regridded = Regridder(source, target)(jnp.asarray(field))
    rows, columns = shares(source, target)
    mean = rows @ field @ columns.T / target.cell_areas[:, None]
    # The reference takes differences of sines: digits go where polar cells are small.
    smallest = min(target.cell_areas) * target.n_longitude
    np.testing.assert_allclose(regridded, mean, atol=1e-13 + 1e-14 / smallest)
    np.testing.assert_allclose(
        integral(target, regridded), integral(source, field), atol=1e-12
    )
    # A mean overshoots by no more than rounding.
    assert regridded.max() <= field.max() + 1e-14 * abs(field).max()
    assert regridded.min() >= field.min() - 1e-14 * abs(field).max()


def test_conservative_on_nested_grids_is_the_mean_of_blocks():
    source = sphere.cell_centred(12, 24, longitude_origin=7.5)
    target = sphere.cell_centred(4, 6, north_first=True, longitude_origin=30.0)
    field = jr.normal(jr.key(0), (2, 12, 24))
    blocks = np.array(field).reshape(2, 4, 3, 6, 4)
    area = source.cell_areas.reshape(4, 3)[None, :, :, None, None]
    mean = (blocks * area).sum((2, 4)) / (area.sum(2) * 4)[..., 0]
    regridded = Regridder(source, target)(field)
    chex.assert_trees_all_close(regridded, mean[:, ::-1], atol=1e-14)
    # Back, each fine cell shows the coarse one that holds it.
    back = Regridder(target, source)(regridded)
    steps = np.repeat(np.repeat(mean, 3, 1), 4, 2)
    chex.assert_trees_all_close(back, steps, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("source", "target"), PAIRS[2:4])
def test_constants_stay(method, source, target):
    field = jnp.full((2, *source.shape), -7.0)
    regridded = Regridder(source, target, method)(field)
    chex.assert_trees_all_close(
        regridded, np.full((2, *target.shape), -7.0), rtol=1e-12
    )


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("other", MAKERS)
def test_spectral_is_exact_for_harmonics_that_both_grids_resolve(make, other):
    source = make(14, 26, north_first=True, longitude_origin=31.0)
    target = other(11, 19, longitude_origin=-77.0)
    regrid = Regridder(source, target, sphere.Spectral())
    lmax = min(source.largest_lmax, target.largest_lmax)
    for l, m in ((0, 0), (1, 1), (lmax - 1, 2), (lmax, lmax), (lmax, 0)):
        expected = harmonic(target, l, m)
        chex.assert_trees_all_close(
            regrid(harmonic(source, l, m)), expected, atol=1e-12
        )
    beyond = harmonic(source, lmax + 1, 3)
    chex.assert_trees_all_close(regrid(beyond), jnp.zeros(target.shape), atol=1e-12)
    low = Regridder(source, target, sphere.Spectral(lmax=2))
    chex.assert_trees_all_close(
        low(harmonic(source, 3, 1)), jnp.zeros(target.shape), atol=1e-12
    )


@pytest.mark.parametrize(
    ("make", "columns"),
    [
        (sphere.gauss_legendre, (49, 97)),
        (sphere.equiangular, (48, 96)),
        (sphere.cell_centred, (49, 97)),
    ],
)
@pytest.mark.parametrize(
    ("method", "order"), [(sphere.Bilinear(), 2), (sphere.Bicubic(), 3)]
)
def test_interpolation_converges_at_its_order_over_the_poles_too(
    make, columns, method, order
):
    target = sphere.equiangular(37, 41, longitude_origin=3.0)
    errors = []
    for n in columns:
        source = make(n // 2, n, north_first=True, longitude_origin=13.0)
        value = Regridder(source, target, method)(harmonic(source, 3, 1))
        errors.append(float(jnp.abs(value - harmonic(target, 3, 1)).max()))
    # Fourth order would be 16, third 8, second 4; the grids hit the target unevenly.
    assert errors[0] / errors[1] > 0.75 * 2**order
    assert errors[1] < {2: 3e-3, 3: 1e-4}[order]


@pytest.mark.parametrize("make", MAKERS)
def test_bicubic_is_near_scipys_spline_in_the_interior(make):
    source, target = make(36, 72), sphere.cell_centred(31, 40)
    field = np.array(harmonic(source, 5, 3))
    spline = scipy.interpolate.RectBivariateSpline(
        source.latitude, source.longitude, field, kx=3, ky=3
    )
    value = Regridder(source, target, sphere.Bicubic())(jnp.asarray(field))
    inner = (
        np.abs(target.latitude) < 70,
        (target.longitude > 20) & (target.longitude < 340),
    )
    expected = spline(target.latitude[inner[0]], target.longitude[inner[1]])
    # Both are within their own error of the harmonic: cubic slopes, h^3 / 24 of the
    # third derivative (at most 5^3 of the amplitude).
    error = np.deg2rad(5) ** 3 / 24 * 5**3 * np.abs(field).max()
    np.testing.assert_allclose(value[np.ix_(*inner)], expected, atol=error)


@pytest.mark.parametrize(
    ("source", "target", "method"),
    [
        (*PAIRS[0], sphere.Bilinear()),
        (*PAIRS[0], sphere.Bicubic(vector=True)),
        (*PAIRS[1], sphere.Bicubic()),
        (*PAIRS[2], sphere.Bilinear(vector=True)),
        (*PAIRS[3], sphere.Bicubic()),
        (*PAIRS[4], sphere.Bilinear()),
    ],
)
def test_regridding_is_interpolating_to_all_points(source, target, method):
    field = jr.normal(jr.key(0), (2, *source.shape))
    latitude, longitude = np.meshgrid(target.latitude, target.longitude, indexing="ij")
    points = jnp.asarray(latitude.ravel()), jnp.asarray(longitude.ravel())
    expected = sphere.interpolate(source, field, *points, method)
    value = Regridder(source, target, method)(field)
    chex.assert_trees_all_close(value, expected.reshape(value.shape), atol=1e-11)


@pytest.mark.parametrize("method", METHODS)
def test_a_grid_to_itself_and_to_its_mirror_image(method):
    make = partial(sphere.cell_centred, 6, 13)
    source = make(longitude_origin=0.3)
    field = harmonic(source, 4, 2) + harmonic(source, 5, 5)
    same = Regridder(source, source, method)(field)
    chex.assert_trees_all_close(same, field, atol=1e-13)
    flipped = make(north_first=True, longitude_origin=0.3 + 360 / 13 - 720)
    expected = jnp.roll(field[::-1], -1, axis=-1)
    value = Regridder(source, flipped, method)(field)
    chex.assert_trees_all_close(value, expected, atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_it_is_linear_and_knows_its_adjoint_under_jit_and_vmap(method):
    regrid = Regridder(SOURCE, TARGET, method)
    x = jr.normal(jr.key(0), (3, 2, *SOURCE.shape))
    value = jax.jit(Regridder.__call__)(regrid, x)
    y = jr.normal(jr.key(1), value.shape)
    apply = jax.jit(lambda regrid, x, y: (regrid(x), jax.vjp(regrid, x)[1](y)[0]))
    jitted, adjoint = apply(regrid, x, y)
    chex.assert_trees_all_close(jitted, value, rtol=1e-12, atol=1e-12)
    chex.assert_trees_all_close(jnp.vdot(value, y), jnp.vdot(x, adjoint), atol=1e-10)
    tangent = jax.jit(lambda regrid, x: jax.jvp(regrid, (0 * x,), (x,))[1])(regrid, x)
    chex.assert_trees_all_close(tangent, value, atol=1e-12)
    mapped = jax.jit(lambda regrid, x: jax.vmap(jax.vmap(regrid))(x))(regrid, x)
    chex.assert_trees_all_close(mapped, value, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_the_dtype_stays(method):
    regrid, call = Regridder(SOURCE, TARGET, method), jax.jit(Regridder.__call__)
    # Numbers that bfloat16 holds, so that all start from the same.
    field = jr.randint(jr.key(0), SOURCE.shape, -100, 100).astype(jnp.float64)
    exact = np.array(call(regrid, field))
    for dtype in (jnp.bfloat16, jnp.float32):
        value = call(regrid, field.astype(dtype))
        assert value.dtype == dtype
        slope = jax.eval_shape(jax.grad(lambda x: regrid(x).sum()), value_of(dtype))
        assert slope.dtype == dtype
        error = 8 * float(jnp.finfo(dtype).eps) * np.abs(exact).max()
        np.testing.assert_allclose(value.astype(np.float64), exact, atol=error)


def value_of(dtype):
    return jax.ShapeDtypeStruct(SOURCE.shape, dtype)


def test_the_integral_of_era5s_grid_stays_in_single_precision():
    source = sphere.equiangular(721, 1440, north_first=True)
    target = sphere.cell_centred(32, 64)
    # Geopotential: large numbers, whose mean must not drift.
    field = 54_000 + 1_000 * jr.normal(jr.key(0), source.shape, jnp.float32)
    regrid = Regridder(source, target)
    value = regrid(field)
    ratio = integral(target, value) / integral(source, field)
    np.testing.assert_allclose(ratio, 1, rtol=1e-7)
    # 721 x 32 + 1440 x 64 shares in full would be more than 0.9 MB in double.
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(regrid)) < 2e5


@pytest.mark.parametrize("as_nan", [False, True])
def test_missing_points_leave_the_mean_of_the_valid_area(as_nan):
    rng = np.random.default_rng(0)
    field, where = rng.normal(size=(2, *SOURCE.shape)), rng.random(SOURCE.shape) < 0.5
    where[:3] = False
    rows, columns = shares(SOURCE, TARGET)
    area = rows @ where @ columns.T
    total = rows @ (field * where) @ columns.T
    expected = np.where(area > 1e-12, total / np.maximum(area, 1e-12), np.nan)
    assert np.isnan(expected).any()
    assert not np.isnan(expected).all()
    regrid = Regridder(SOURCE, TARGET)
    holed = jnp.where(where, field, jnp.nan if as_nan else 1e30)
    mask = None if as_nan else jnp.asarray(where)
    value = jax.jit(lambda regrid, x: regrid(x, mask))(regrid, holed)
    np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-12)
    fraction = np.array(regrid.valid_fraction(jnp.asarray(where)))
    whole = TARGET.cell_areas[:, None]
    np.testing.assert_allclose(fraction, area / whole, atol=1e-12)
    # The integral over what is valid stays.
    valid = np.nansum(np.array(value) * fraction * whole, (-2, -1))
    inside = np.sum(field * where * SOURCE.cell_areas[:, None], (-2, -1))
    np.testing.assert_allclose(valid, inside, rtol=1e-12)
    gradient = jax.grad(lambda x: jnp.nansum(regrid(x, mask)))(holed)
    chex.assert_tree_all_finite(gradient)
    assert (gradient[:, ~where] == 0).all()
    assert (gradient[:, where] != 0).all()


def test_cells_with_too_little_of_their_area_are_missing():
    source = sphere.cell_centred(4, 8)
    target = sphere.cell_centred(2, 4, longitude_origin=22.5)  # nested
    where = jnp.ones(source.shape, bool).at[0, :2].set(False).at[3, 7].set(False)
    fraction = Regridder(source, target).valid_fraction(where)
    for least in (0.0, 0.4, 0.8, 1.0):
        value = Regridder(source, target, sphere.Conservative(least=least))(
            jnp.ones(source.shape), where
        )
        np.testing.assert_array_equal(jnp.isnan(value), fraction < least - 1e-9)
    # The polar half of a band has 1 - sin(45 degrees) of its area.
    np.testing.assert_allclose(fraction[0, 0], np.sqrt(0.5), rtol=1e-14)
    np.testing.assert_allclose(fraction[1, 3], (1 + np.sqrt(0.5)) / 2, rtol=1e-14)
    nothing = Regridder(source, target)(jnp.full(source.shape, jnp.nan))
    assert jnp.isnan(nothing).all()


@pytest.mark.parametrize("method", [sphere.Bilinear(), sphere.Bicubic()])
def test_a_nan_stays_within_reach(method):
    source, target = sphere.equiangular(13, 24), sphere.equiangular(25, 48)
    field = jnp.zeros(source.shape).at[6, 12].set(jnp.nan)
    value = Regridder(source, target, method)(field)
    reach = 1 if method == sphere.Bilinear() else 3
    near = np.zeros(target.shape, bool)
    near[12 - reach : 13 + reach, 24 - reach : 25 + reach] = True
    # Rows and columns that coincide with other points of the source look at no more.
    near[12 - reach : 13 + reach][np.arange(-reach, reach + 1) == 2] = False
    near[12 - reach : 13 + reach][np.arange(-reach, reach + 1) == -2] = False
    near[:, [22, 26]] = False
    np.testing.assert_array_equal(jnp.isnan(value), near)


def test_any_callable_of_two_grids_is_a_method():
    def zonal(source, target):
        return lambda field: jnp.broadcast_to(
            field.mean(), (*field.shape[:-2], *target.shape)
        )

    regrid = Regridder(SOURCE, TARGET, zonal)
    value = eqx.filter_jit(regrid)(jnp.full(SOURCE.shape, 2.0))
    chex.assert_trees_all_close(value, np.full(TARGET.shape, 2.0))


def test_wrong_use_is_reported():
    regrid = Regridder(SOURCE, TARGET)
    with pytest.raises(ValueError, match="does not lie on this"):
        regrid(jnp.zeros(TARGET.shape))
    with pytest.raises(ValueError, match="`where` of shape"):
        regrid.valid_fraction(jnp.ones(TARGET.shape, bool))
    with pytest.raises(ValueError, match=r"`where` is for `Conservative\(\)`"):
        Regridder(SOURCE, TARGET, sphere.Bilinear())(
            jnp.zeros(SOURCE.shape), jnp.ones(SOURCE.shape, bool)
        )
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 2"):
        sphere.Conservative(least=2.0)
    with pytest.raises(ValueError, match=r"between 0 and 8, what both grids .* got 9"):
        Regridder(SOURCE, TARGET, sphere.Spectral(lmax=9))
