import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import sphere
from skyens.assimilation import (
    DenseCovariance,
    covariance_times,
    draw_perturbation,
    estimate_dense,
    estimate_diagonal,
    estimate_spectral,
    forecast_differences,
)

GRID = sphere.gauss_legendre(8, 16)
SHT = sphere.SphericalHarmonics(GRID, 5)


def test_dense_and_diagonal_are_those_of_numpy():
    samples = {"a": jr.normal(jr.key(0), (9, 2)), "b": jr.normal(jr.key(1), (9, 1, 2))}
    rows = np.concatenate([samples["a"], samples["b"][:, 0]], axis=1)
    factor = np.asarray(estimate_dense(samples).factor)
    np.testing.assert_allclose(factor @ factor, np.cov(rows.T), atol=1e-12)
    std = estimate_diagonal(samples).std
    np.testing.assert_allclose(std["a"], rows[:, :2].std(0, ddof=1), rtol=1e-12)
    np.testing.assert_allclose(std["b"][0], rows[:, 2:].std(0, ddof=1), rtol=1e-12)


def test_forecast_differences_have_the_covariance_of_one_forecast():
    # Errors of two forecasts for one time, independent and alike, about one truth.
    full = np.array([[2.0, 1.0], [1.0, 3.0]])
    draw = lambda key: draw_perturbation(DenseCovariance(full), jnp.zeros(2), key=key)
    errors = jax.vmap(draw)(jr.split(jr.key(2), 20_000)).reshape(2, 10_000, 2)
    truth = 10 * jr.normal(jr.key(3), (10_000, 2))
    samples = forecast_differences(truth + errors[0], truth + errors[1])
    factor = np.asarray(estimate_dense(samples).factor)
    np.testing.assert_allclose(factor @ factor, full, atol=5 * 3 * (2 / 1e4) ** 0.5)
    tuned = forecast_differences(truth + errors[0], truth, scale=0.25)
    np.testing.assert_allclose(tuned, errors[0] / 2, atol=1e-12)


def test_a_spectral_estimate_draws_fields_like_its_samples():
    spectra = np.exp(-0.5 * np.arange(6)) * np.array([[4.0], [1.0]])
    field = sphere.GaussianRandomField(SHT, jnp.asarray(spectra))
    samples = field.sample(jr.key(4), (400,))
    samples = samples.at[:, 1].add(
        0.5 * samples[:, 0]
    )  # the second goes with the first
    impulse = jnp.zeros((2, 8, 16)).at[0, 3, 2].set(1)
    estimate = jax.jit(
        lambda samples: covariance_times(estimate_spectral(SHT, samples), impulse)
    )
    spread = estimate(samples)
    angle = lambda a, b: np.cos(np.deg2rad(GRID.latitude[a] - GRID.latitude[b]))
    expected = np.polynomial.legendre.legval(angle(3, 1), spectra[0] / (4 * np.pi))
    top = spectra[0].sum() / (4 * np.pi)
    np.testing.assert_allclose(spread[0, 1, 2], expected, atol=0.15 * top)
    np.testing.assert_allclose(spread[1, 1, 2], expected / 2, atol=0.15 * top)


def test_a_map_of_standard_deviations_keeps_its_size():
    field = sphere.GaussianRandomField(SHT, jnp.exp(-0.5 * jnp.arange(6.0)))
    std = jnp.linspace(1, 3, 8)[:, None] * jnp.ones((8, 16))
    samples = std[None] * field.sample(jr.key(5), (300,))
    covariance = estimate_spectral(SHT, samples, std=std)
    variance = jnp.sum(
        jnp.square(jax.vmap(lambda v: covariance.root(v, std))(jnp.eye(36)[:, None])),
        axis=0,
    )
    np.testing.assert_allclose(variance, std**2, rtol=1e-9)
    one = estimate_spectral(SHT, samples, std=2.0)
    assert one.factor.shape == (6, 1, 1)


def test_single_precision_stays():
    samples = jr.normal(jr.key(6), (5, 2, 8, 16), jnp.float32)
    for estimate in (
        estimate_spectral(SHT, samples),
        estimate_diagonal(samples),
        estimate_dense(samples[:, 0, :2, :2]),
    ):
        leaves = jax.tree.leaves(getattr(estimate, "factor", estimate))
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="`scale` must be above 0, got 0"):
        forecast_differences(jnp.ones((2, 3)), jnp.ones((2, 3)), scale=0.0)
    with pytest.raises(ValueError, match="does not fit `shorter`"):
        forecast_differences(jnp.ones((2, 3)), jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="of real numbers"):
        estimate_dense(jnp.ones((3, 2), complex))
