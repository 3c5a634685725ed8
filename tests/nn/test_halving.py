import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens import sphere
from skyens.nn import Halving, Plane
from skyens.nn._halving import halve
from skyens.training import trainable

DOMAINS = [
    sphere.gauss_legendre(8, 12, longitude_origin=10.0),
    sphere.equiangular(9, 12, north_first=True),
    sphere.equiangular(8, 12),
    sphere.cell_centred(7, 12, north_first=True),
    Plane((8, 12), (True, False)),
]
up = eqx.filter_jit(Halving.up)
down = eqx.filter_jit(Halving.down)
each_domain = pytest.mark.parametrize("domain", DOMAINS, ids=str)


def fields(domain, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, *domain.shape)))


def areas(domain):
    plane = isinstance(domain, Plane)
    return 1 / np.prod(domain.shape) if plane else domain.cell_areas[:, None]


@each_domain
def test_constants_stay_and_means_are_kept(domain):
    halving, x = Halving(domain), fields(domain)
    one = jnp.ones(domain.shape)
    np.testing.assert_allclose(up(halving, down(halving, one)), one, rtol=1e-13)
    coarse = down(halving, x)
    total, kept = (
        (np.asarray(f) * areas(d)).sum((1, 2))
        for f, d in ((x, domain), (coarse, halving.coarse))
    )
    np.testing.assert_allclose(kept, total, rtol=1e-12)


@pytest.mark.parametrize("domain", DOMAINS[:-1], ids=str)
def test_means_are_those_of_conservative_regridding(domain):
    halving, x = Halving(domain), fields(domain)
    assert isinstance(halving.coarse, sphere.Grid)
    regrid = sphere.Regridder(domain, halving.coarse)
    np.testing.assert_allclose(
        down(halving, x), eqx.filter_jit(regrid)(x), rtol=1e-12, atol=1e-13
    )


def test_a_plane_s_means_are_of_four():
    x = fields(DOMAINS[-1])
    four = np.asarray(x).reshape(2, 4, 2, 6, 2).mean((2, 4))
    np.testing.assert_allclose(down(Halving(DOMAINS[-1]), x), four, rtol=1e-13)


@each_domain
def test_what_is_linear_between_rows_comes_back(domain):
    halving = Halving(domain)
    if isinstance(domain, Plane):
        place = lambda d: (np.arange(d.shape[0]) + 0.5) / d.shape[0]
        inner = slice(1, -1)  # a periodic axis is not linear at its ends
    else:
        place, inner = lambda d: d.latitude, slice(2, -2)
    coarse = jnp.broadcast_to(
        jnp.asarray(place(halving.coarse))[:, None], halving.coarse.shape
    )
    fine = np.broadcast_to(place(domain)[:, None], domain.shape)
    np.testing.assert_allclose(up(halving, coarse)[inner], fine[inner], rtol=1e-12)


@pytest.mark.parametrize("domain", DOMAINS[:-1], ids=str)
def test_smooth_fields_come_back_over_the_poles(domain):
    # Linear interpolation of x + y + z is off by (spacing)^2 / 8 times its curvature
    # in each direction, near the pole as elsewhere.
    def smooth(grid):
        around, longitude = np.sin(grid.colatitude)[:, None], np.deg2rad(grid.longitude)
        flat = around * (np.cos(longitude) + np.sin(longitude))
        return jnp.asarray(flat + np.cos(grid.colatitude)[:, None])

    halving = Halving(domain)
    error = np.abs(up(halving, smooth(halving.coarse)) - smooth(domain)).max()
    n_latitude, n_longitude = halving.coarse.shape
    columns = 2 * np.pi / n_longitude
    rows = 1.4 * np.pi / n_latitude  # the widest gap, over a pole of an even grid
    assert error < np.sqrt(3) * (columns**2 + rows**2) / 8


def test_columns_shift_with_the_field():
    domain = DOMAINS[0]
    halving, x = Halving(domain), fields(domain)
    both = eqx.filter_jit(lambda x: halving.up(halving.down(x)))
    turned = both(jnp.roll(x, 2, axis=-1))
    np.testing.assert_allclose(turned, jnp.roll(both(x), 2, axis=-1), atol=1e-13)


def test_dtype_tables_and_jit():
    halving, x = Halving(DOMAINS[0]), fields(DOMAINS[0])
    assert not any(jax.tree.leaves(trainable(halving)))
    both = eqx.filter_jit(lambda halving, x: halving.up(halving.down(x)))
    np.testing.assert_allclose(both(halving, x), halving.up(halving.down(x)))
    for dtype in (jnp.bfloat16, jnp.float32):
        assert both(halving, x.astype(dtype)).dtype == dtype
    slope = jax.grad(lambda x: (both(halving, x) ** 2).sum())(x)
    chex.assert_tree_all_finite(slope)


@pytest.mark.parametrize(
    "domain",
    [
        sphere.cell_centred(8, 9),
        sphere.cell_centred(2, 8),
        Plane((5, 4)),
        Plane((4, 5)),
    ],
    ids=str,
)
def test_what_cannot_be_halved_is_reported(domain):
    with pytest.raises(ValueError, match="cannot be halved"):
        halve(domain)
