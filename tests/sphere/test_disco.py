import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial.legendre import leggauss
from scipy.special import eval_legendre

from skyens import sphere
from skyens.sphere import Disco, HarmonicFilters, HatFilters

apply = eqx.filter_jit(Disco.__call__)
SMALL = {
    "thinned": (
        sphere.equiangular(9, 16, longitude_origin=5.0),
        sphere.gauss_legendre(6, 8, north_first=True),
    ),
    "odd": (sphere.gauss_legendre(8, 15, north_first=True), sphere.equiangular(5, 5)),
    "same": (sphere.cell_centred(8, 15), sphere.cell_centred(8, 15)),
}


def places(grid):
    """Unit vectors to each point, and of its east and north."""
    theta, lam = np.meshgrid(grid.colatitude, np.deg2rad(grid.longitude), indexing="ij")
    up = [np.sin(theta) * np.cos(lam), np.sin(theta) * np.sin(lam), np.cos(theta)]
    east = [-np.sin(lam), np.cos(lam), 0 * lam]
    north = [-np.cos(theta) * np.cos(lam), -np.cos(theta) * np.sin(lam), np.sin(theta)]
    return tuple(np.stack(vector, -1) for vector in (up, east, north))


def dense(source, target, filters, cutoff, gain):
    """Every target point's sum over every source point, `(filter, target, source)`."""
    up, east, north = (v.reshape(-1, 3) for v in places(target))
    there = places(source)[0].reshape(-1, 3)
    weight = np.repeat(source.weights, source.n_longitude)
    x, y = east @ there.T, north @ there.T
    angle, turn = np.arctan2(np.hypot(x, y), up @ there.T), np.arctan2(y, x)
    x, y = angle / cutoff * np.cos(turn), angle / cutoff * np.sin(turn)
    inside = weight * (angle <= cutoff)
    window = np.cos(np.pi / 2 * np.minimum(angle / cutoff, 1)) ** 2 * inside
    whole = lambda f: f.sum(-1, keepdims=True)
    rows = []
    for psi, (scale, mean) in zip(filters(x, y), gain, strict=True):
        if mean == 1:  # never negative
            rows.append(psi * inside / whole(psi * inside))
        else:
            psi = psi * inside * scale / whole(window)
            rows.append(psi + (mean - whole(psi)) * window / whole(window))
    return np.stack(rows)


def continuous_gains(filters, cutoff):
    """The window over, and the mean of, the absolute filter: by cells of a square."""
    step = (np.arange(600) + 0.5) / 300 - 1
    x, y = np.meshgrid(step, step)
    r = np.hypot(x, y)
    area = np.sin(r * cutoff) / r * (r < 1)
    values = filters(x, y) * area
    absolute = np.abs(values).sum((1, 2))
    window = np.sum(np.cos(np.pi * r / 2) ** 2 * area)
    return np.stack([window / absolute, values.sum((1, 2)) / absolute], -1)


@pytest.mark.parametrize("pair", SMALL)
def test_hats_are_those_of_the_dense_sum(pair):
    source, target = SMALL[pair]
    filters, cutoff = HatFilters(2, 3), 1.1
    exact = dense(source, target, filters, cutoff, [(1, 1)] * 4)
    field = np.random.default_rng(0).normal(size=(2, *source.shape))
    expected = np.einsum("kts,bs->bkt", exact, field.reshape(2, -1))
    seen = apply(Disco(source, target, filters, cutoff), jnp.asarray(field))
    expected = jnp.asarray(expected.reshape(2, 4, *target.shape))
    chex.assert_trees_all_close(seen, expected, atol=1e-12)


@pytest.mark.parametrize("pair", SMALL)
def test_waves_are_those_of_the_dense_sum(pair):
    source, target = SMALL[pair]
    filters, cutoff = HarmonicFilters(3, 2), 1.3
    gains = continuous_gains(filters, cutoff)
    gains[0] = 1  # the window itself, up to rounding
    exact = dense(source, target, filters, cutoff, gains)
    field = np.random.default_rng(1).normal(size=source.shape)
    expected = jnp.asarray((exact @ field.ravel()).reshape(6, *target.shape))
    seen = apply(Disco(source, target, filters, cutoff), jnp.asarray(field))
    # The oracle's gains are sums over cells 1/300 wide: second order in that.
    chex.assert_trees_all_close(seen, expected, atol=1 / 300**2)


@pytest.mark.parametrize("pair", ["thinned", "same"])
def test_the_gradient_is_the_transposed_sum(pair):
    source, target = SMALL[pair]
    disco = Disco(source, target, HatFilters(2, 3), 1.1)
    exact = dense(source, target, HatFilters(2, 3), 1.1, [(1, 1)] * 4)
    weight = np.random.default_rng(2).normal(size=(4, *target.shape))
    total = lambda field: jnp.vdot(jnp.asarray(weight), disco(field))
    gradient = jax.jit(jax.grad(total))(jnp.zeros(source.shape))
    expected = np.einsum("kts,kt->s", exact, weight.reshape(4, -1))
    expected = jnp.asarray(expected.reshape(source.shape))
    chex.assert_trees_all_close(gradient, expected, atol=1e-12)


@pytest.mark.parametrize("pair", SMALL)
def test_a_turn_in_longitude_turns_what_is_seen(pair):
    source, target = SMALL[pair]
    disco = Disco(source, target, HarmonicFilters(), 1.2)
    field = jnp.asarray(np.random.default_rng(0).normal(size=source.shape))
    steps = source.n_longitude // target.n_longitude
    turned = apply(disco, jnp.roll(field, 2 * steps, -1))
    expected = jnp.roll(apply(disco, field), 2, -1)
    chex.assert_trees_all_close(turned, expected, atol=1e-13)


@pytest.mark.parametrize("make", [sphere.gauss_legendre, sphere.equiangular])
def test_isotropic_filters_scale_harmonics_about_any_axis(make):
    source, target, cutoff, degree = make(48, 96), sphere.equiangular(13, 24), 0.5, 3
    axis = np.array([2.0, -3.0, 6.0]) / 7
    harmonic = lambda grid: jnp.asarray(eval_legendre(degree, places(grid)[0] @ axis))
    filters = HatFilters(2, 1)
    seen = apply(Disco(source, target, filters, cutoff), harmonic(source))
    # Funk-Hecke: the factor is the filter's mean of the Legendre polynomial.
    node, weight = leggauss(400)
    r = (node + 1) / 2
    bell = filters(r, 0 * r) * np.sin(r * cutoff) * weight
    factors = bell @ eval_legendre(degree, np.cos(r * cutoff)) / bell.sum(-1)
    expected = np.multiply.outer(factors, harmonic(target))
    # Eight rows to the cutoff, and hats with kinks: second order in their spacing.
    tolerance = (np.pi / 48 / cutoff) ** 2 / 4
    chex.assert_trees_all_close(seen, jnp.asarray(expected), atol=tolerance)


@pytest.mark.parametrize("filters", [HarmonicFilters(), HatFilters(3, 4)])
def test_a_pattern_looks_the_same_wherever_it_lies(filters):
    # The target's rows from pole to pole; the pattern around one point of each.
    source, target = sphere.cell_centred(60, 120), sphere.equiangular(11, 30)
    cutoff = 0.4
    up, east, north = (v[:, 4] for v in places(target))
    there = places(source)[0].reshape(-1, 3).T
    x, y, z = (vector @ there for vector in (east, north, up))
    pattern = np.exp(x - 2 * y) * (1 + x * y) * np.cos(3 * x) * (1 + z)
    fields = jnp.asarray(pattern.reshape(11, *source.shape))
    seen = apply(Disco(source, target, filters, cutoff), fields)
    seen = np.asarray(seen)[np.arange(11), :, np.arange(11), 4]
    spread = np.abs(seen - seen[5]).max()
    assert np.abs(seen[5]).min() > 0.01
    # Second order in the spacing over the cutoff, of patterns of size 2 to 4.
    assert spread < (np.pi / 60 / cutoff) ** 2


@pytest.mark.parametrize("cutoff", [0.3, 2.0])
@pytest.mark.parametrize("filters", [HarmonicFilters(), HatFilters(2, 4)])
def test_constants_are_seen_alike_at_every_latitude(filters, cutoff):
    source, target = sphere.equiangular(25, 48), sphere.equiangular(13, 24)
    disco = Disco(source, target, filters, cutoff)
    seen = np.asarray(apply(disco, jnp.ones(source.shape)))
    exact = 1.0  # of filters that are nowhere negative
    if isinstance(filters, HarmonicFilters):
        exact = continuous_gains(filters, cutoff)[:, 1].reshape(-1, 1, 1)
    np.testing.assert_allclose(seen - exact, 0, atol=1 / 300**2)
    np.testing.assert_allclose(seen - seen[:, :1, :1], 0, atol=1e-13)
    np.testing.assert_allclose(seen[0], 1, atol=1e-13)


def test_either_order_of_rows_sees_the_same():
    field = jnp.asarray(np.random.default_rng(1).normal(size=(9, 16)))
    see = lambda source, target, field: apply(
        Disco(source, target, HarmonicFilters(), 0.9), field
    )
    upward, downward = (
        sphere.equiangular(9, 16, north_first=flip) for flip in (False, True)
    )
    once = see(upward, upward, field)
    flipped = see(downward, upward, jnp.flip(field, 0))
    chex.assert_trees_all_close(flipped, once, atol=1e-13)
    chex.assert_trees_all_close(see(upward, downward, field)[:, ::-1], once, atol=1e-13)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_the_dtype_is_kept_and_leading_axes_are_free(dtype):
    source, target = SMALL["thinned"]
    disco = Disco(source, target, HatFilters(2, 3), 1.1)
    field = np.random.default_rng(3).normal(size=(2, 1, *source.shape))
    seen = apply(disco, jnp.asarray(field, dtype))
    assert (seen.dtype, seen.shape) == (dtype, (2, 1, 4, *target.shape))
    one_by_one = jax.jit(jax.vmap(jax.vmap(lambda x: disco(x))))(jnp.asarray(field))
    error = 4 * float(jnp.finfo(dtype).eps)
    chex.assert_trees_all_close(seen.astype(float), one_by_one, atol=error)


def test_float32_tables_when_that_is_the_default():
    with jax.enable_x64(False):
        disco = Disco(*SMALL["same"], HarmonicFilters(), 1.0)
        seen = disco(jnp.ones((8, 15), jnp.float32))
    tables = [a.dtype for a in jax.tree.leaves(disco) if eqx.is_inexact_array(a)]
    assert tables == [jnp.complex64]
    assert seen.dtype == jnp.float32


def test_any_function_on_the_disc_may_be_a_filter():
    source = sphere.equiangular(19, 36)
    cap = lambda x, y: np.stack([np.ones_like(x), 2.0 * (x > 0)])
    disco = Disco(source, source, cap, np.deg2rad(30.0))
    assert disco.size == 2
    field = jnp.asarray(places(source)[0] @ np.array([0.0, 0.0, 1.0]))
    # The mean of the axis's coordinate over a cap: half one plus the cap's cosine.
    expected = (1 + np.cos(np.pi / 6)) / 2 * field
    # The rim cuts through cells: first order, a third of the radius each.
    chex.assert_trees_all_close(apply(disco, field)[0], expected, atol=0.03)


def test_wrong_use_is_reported():
    grid = sphere.cell_centred(8, 16)
    with pytest.raises(ValueError, match=r"`cutoff`.*\(0, pi\], got 0"):
        Disco(grid, grid, HatFilters(), 0.0)
    with pytest.raises(ValueError, match=r"16 longitudes must be a multiple of.*12"):
        Disco(grid, sphere.cell_centred(8, 12), HatFilters(), 1.0)
    with pytest.raises(ValueError, match=r"16 longitudes must be a multiple of.*32"):
        Disco(grid, sphere.cell_centred(8, 32), HatFilters(), 1.0)
    with pytest.raises(ValueError, match=r"0.2 rad is too small.*filter 2 of 5"):
        Disco(grid, grid, HatFilters(), 0.2)
    with pytest.raises(ValueError, match=r"0.01 rad is too small.*filter 0 of 9"):
        Disco(grid, sphere.equiangular(8, 16), HarmonicFilters(), 0.01)
    with pytest.raises(ValueError, match="does not lie on this cell-centred grid"):
        Disco(grid, grid, HatFilters(), 1.0)(jnp.ones((16, 8)))
    with pytest.raises(ValueError, match="number 0 is 0 all over the disc"):
        Disco(grid, grid, lambda x, y: 0 * x[None], 1.0)
