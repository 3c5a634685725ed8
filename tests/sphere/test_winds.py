import chex
import ducc0
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens import sphere
from skyens.sphere import SphericalHarmonics

MAKERS = [sphere.gauss_legendre, sphere.equiangular, sphere.cell_centred]


def random_coefficients(lmax, seed, batch=()):
    """With a zero mean: no wind has a mean vorticity or divergence."""
    rng = np.random.default_rng(seed)
    shape = (*batch, lmax + 1, lmax + 1)
    c = np.tril(rng.normal(size=shape) + 1j * rng.normal(size=shape))
    c[..., 0] = c[..., 0].real
    c[..., 0, 0] = 0
    return jnp.asarray(c)


@settings(deadline=None, max_examples=15)
@given(
    make=st.sampled_from(MAKERS),
    n=st.integers(3, 26),
    extra=st.integers(0, 3),
    north_first=st.booleans(),
    origin=st.sampled_from([0.0, -180.0, 7.5]),
    fraction=st.floats(0, 1),
    batch=st.sampled_from([(), (2,), (1, 3)]),
)
def test_winds_make_the_round_trip_with_power_at_the_last_degree(
    make, n, extra, north_first, origin, fraction, batch
):
    grid = make(n, 2 * n + extra, north_first=north_first, longitude_origin=origin)
    sht = SphericalHarmonics(grid, round(fraction * grid.largest_lmax))
    c = random_coefficients(sht.lmax, n, (2, *batch))
    radius = 3.0

    @jax.jit
    def there_and_back(c):
        u, v = sht.wind_synthesis(c[0], c[1], radius=radius)
        return jnp.stack(sht.wind_analysis(u, v, radius=radius))

    chex.assert_trees_all_close(there_and_back(c), c, atol=1e-12)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("north_first", [False, True])
def test_a_wind_is_the_gradient_of_its_potentials_up_to_the_poles(make, north_first):
    # chi = x z + y has the gradient (z, 1, x), less its radial part; psi = x + z^2.
    grid = make(13, 26, north_first=north_first, longitude_origin=20.0)
    theta, lam = np.meshgrid(grid.colatitude, np.deg2rad(grid.longitude), indexing="ij")
    x, y, z = np.sin(theta) * np.cos(lam), np.sin(theta) * np.sin(lam), np.cos(theta)
    east = np.stack([-np.sin(lam), np.cos(lam), 0 * lam])
    north = np.stack([-z * np.cos(lam), -z * np.sin(lam), np.sin(theta)])
    along = lambda vector, unit: np.sum(np.stack(vector) * unit, 0)
    chi, psi = [z, np.ones_like(x), x], [np.ones_like(x), 0 * x, 2 * z]
    u = along(chi, east) - along(psi, north)
    v = along(chi, north) + along(psi, east)
    sht = SphericalHarmonics(grid, 6)
    vorticity = sht.laplacian(jnp.asarray(x + z**2))
    divergence = sht.laplacian(jnp.asarray(x * z + y))
    found = sht.wind(vorticity, divergence)
    chex.assert_trees_all_close(found, (jnp.asarray(u), jnp.asarray(v)), atol=1e-12)
    back = sht.vorticity_divergence(*found)
    chex.assert_trees_all_close(back, (vorticity, divergence), atol=1e-12)
    streamfunction, potential = sht.helmholtz(*found)
    chex.assert_trees_all_close(streamfunction, x + z**2 - 1 / 3, atol=1e-12)
    chex.assert_trees_all_close(potential, x * z + y, atol=1e-12)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(("n", "lmax"), [(33, 31), (66, 40), (130, 127)])
def test_winds_are_the_spin_one_transform_of_ducc(make, n, lmax):
    geometry = {"gauss_legendre": "GL", "equiangular": "CC", "cell_centred": "F1"}
    grid = make(n, 2 * n, north_first=True)
    sht = SphericalHarmonics(grid, lmax)
    c = np.asarray(random_coefficients(lmax, n, (2,)))
    pack = lambda a: np.concatenate([a[m:, m] for m in range(lmax + 1)])
    # ducc's gradient and curl parts have unit norm: l (l + 1) under a root.
    l = np.arange(lmax + 1)[:, None]
    root = np.sqrt(np.where(l > 0, l * (l + 1), 1))
    alm = np.stack([pack(c[1] / root), pack(c[0] / root)])
    field = ducc0.sht.synthesis_2d(
        alm=alm,
        spin=1,
        lmax=lmax,
        ntheta=n,
        nphi=2 * n,
        geometry=geometry[make.__name__],
    )
    u, v = sht.wind_synthesis(jnp.asarray(c[0]), jnp.asarray(c[1]))
    # Its components are southward and eastward, of minus the gradient.
    south, east = field
    scale = np.abs(field).max()
    assert np.abs(u + east).max() < 1e-14 * lmax * scale
    assert np.abs(v - south).max() < 1e-14 * lmax * scale


def test_identities_of_vector_calculus():
    grid = sphere.equiangular(40, 80)
    sht = SphericalHarmonics(grid, 38)
    field = sht.synthesis(random_coefficients(38, 0))
    u, v = sht.gradient(field, radius=2.0)
    curl, divergence = sht.vorticity_divergence(u, v, radius=2.0)
    scale = jnp.abs(divergence).max()
    chex.assert_trees_all_close(curl / scale, 0 * curl, atol=1e-13)
    laplacian = sht.laplacian(field, radius=2.0)
    chex.assert_trees_all_close(divergence / scale, laplacian / scale, atol=1e-13)
    turned = sht.vorticity_divergence(-v, u, radius=2.0)
    chex.assert_trees_all_close(turned[0] / scale, laplacian / scale, atol=1e-13)
    chex.assert_trees_all_close(turned[1] / scale, 0 * curl, atol=1e-13)


def test_solid_rotation_has_its_vorticity_even_in_single_precision():
    grid = sphere.gauss_legendre(64, 128)
    sht = SphericalHarmonics(grid, 63)
    latitude = np.deg2rad(grid.latitude)[:, None]
    u = jnp.asarray(40 * np.cos(latitude) * np.ones(grid.shape), jnp.float32)
    vorticity, divergence = sht.vorticity_divergence(u, 0 * u, radius=6.371e6)
    assert vorticity.dtype == jnp.float32
    expected = jnp.asarray(2 * 40 / 6.371e6 * np.sin(latitude) * np.ones(grid.shape))
    size = 2 * 40 / 6.371e6
    error = jnp.abs(vorticity - expected.astype(jnp.float32)).max()
    # Derivatives magnify rounding by lmax.
    assert error < 64 * 6e-8 * size
    assert jnp.abs(divergence).max() < 64 * 6e-8 * size


def test_winds_keep_single_precision_at_the_poles():
    for grid in (sphere.gauss_legendre(180, 360), sphere.equiangular(181, 360)):
        sht = SphericalHarmonics(grid, 85)
        c = random_coefficients(85, 1, (2,))
        exact = jnp.stack(sht.wind_synthesis(c[0], c[1]))
        single = c.astype(jnp.complex64)
        found = jnp.stack(sht.wind_synthesis(single[0], single[1]))
        assert found.dtype == jnp.float32
        error = jnp.abs(found.astype(float) - exact)
        assert error.max() < 1e-6 * jnp.abs(exact).max()


def test_an_order_by_itself_and_degree_zero():
    sht = SphericalHarmonics(sphere.equiangular(4, 8), 0)
    one = jnp.ones((1, 1), complex)
    u, v = sht.wind_synthesis(one, one)
    chex.assert_trees_all_equal((u, v), (0 * u, 0 * v))
    vorticity, divergence = sht.wind_analysis(u + 1, v)
    chex.assert_trees_all_close((vorticity, divergence), (0 * one, 0 * one))
