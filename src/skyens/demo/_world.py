"""The world of the demo: four real analyses, a model of 1950, and how it errs."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Key

from skyens import data, dynamics, ensembles, sphere
from skyens.dynamics import BalancedHeight, Relaxed, StochasticStep
from skyens.sphere import AutoregressiveField, GaussianRandomField, SphericalHarmonics

STEP_HOURS = 6
LEADS = np.array([12, 24, 36])  # hours after the first analysis
LMAX = 42
# The errors of a model without baroclinic growth live about as long as the systems it
# misses: two days. Chosen beforehand, not fitted.
MEMORY_HOURS = 48.0
# Noise without damping would let the variance grow forever: it is drawn back to the
# zonal mean, slowly against the length of the forecast.
RELAXATION_HOURS = 15 * 24.0
STANDARD_GRAVITY = 9.80665


class Analyses(NamedTuple):
    """ERA5's ensemble of data assimilations at 500 hPa: what the demo knows of 2017."""

    height: (
        np.ndarray
    )  # (member, time, latitude, longitude), m; member 0 is the control
    time: np.ndarray  # UTC, every 12 hours
    grid: sphere.Grid

    @property
    def truth(self) -> np.ndarray:
        """The control's analyses at the verification times, `(lead, ...)`."""
        return self.height[0, 1:]


def open_analyses() -> Analyses:
    """Return the geopotential height of the sample that ships with the package."""
    sample = data.open_sample("era5_eda").sel(level=500)
    height = sample["geopotential"] / STANDARD_GRAVITY
    height = height.transpose("member", "time", "latitude", "longitude")
    values = np.asarray(height.values, np.float32)
    return Analyses(values, sample["time"].values, data.grid_of(sample))


def physics(grid: sphere.Grid) -> BalancedHeight:
    """Return the equivalent-barotropic model as a step of six hours of height."""
    rows = (3 * LMAX + 2) // 4 * 2  # products of two fields, free of aliasing
    inner = SphericalHarmonics(sphere.gauss_legendre(rows, 2 * rows), LMAX)
    return BalancedHeight(
        dynamics.BarotropicVorticity(inner, substeps=1),
        dynamics.LinearBalance(LMAX),
        SphericalHarmonics(grid, LMAX),
        steps=STEP_HOURS,
    )


class ErrorPattern(eqx.Module):
    """From spectral noise of unit variance to errors of height, sized by latitude."""

    sht: SphericalHarmonics
    amplitude: Float[Array, " latitude"]  # m

    def __call__(
        self, noise: Complex[Array, "l m"]
    ) -> Float[Array, "latitude longitude"]:
        """Return the error field in m."""
        return self.amplitude[:, None] * self.sht.synthesis(noise)


def first_error(model: BalancedHeight, analyses: Analyses) -> np.ndarray:
    """Return analysis minus forecast of the control after 12 hours, m.

    Nothing else of the verification times is used to set up the forecasts.
    """
    start = jnp.asarray(analyses.height[0, 0])
    steps = int(LEADS[0]) // STEP_HOURS
    forecast = eqx.filter_jit(dynamics.rollout)(model, start, steps)[-1]
    return analyses.height[0, 1] - np.asarray(forecast)


def fit_model_error(
    model: BalancedHeight,
    analyses: Analyses,
    *,
    members: int = 40,
    key: Key[Array, ""],
) -> StochasticStep:
    """Return the model with noise that errs as the model did in its first 12 hours.

    From that one error field come the size of the noise at each latitude (a smooth
    curve), its spectrum by degree (smoothed over five degrees), and its amplitude: such
    that the ensemble's spread at 12 hours equals the error there. So that a long run
    settles, the state is drawn to its zonal mean at the start, over 15 days.
    """
    error = first_error(model, analyses)
    grid, sht = analyses.grid, model.sht
    size = _smooth_in_latitude(grid, np.sqrt(np.mean(error**2, axis=-1)))
    pattern = jnp.asarray((error / size[:, None]).astype(error.dtype))
    power = np.asarray(sht.power_spectrum(pattern), np.float64)
    power = np.convolve(np.pad(power, 2, mode="edge"), np.ones(5) / 5, "valid")
    power[0] = 0
    power *= 4 * np.pi / power.sum()
    field = GaussianRandomField(sht, jnp.asarray(power, error.dtype))
    correlation = float(np.exp(-STEP_HOURS / MEMORY_HOURS))
    process = AutoregressiveField(field, correlation)

    climate = analyses.height[:, 0].mean(axis=(0, -1))[:, None]
    relaxed = Relaxed(model, jnp.asarray(climate), STEP_HOURS / RELAXATION_HOURS)

    def noisy(amplitude: float) -> StochasticStep:
        pattern = ErrorPattern(sht, jnp.asarray(amplitude * size, error.dtype))
        return StochasticStep(relaxed, process, pattern)

    # Spread is nearly proportional to the amplitude: one trial run tells the factor.
    trial = 0.5
    weights = grid.weights * (np.abs(grid.latitude) >= 20)
    mean = lambda square: float(weights @ square.mean(-1) / weights.sum())
    keys = dynamics.member_keys(key, members)
    start = jnp.broadcast_to(analyses.height[0, 0], (members, *grid.shape))
    step = noisy(trial)
    states = jax.vmap(lambda value, key: step.start(value, key=key))(start, keys)
    steps = int(LEADS[0]) // STEP_HOURS
    run = eqx.filter_jit(ensembles.rollout)
    last = run(step, states, steps, key=key, reduce=_value)[:, -1]
    spread = mean(np.var(np.asarray(last), axis=0, ddof=1))
    return noisy(trial * np.sqrt(mean(error**2) / spread))


def _value(state):
    return state["value"]


def _smooth_in_latitude(grid: sphere.Grid, size: np.ndarray) -> np.ndarray:
    """Fit the logarithm of `size` by a polynomial of degree 6 in sin(latitude)."""
    basis = np.polynomial.legendre.legvander(np.sin(np.deg2rad(grid.latitude)), 6)
    root = np.sqrt(grid.weights)
    fit = np.linalg.lstsq(basis * root[:, None], np.log(size) * root, rcond=None)[0]
    return np.exp(basis @ fit)
