# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One observation, three ways to use it
#
# A forecast says what the atmosphere probably looks like; a handful of stations say
# what it looks like in a few places. Putting the two together is *conditioning*: of all
# the states the forecast thinks possible, keep those that agree with the stations.
#
# The Kalman filter, the ensemble Kalman filter and diffusion models all do this, and in
# skyens they all take **the same `Observation`**. Here everything is Gaussian, so there
# is one right answer, and we can watch three very different methods arrive at it:
#
# 1. the **Kalman update**: matrices, exact;
# 2. the **ensemble transform Kalman filter** (`ETKF`): a large ensemble, moved;
# 3. **guided diffusion** (`guide` and `sample`): noise, denoised step by step while an
#    eye is kept on the stations.

# %%
import time

import cartopy.crs as ccrs
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import matplotlib.pyplot as plt
import numpy as np

from skyens import assimilation, data, diffusion, observations, plot, sphere

jax.config.update("jax_enable_x64", True)
started = time.perf_counter()

# %% [markdown]
# ## The prior: what we believe before looking
#
# ERA5's ensemble of data assimilations gives ten versions of the height of the 500 hPa
# surface on 1 January 2017. They differ by little more than a metre, which is how well
# the analysis is known; a forecast of a day or two is out by tens of metres. So we
# stretch their differences by 20, and say so: **this is real weather with the spread of
# a forecast, made by hand**.
#
# The state is a vector of 361 numbers: the coefficients of the *departure* from the
# ensemble's mean in real spherical harmonics up to degree 18, in metres.

# %%
STRETCH, LMAX = 20.0, 18

sample = data.open_sample("era5_eda")
height = sample["geopotential"].sel(level=500).isel(time=0).values / 9.80665
grid = data.grid_of(sample)
sht = sphere.SphericalHarmonics(grid, LMAX)

mean_height = jnp.asarray(height.mean(axis=0))
anomalies = STRETCH * (jnp.asarray(height) - mean_height)
members = sphere.to_real(sht.analysis(anomalies))  # (10, 361)
to_field = lambda state: sht.synthesis(sphere.from_real(state))

# %% [markdown]
# Ten members cannot fix a covariance of 361 x 361 numbers. Two things help. Their
# *spectrum* is well known, because every degree averages many coefficients: we fit a
# smooth curve to it. A covariance with that spectrum and nothing else treats all places
# and directions alike. The prior's covariance is half the ensemble's own, half this
# one: some of the day's weather, and no direction without any variance.

# %%
degree = np.arange(LMAX + 1)
power = sht.power_spectrum(anomalies).sum(axis=0) / 9  # unbiased: 10 members, 1 mean
per_coefficient = power / (2 * degree + 1)
curve = np.polyfit(np.log(degree + 1), np.log(per_coefficient), 2)
fitted = np.exp(np.polyval(curve, np.log(degree + 1)))

# The degree of every entry of the state: m = 0 first, then real and imaginary parts.
above = np.concatenate([np.full(l, l) for l in degree[1:]])
isotropic = np.diag(fitted[np.concatenate([degree, above, above])])
covariance = 0.5 * jnp.cov(members, rowvar=False) + 0.5 * isotropic
no_departure = jnp.zeros(len(covariance))

# %% [markdown]
# ## The observation: what was seen
#
# The places are real, fifty of the world's radiosonde stations; what they measure is
# **simulated**. The truth is one draw from the prior, so that we know it, and each
# station sees its height with an error of 8 m. An `Observation` holds the values, how a
# state would show them, and how wrong they may be.
#
# Our state is a departure, so the values are departures too: height seen minus height
# expected. From coefficients to a field to fifty points is linear all the way: one
# matrix, made once.

# %%
stations = data.station_positions()
chosen = np.sort(np.random.default_rng(3).choice(stations.sizes["station"], 50, False))
latitude = stations["latitude"].values[chosen]
longitude = stations["longitude"].values[chosen]

draw_key, noise_key, members_key, sample_key = jr.split(jr.key(0), 4)
truth = jr.multivariate_normal(draw_key, no_departure, covariance)

look = observations.Interpolate(grid, latitude, longitude)
matrix = jax.jacobian(lambda state: look(to_field(state)))(no_departure)

height_seen = look(mean_height + to_field(truth)) + 8 * jr.normal(noise_key, (50,))
observation = observations.Observation(
    height_seen - look(mean_height),
    observations.Linear(matrix),
    observations.Diagonal(8.0),
)
print("first heights seen:", np.round(height_seen[:5], 1), "m")

# %% [markdown]
# ## First: matrices
#
# With Gaussians and a linear operator the answer is known, and this is it.

# %%
exact_mean, exact_covariance = assimilation.kalman_update(
    no_departure, covariance, observation
)

# %% [markdown]
# ## Second: an ensemble
#
# The ETKF never sees a covariance: only 2,000 states, which it shifts and mixes so that
# their mean and spread become those of the Kalman update, up to the chance in the
# 2,000.

# %%
MEMBERS = 2000
background = jr.multivariate_normal(members_key, no_departure, covariance, (MEMBERS,))
analysis, info = eqx.filter_jit(assimilation.ETKF())(background, observation)
print(f"{info.used} observations gave {info.degrees_of_freedom:.1f} pieces of news")

# %% [markdown]
# ## Third: diffusion
#
# A *denoiser* answers one question: of a state with noise of standard deviation sigma
# added, what is the expected clean state? Whoever can answer it at every sigma can
# sample: start from pure noise, and walk to sigma = 0 in small steps towards the
# answer. For images and weather a network learns the answer. For a Gaussian it is a
# formula, which makes this page exact.
#
# `guide` changes the question to: *and what, given the stations too?* The result is a
# denoiser again.

# %%
prior = diffusion.GaussianDenoiser(no_departure, covariance)
method = diffusion.MMPS(lx.Cholesky())  # with 50 observations a direct solve is cheap
posterior = diffusion.guide(prior, observation, method)

# %% [markdown]
# Is it right? The Kalman update's result is a Gaussian, whose denoiser is a formula as
# well. The two must agree at every noise level.

# %%
exact_posterior = diffusion.GaussianDenoiser(exact_mean, exact_covariance)
levels = jnp.geomspace(0.1, 1e4, 11)
noisy = truth + levels[:, None] * jr.normal(jr.key(7), (11, truth.size))
guided = jax.jit(jax.vmap(posterior))(noisy, levels)
expected = jax.jit(jax.vmap(exact_posterior))(noisy, levels)
differences = jnp.linalg.norm(guided - expected, axis=1)
worst = (differences / jnp.linalg.norm(expected, axis=1)).max()
print(f"guided against exact denoiser: largest relative difference {worst:.1e}")

# %% [markdown]
# Now 300 samples in 200 steps each. The levels are in the state's units, metres: from
# far above the spread of any coefficient to far below it.

# %%
SAMPLES = 300
schedule = diffusion.EDM(sigma_min=0.02, sigma_max=2e4)
draw = lambda key: diffusion.sample(
    posterior, schedule, truth.shape, key=key, steps=200
)
samples = jax.jit(jax.vmap(draw))(jr.split(sample_key, SAMPLES))

# %% [markdown]
# ## Do they agree?
#
# Two of the methods draw at random, so they can agree with the first only up to chance,
# and how much chance there is follows from their sizes. With posterior covariance P:
#
# - the mean of n independent samples is wrong by `trace(P) / n`, squared and summed;
# - the ETKF's mean inherits the chance of its background's mean *and* covariance C. To
#   first order, with `u = C^-1` times the increment, the covariance of its error is
#   `M (C (1 + u'Cu) + Cu u'C) M' / n`, where `M = P C^-1`;
# - a standard deviation estimated from n members is wrong by `1 / sqrt(2 n)` of itself.
#
# A ratio of 1 below means: as wrong as chance demands, and no more.

# %%
M = jnp.linalg.solve(covariance, exact_covariance).T
u = jnp.linalg.solve(covariance, exact_mean)
Cu = covariance @ u
chance_etkf = M @ (covariance * (1 + u @ Cu) + jnp.outer(Cu, Cu)) @ M.T / MEMBERS
chance_samples = exact_covariance / SAMPLES


def error_of_mean(states, chance):
    """Return the squared error over its expectation, and the ratio's deviation."""
    squared = jnp.sum((states.mean(axis=0) - exact_mean) ** 2)
    deviation = jnp.sqrt(2 * jnp.sum(chance**2)) / jnp.trace(chance)
    return float(squared / jnp.trace(chance)), float(deviation)


in_fields = jax.jit(jax.vmap(to_field))
spread_of = lambda states: in_fields(states).std(axis=0, ddof=1)
# The variance at a point is the sum of squares over the columns of a square root of P.
root = jnp.linalg.cholesky(exact_covariance).T
exact_spread = jnp.sqrt(jnp.sum(in_fields(root) ** 2, axis=0))
area = jnp.asarray(grid.weights)[:, None] / (4 * np.pi)
area_mean = lambda field: jnp.sum(area * field)

results = {
    "ETKF": (analysis, chance_etkf, MEMBERS),
    "diffusion": (samples, chance_samples, SAMPLES),
}
spreads = {name: spread_of(states) for name, (states, _, _) in results.items()}
verdicts = {}
for name, (states, chance, size) in results.items():
    ratio, deviation = error_of_mean(states, chance)
    relative = jnp.sqrt(area_mean((spreads[name] / exact_spread - 1) ** 2))
    spread_ratio = float(relative * np.sqrt(2 * size))
    verdicts[name] = ratio, deviation, spread_ratio
    print(
        f"{name:10} mean: squared error {ratio:.2f} of what chance demands "
        f"(+- {deviation:.2f}); spread: error {spread_ratio:.2f} of it, "
        f"{100 * float(relative):.1f} percent"
    )

# %% [markdown]
# And against the truth: the error falls where stations stand, and the spread says so.

# %%
rms = lambda state: float(jnp.sqrt(area_mean(to_field(state) ** 2)))
before, after = rms(truth), rms(truth - exact_mean)
stated = float(jnp.sqrt(area_mean(exact_spread**2)))
print(
    f"error before {before:.1f} m, after {after:.1f} m; the spread says {stated:.1f} m"
)

# %% [markdown]
# ## Look
#
# Above, what each method changes in the prior's mean (dots are the stations); below,
# the spread that is left. Where there are stations all three know more, where there are
# none they know what they knew; the grain in the lower right is the chance of 300
# samples.

# %%
increments = {"Kalman update": exact_mean}
increments |= {name: states.mean(axis=0) for name, (states, _, _) in results.items()}
left = {"Kalman update": exact_spread, **spreads}
sizes = {"ETKF": f", {MEMBERS} members", "diffusion": f", {SAMPLES} samples"}
change_levels, spread_levels = np.arange(-50, 51, 10), np.arange(6, 25, 2)

with plot.style():
    figure, axes = plt.subplots(
        2, 3, figsize=(11, 5.4), subplot_kw={"projection": ccrs.Robinson()}
    )
    for column, name in enumerate(increments):
        plot.increment(
            to_field(increments[name]),
            grid,
            station_latitude=latitude,
            station_longitude=longitude,
            ax=axes[0, column],
            levels=change_levels,
            units="m",
            label="change of height",
            title=name + sizes.get(name, ""),
        )
        plot.map_field(
            left[name],
            grid,
            ax=axes[1, column],
            levels=spread_levels,
            units="m",
            label="spread",
            colours="magma_r",
        )
plt.show()

# %% [markdown]
# ## What to take away
#
# - One `Observation` serves every method. Change the operator, the error or the mask,
#   and all three follow. It need not be linear, nor made for this state:
#   `observation.pullback(decode)` takes one of fields to one of coefficients.
# - Here a guided denoiser *is* the posterior. Exchange the formula for a trained
#   network, and the same two lines condition a prior that is not Gaussian. Nothing is
#   exact there any more: each of the three methods approximates, each in its own way.
# - Methods that draw at random deserve a test that knows how much chance to allow.

# %%
assert worst < 1e-5
for ratio, deviation, spread_ratio in verdicts.values():
    assert ratio < 1 + 4 * deviation
    assert spread_ratio < 1.5
assert after < 0.9 * before
assert abs(after / stated - 1) < 0.2
print(f"all of it took {time.perf_counter() - started:.0f} s")
