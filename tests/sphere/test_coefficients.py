import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens import sphere
from skyens.sphere import SphericalHarmonics

GRID = sphere.gauss_legendre(10, 20)


def random_coefficients(lmax, batch=(), dtype=np.complex128):
    normal = np.random.default_rng(lmax).normal(size=(2, *batch, lmax + 1, lmax + 1))
    c = np.tril(normal[0] + 1j * normal[1])
    c[..., 0] = c[..., 0].real
    return jnp.asarray(c.astype(dtype))


def synthesis(sht, coefficients):
    return eqx.filter_jit(SphericalHarmonics.synthesis)(sht, coefficients)


def test_the_real_basis_is_orthonormal_and_complete():
    sht = SphericalHarmonics(sphere.gauss_legendre(8, 16), 5)
    vectors = np.random.default_rng(1).normal(size=(3, 36))
    field = synthesis(sht, jax.jit(sphere.from_real)(jnp.asarray(vectors)))
    norm = np.sum(np.square(field) * sht.grid.weights[:, None], (-2, -1))
    np.testing.assert_allclose(norm, np.sum(vectors**2, -1), rtol=1e-12)


@pytest.mark.parametrize(("lmax", "batch"), [(0, ()), (1, (2,)), (6, (3, 1))])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_real_basis_makes_the_round_trip(lmax, batch, dtype):
    normal = np.random.default_rng(lmax).normal(size=(*batch, (lmax + 1) ** 2))
    vector = jnp.asarray(normal, dtype)
    coefficients = jax.jit(sphere.from_real)(vector)
    l, m = np.indices((lmax + 1, lmax + 1))
    assert coefficients.shape == (*batch, lmax + 1, lmax + 1)
    above, zonal = np.asarray(coefficients)[..., m > l], coefficients[..., 0].imag
    assert not np.any(above)
    assert not np.any(zonal)
    again = jax.jit(sphere.to_real)(coefficients)
    assert again.dtype == dtype
    chex.assert_trees_all_close(again, vector, rtol=4 * jnp.finfo(dtype).eps)


@pytest.mark.parametrize(("low", "more"), [(0, 3), (4, 0), (3, 2)])
def test_padding_keeps_the_field_and_truncation_undoes_it(low, more):
    few, many = (SphericalHarmonics(GRID, lmax) for lmax in (low, low + more))
    c = random_coefficients(low, batch=(2,))
    padded = sphere.pad(c, low + more)
    before, after = synthesis(few, c), synthesis(many, padded)
    chex.assert_trees_all_close(after, before, atol=1e-12)
    chex.assert_trees_all_equal(sphere.truncate(padded, low), c)
    assert padded.dtype == c.dtype


def test_truncation_is_the_projection_on_fewer_degrees():
    c = random_coefficients(7)
    field = synthesis(SphericalHarmonics(GRID, 7), c)
    few = eqx.filter_jit(SphericalHarmonics(GRID, 4).analysis)(field)
    chex.assert_trees_all_close(sphere.truncate(c, 4), few, atol=1e-13)


@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.complex128])
def test_scaling_acts_on_degrees_and_keeps_the_dtype(dtype):
    c = random_coefficients(3, batch=(2,), dtype=dtype)
    factors = jnp.asarray([1.0, 0.5, -2.0, 0.0])
    scaled = jax.jit(sphere.scale_degrees)(c, factors)
    assert scaled.dtype == dtype
    expected = np.asarray(c) * np.asarray(factors)[:, None]
    chex.assert_trees_all_close(scaled, jnp.asarray(expected, dtype), rtol=1e-6)
    one_each = jax.vmap(sphere.scale_degrees)(c, jnp.stack([factors, factors]))
    chex.assert_trees_all_equal(one_each, scaled)


def test_wrong_use_is_reported():
    c = random_coefficients(4)
    with pytest.raises(ValueError, match=r"between 0 and 4.*got 5; use `pad`"):
        sphere.truncate(c, 5)
    with pytest.raises(ValueError, match=r"between 0 and 4.*got -1"):
        sphere.truncate(c, -1)
    with pytest.raises(ValueError, match=r"at least 4.*got 3; use `truncate`"):
        sphere.pad(c, 3)
    with pytest.raises(ValueError, match=r"two axes \(l, m\).*\(5, 4\)"):
        sphere.truncate(c[:, :4], 2)
    with pytest.raises(ValueError, match="one entry for each degree, 5"):
        sphere.scale_degrees(c, jnp.ones(4))
    with pytest.raises(ValueError, match=r"\(lmax \+ 1\)\^2 entries"):
        sphere.from_real(jnp.ones(10))
