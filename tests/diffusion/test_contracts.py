"""One observation of a real prior, through matrices, an ensemble and diffusion."""

from functools import cache

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np

from skyens import assimilation, data, diffusion, observations, sphere

LMAX, STATIONS, STRETCH = 9, 50, 20.0


@cache
def problem():
    """Return a prior of 500 hPa height, 50 heights seen, and the exact posterior.

    The state is the departure from the mean of ERA5's ten members in real spherical
    harmonics, metres. Its covariance is that of the stretched members, shrunk half way
    to the isotropic one with a spectrum fitted to them.
    """
    sample = data.open_sample("era5_eda")
    height = sample["geopotential"].sel(level=500).isel(time=0).values / 9.80665
    grid = data.grid_of(sample)
    sht = sphere.SphericalHarmonics(grid, LMAX)
    anomalies = jnp.asarray(STRETCH * (height - height.mean(axis=0, keepdims=True)))
    degree = np.arange(LMAX + 1)
    power = np.asarray(sht.power_spectrum(anomalies)).sum(axis=0) / 9
    curve = np.polyfit(np.log(degree + 1), np.log(power / (2 * degree + 1)), 2)
    fitted = np.exp(np.polyval(curve, np.log(degree + 1)))
    above = np.repeat(degree, degree)
    isotropic = np.diag(fitted[np.concatenate([degree, above, above])])
    members = np.asarray(sphere.to_real(sht.analysis(anomalies)))
    covariance = np.cov(members, rowvar=False) / 2 + isotropic / 2

    rng = np.random.default_rng(0)
    latitude = np.rad2deg(np.arcsin(rng.uniform(-1, 1, STATIONS)))
    small = sphere.gauss_legendre(12, 24)  # enough for these degrees, and quick
    look = observations.Interpolate(small, latitude, rng.uniform(0, 360, STATIONS))
    synthesis = sphere.SphericalHarmonics(small, LMAX).synthesis
    mean = synthesis(sht.analysis(jnp.asarray(height.mean(axis=0))))
    decode = lambda state: mean + synthesis(sphere.from_real(state))
    truth = jnp.asarray(rng.multivariate_normal(np.zeros(len(covariance)), covariance))
    value = look(decode(truth)) + 8 * jnp.asarray(rng.normal(size=STATIONS))
    value = value.at[7].set(jnp.nan)  # one station is silent
    error = observations.Diagonal(8.0)
    observation = observations.Observation(value, look, error).pullback(decode)

    # The oracle is NumPy: the silent station taken away, the Kalman gain by a solve.
    heard = np.arange(STATIONS) != 7
    columns = jax.jit(jax.jacobian(lambda state: look(decode(state))))(0 * truth)
    matrix = np.asarray(columns)[heard]
    departure = np.asarray(value - look(mean))[heard]
    total = matrix @ covariance @ matrix.T + 64 * np.eye(STATIONS - 1)
    gain = np.linalg.solve(total, matrix @ covariance).T
    kept = np.eye(len(covariance)) - gain @ matrix
    posterior = kept @ covariance @ kept.T + 64 * gain @ gain.T
    exact = gain @ departure, (posterior + posterior.T) / 2
    return jnp.asarray(covariance), observation, exact


def assert_within_chance(states, mean, covariance, chance):
    """Hold mean and covariance of `states` against what chance allows, 4 deviations.

    `chance` is the covariance of the error of their mean; that of their covariance is a
    Wishart matrix's.
    """
    states, size = np.asarray(states), len(states)
    squared = np.sum((states.mean(axis=0) - mean) ** 2)
    deviation = np.sqrt(2 * np.sum(chance**2))
    assert abs(squared - np.trace(chance)) < 4 * deviation
    gap = np.cov(states, rowvar=False) - covariance
    # E |S - P|^2 = (tr(P)^2 + tr(P^2)) / (n - 1); its own deviation is a few percent.
    expected = (np.trace(covariance) ** 2 + np.sum(covariance**2)) / (size - 1)
    assert np.sum(gap**2) < 1.3 * expected


def test_matrices_agree_with_the_oracle():
    covariance, observation, (mean, posterior) = problem()
    update = eqx.filter_jit(assimilation.kalman_update)
    found = update(jnp.zeros(len(covariance)), covariance, observation)
    scale = np.abs(posterior).max()
    chex.assert_trees_all_close(found[0], mean, atol=1e-9 * np.abs(mean).max())
    chex.assert_trees_all_close(found[1], posterior, atol=1e-9 * scale)


def test_a_large_ensemble_agrees_within_chance():
    covariance, observation, (mean, posterior) = problem()
    size, prior = 2000, np.asarray(covariance)
    factor = jnp.linalg.cholesky(covariance)
    background = jr.normal(jr.key(1), (size, len(prior))) @ factor.T
    analysis, info = eqx.filter_jit(assimilation.ETKF())(background, observation)
    assert info.used == STATIONS - 1
    # To first order in the errors of the background's mean and covariance; the second
    # order is a factor of observations / members smaller.
    kept = np.linalg.solve(prior, posterior).T
    pull = np.linalg.solve(prior, mean)
    seen = prior @ pull
    chance = kept @ (prior * (1 + pull @ seen) + np.outer(seen, seen)) @ kept.T / size
    assert_within_chance(analysis, mean, posterior, chance)


def test_the_guided_denoiser_is_the_exact_posteriors():
    covariance, observation, exact = problem()
    prior = diffusion.GaussianDenoiser(jnp.zeros(len(covariance)), covariance)
    posterior = diffusion.GaussianDenoiser(*map(jnp.asarray, exact))
    guided = diffusion.guide(prior, observation, diffusion.MMPS())
    levels = jnp.geomspace(0.01, 1e4, 13)
    noise = jr.normal(jr.key(2), (13, len(covariance)))
    noisy = 20.0 + levels[:, None] * noise
    both = lambda x, sigma: (guided(x, sigma), posterior(x, sigma))
    clean, expected = jax.jit(jax.vmap(both))(noisy, levels)
    error = jnp.linalg.norm(clean - expected, axis=1)
    assert (error < 1e-5 * jnp.linalg.norm(expected, axis=1)).all()


def test_guided_samples_agree_within_chance():
    covariance, observation, (mean, posterior) = problem()
    prior = diffusion.GaussianDenoiser(jnp.zeros(len(covariance)), covariance)
    method = diffusion.MMPS(lx.Cholesky())
    guided = diffusion.guide(prior, observation, method)
    schedule, shape = diffusion.EDM(0.02, 2e4), mean.shape
    draw = lambda key: diffusion.sample(guided, schedule, shape, key=key, steps=200)
    samples = jax.jit(jax.vmap(draw))(jr.split(jr.key(3), 400))
    assert_within_chance(samples, mean, posterior, posterior / 400)
