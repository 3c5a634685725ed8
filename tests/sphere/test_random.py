import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.special import eval_legendre

from skyens import sphere
from skyens.sphere import AutoregressiveField, GaussianRandomField, SphericalHarmonics


@pytest.fixture(scope="module")
def samples():
    sht = SphericalHarmonics(sphere.equiangular(13, 24), 11)
    power = jnp.asarray(sphere.matern_spectrum(11, 0.5, variance=4.0))
    field = GaussianRandomField(sht, power)
    return field, jax.jit(jax.vmap(field.sample))(jr.split(jr.key(0), 10_000))


def test_variance_is_the_same_at_pole_and_equator(samples):
    _, x = samples
    variance = x.var(axis=(0)).mean(-1)
    # 10,000 samples: a standard error of 1.4 percent at a pole, less elsewhere.
    chex.assert_trees_all_close(variance, jnp.full(13, 4.0), rtol=0.06)


def test_the_spectrum_is_the_one_asked_for(samples):
    field, x = samples
    power = field.sht.power_spectrum(x).mean(0)
    chex.assert_trees_all_close(power[1:], field.power[1:], rtol=0.06)
    chex.assert_trees_all_close(power[0], jnp.asarray(0.0), atol=1e-20)


def test_the_correlation_is_the_legendre_series_in_any_direction(samples):
    field, x = samples
    weight = np.asarray(field.power) / (4 * np.pi)
    exact = lambda cosine: sum(
        w * eval_legendre(l, cosine) for l, w in enumerate(weight)
    )
    covariance = lambda a, b: float(jnp.mean(a * b))
    equator, pole = x[:, 6], x[:, -1, 0]
    # 45 degrees along the equator, and from the pole down two meridians.
    error = 4 * 3 / np.sqrt(10_000)  # three standard errors of a covariance
    for pair in [
        (equator[:, 0], equator[:, 3]),
        (pole, x[:, 9, 7]),
        (pole, x[:, 9, 0]),
    ]:
        assert abs(covariance(*pair) - exact(np.cos(np.pi / 4))) < error * 1.5


def test_the_real_basis_is_orthonormal_and_complete():
    sht = SphericalHarmonics(sphere.gauss_legendre(8, 16), 5)
    vectors = jr.normal(jr.key(1), (3, 36))
    coefficients = sphere.from_real(vectors)
    chex.assert_trees_all_close(sphere.to_real(coefficients), vectors)
    field = sht.synthesis(coefficients)
    norm = jnp.sum(field**2 * jnp.asarray(sht.grid.weights)[None, :, None], (-2, -1))
    chex.assert_trees_all_close(norm, jnp.sum(vectors**2, -1))


def test_an_autoregressive_field_keeps_its_law_and_correlates():
    sht = SphericalHarmonics(sphere.gauss_legendre(6, 12), 4)
    field = GaussianRandomField(sht, jnp.ones(5, jnp.float32))
    process = AutoregressiveField(field, 0.8)

    def path(key):
        start, first, second = jr.split(key, 3)
        before = process.start(start)
        middle = process(before, key=first)
        return jnp.stack([before, middle, process(middle, key=second)])

    x = jax.vmap(lambda k: sphere.to_real(path(k)))(jr.split(jr.key(2), 4000))
    assert x.dtype == jnp.float32
    correlation = lambda i, j: jnp.sum(x[:, i] * x[:, j]) / jnp.sum(x[:, i] ** 2)
    chex.assert_trees_all_close(correlation(0, 1), jnp.float32(0.8), atol=0.02)
    chex.assert_trees_all_close(correlation(0, 2), jnp.float32(0.64), atol=0.02)
    chex.assert_trees_all_close(x[:, 2].var(), x[:, 0].var(), rtol=0.03)


def test_gradient_in_the_power_is_finite_at_zero():
    sht = SphericalHarmonics(sphere.gauss_legendre(6, 12), 4)
    total = lambda p: (GaussianRandomField(sht, p).sample(jr.key(0)) ** 2).sum()
    chex.assert_tree_all_finite(jax.grad(total)(jnp.zeros(5)))


def test_a_smoother_spectrum_decays_faster():
    heat = sphere.squared_exponential_spectrum(40, 0.3)
    matern = sphere.matern_spectrum(40, 0.3)
    chex.assert_trees_all_close(heat.sum(), 4 * np.pi)
    assert heat[30] < 1e-3 * matern[30]


def test_wrong_use_is_reported():
    sht = SphericalHarmonics(sphere.gauss_legendre(6, 12), 4)
    with pytest.raises(ValueError, match="one entry for each degree, 5"):
        GaussianRandomField(sht, jnp.ones(4))
    with pytest.raises(eqx.EquinoxRuntimeError, match="must not be negative"):
        GaussianRandomField(sht, -jnp.ones(5))
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"must lie in \[0, 1\]"):
        AutoregressiveField(GaussianRandomField(sht, jnp.ones(5)), 1.1)
    with pytest.raises(ValueError, match=r"\(lmax \+ 1\)\^2 entries"):
        sphere.from_real(jnp.ones(10))
    with pytest.raises(ValueError, match="must be positive"):
        sphere.matern_spectrum(5, 0.0)
    with pytest.raises(ValueError, match="must be positive"):
        sphere.squared_exponential_spectrum(5, -1.0)
