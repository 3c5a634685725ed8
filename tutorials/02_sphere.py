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
# # The sphere
#
# On a circle, any signal is a sum of sines and cosines. On the sphere the same part is
# played by the **spherical harmonics**, and half of what one does with global fields
# becomes simple once they are written as a sum of these: spectra, smoothing, winds from
# vorticity, random fields, weather itself.
#
# This page goes through them with real fields, and checks what it claims.

# %%
import time

import cartopy.crs as ccrs
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np

from skyens import data, dynamics, plot, sphere

jax.config.update("jax_enable_x64", True)  # to see what exact means; float32 stays so
started = time.perf_counter()
RADIUS, GRAVITY = 6.371e6, 9.80665


def panels(count, projection, size):
    """Return a figure and `count` maps beside each other."""
    look = {"subplot_kw": {"projection": projection}, "dpi": 72}
    return plt.subplots(1, count, figsize=size, **look)


# %% [markdown]
# ## What l and m look like
#
# A harmonic has a *degree* l and an *order* m. The degree says how fine it is: it is
# zero on l circles. The order says how many of them run through the poles. Order 0
# gives belts, order l the segments of an orange, anything between a chessboard.
#
# A field is given by its coefficients, an array `(l, m)` of complex numbers. To see one
# harmonic, set one of them.

# %%
grid = sphere.gauss_legendre(64, 128)
sht = sphere.SphericalHarmonics(grid, lmax=42)
none = jnp.zeros((43, 43), complex)
orders = (0, 1, 3, 6)
harmonics = [sht.synthesis(none.at[6, m].set(1)) for m in orders]

with plot.style():
    figure, axes = panels(4, ccrs.Orthographic(10, 30), (6.6, 1.95))
    for m, harmonic, ax in zip(orders, harmonics, axes, strict=True):
        plot.map_field(
            harmonic / abs(harmonic).max(),
            grid,
            ax=ax,
            levels=np.linspace(-1, 1, 9),
            colours="RdBu_r",
            colour_bar=False,
            title=f"l = 6, m = {m}",
        )
plt.show()

# %% [markdown]
# All four are equally fine: the Laplacian of each is `-l (l + 1)` times itself,
# whatever its order. That makes the degree the sphere's wavenumber.

# %%
for m, harmonic in zip(orders, harmonics, strict=True):
    difference = sht.laplacian(harmonic) / -42 - harmonic
    error = abs(difference).max() / abs(harmonic).max()
    print(f"m = {m}: Laplacian off by {error:.0e}, in proportion")
    assert error < 1e-11

# %% [markdown]
# ## There and back again
#
# *Synthesis* makes a field of coefficients, *analysis* takes coefficients from a field.
# For a field with degrees up to `lmax` one undoes the other, up to rounding, on any of
# the grids in use: not only on the Gauss-Legendre rows of spectral models, but also on
# equal steps with poles, as reanalyses come, and on the centres of equal cells.

# %%
grids = (
    sphere.gauss_legendre(64, 128),
    sphere.equiangular(64, 128),
    sphere.cell_centred(64, 128),
)
for grid in grids:
    lmax = grid.largest_lmax
    transform = sphere.SphericalHarmonics(grid, lmax)
    start = sphere.from_real(jr.normal(jr.key(0), ((lmax + 1) ** 2,)))
    for coefficients, limit in ((start, 1e-12), (start.astype(jnp.complex64), 1e-5)):
        field = transform.synthesis(coefficients)
        error = abs(transform.analysis(field) - coefficients).max()
        print(f"{grid.kind:14} lmax {lmax}, {field.dtype}: off by {error:.0e}")
        assert error < limit

# %% [markdown]
# ## Spectra of real fields
#
# The power of a degree is the sum of its squared coefficients over all orders: how much
# of the field's variance lies at that scale. It does not depend on where the poles are.
#
# Left, the Earth's relief. Its power falls as `l^-2` over all scales that we can see,
# a rule that Vening Meinesz found in 1951. Right, the height of the 500 hPa surface in
# ERA5. It is far steeper: weather is smooth. The ten analyses of the same moment
# disagree by far less, and nearly equally at all scales: so the smallest scales are
# known worst, in proportion.

# %%
relief = data.open_sample("topography")
relief_grid = data.grid_of(relief)
elevation = jnp.asarray(relief["elevation"].values, float)
relief_sht = sphere.SphericalHarmonics(relief_grid, lmax=180)
relief_power = relief_sht.power_spectrum(elevation)

era5 = data.open_sample("era5_eda")
era5_grid = data.grid_of(era5)
era5_sht = sphere.SphericalHarmonics(era5_grid, lmax=59)
geopotential = era5["geopotential"].sel(level=500).transpose("member", "time", ...)
height = jnp.asarray(geopotential.values, float) / GRAVITY
height_power = era5_sht.power_spectrum(height).mean((0, 1))
departure = height - height.mean(0)
departure_power = era5_sht.power_spectrum(departure).sum(0).mean(0) / 9  # unbiased


def slope_between(power, first, last):
    """Return the exponent of the power law that fits these degrees best."""
    degree = np.arange(first, last + 1)
    return np.polyfit(np.log(degree), np.log(power[first : last + 1]), 1)[0]


relief_slope = slope_between(relief_power, 10, 150)
print(
    f"relief: l^{relief_slope:.2f}; height: l^{slope_between(height_power, 15, 45):.2f}"
)
unknown = departure_power / height_power
print(f"unknown: {unknown[5]:.0e} of the power at degree 5, {unknown[50]:.0e} at 50")
assert abs(relief_slope + 2) < 0.2
assert unknown[50] > 100 * unknown[5]

with plot.style():
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.9), dpi=72)
    degree = np.arange(181)
    rule = relief_power[20] * (20 / np.maximum(degree, 1)) ** 2
    spectrum = {"l$^{-2}$": rule, "relief": relief_power}
    plot.spectra(degree, spectrum, truth="relief", ax=left, units="m2", title="Relief")
    spectrum = {"analyses": height_power, "what they disagree on": departure_power}
    plot.spectra(np.arange(60), spectrum, ax=right, units="m2", title="500 hPa height")
plt.show()

# %% [markdown]
# ## Filters
#
# To smooth a field, multiply each degree by a number. Cutting the spectrum off is the
# obvious way and a poor one: whatever is sharp gets ripples around it. Below, the
# height of the land (the sea is 0). The first filter cuts right behind degree 42, the
# other two leave `1 / e` of it.

# %%
scale = np.sqrt(2 / (42 * 43))  # radians
filters = {
    "truncation": sphere.Truncation(42),
    "hyperdiffusion": sphere.Hyperdiffusion(1.0, 1.0, degree=42),
    "Gaussian": sphere.GaussianFilter(scale),
}
land = jnp.maximum(elevation, 0)
smooth = {
    name: sphere.filter_field(relief_sht, filter, land)
    for name, filter in filters.items()
}
print("kept of degree     10    21    42    63    84   lowest value")
for name, filter in filters.items():
    kept = " ".join(f"{filter.response(84)[l]:5.2f}" for l in (10, 21, 42, 63, 84))
    print(f"{name:15} {kept} {smooth[name].min():9.0f} m")

with plot.style():
    figure, axes = panels(2, ccrs.Orthographic(-80, -15), (6, 3.5))
    for ax, name in zip(axes, ("truncation", "Gaussian"), strict=True):
        plot.map_field(
            smooth[name],
            relief_grid,
            ax=ax,
            levels=np.arange(-550, 551, 100),
            units="m",
            label="height",
            colours="BrBG_r",
            title=name.capitalize(),
        )
plt.show()
assert smooth["truncation"].min() < -500
assert smooth["Gaussian"].min() > -1

# %% [markdown]
# The truncation digs holes of a kilometre into the sea. The Gaussian is the sphere's
# heat kernel, positive everywhere, and makes no ripples; it pays with blunter
# mountains. Hyperdiffusion stands between, as the table says.
#
# ## From grid to grid
#
# A model needs this relief on its own grid. Means over cells keep the volume of the
# land; `Bilinear`, `Bicubic` and `Spectral` are the other ways.

# %%
regrid = sphere.Regridder(relief_grid, sht.grid, sphere.Conservative())
coarse = regrid(land)
volume = lambda grid, f: float(sphere.global_mean(grid, f, weights=grid.cell_areas))
before, after = volume(relief_grid, land), volume(sht.grid, coarse)
print(f"mean height {before:.6f} m on {land.shape}, {after:.6f} m on {coarse.shape}")
assert abs(after / before - 1) < 1e-12

# %% [markdown]
# ## Winds
#
# A wind has two components, and near a pole they mean little: which way is east? Its
# **vorticity** and **divergence** are scalars, as smooth there as anywhere, and say the
# same. So spectral models keep these, and make winds of them when they need them.
#
# ERA5's sample has no wind, but away from the equator the height all but fixes it. The
# *linear balance* `lap(g Z) = div(f grad psi)` gives a streamfunction `psi`, its
# Laplacian is the vorticity, and the vorticity gives the wind.

# %%
wind_sht = sphere.SphericalHarmonics(era5_grid, lmax=42)
balance = dynamics.LinearBalance(42)
psi = wind_sht.synthesis(
    balance.streamfunction(GRAVITY * wind_sht.analysis(height[0, 0]))
)
vorticity = wind_sht.laplacian(psi, radius=RADIUS)
u, v = wind_sht.wind(vorticity, 0 * vorticity, radius=RADIUS)

# %% [markdown]
# Is it so? Three checks. Vorticity and divergence of that wind must be what it was made
# of, at the poles too. `helmholtz`, which takes any wind apart into the rotating and
# the diverging one, must find `psi`, and no potential. And in middle latitudes it must
# be near the geostrophic wind, `u = -g / f dZ/dy` and `v = g / f dZ/dx`.

# %%
vorticity_again, divergence = wind_sht.vorticity_divergence(u, v, radius=RADIUS)
psi_again, potential = wind_sht.helmholtz(u, v, radius=RADIUS)
errors = {
    "vorticity": abs(vorticity_again - vorticity).max() / abs(vorticity).max(),
    "divergence": abs(divergence).max() / abs(vorticity).max(),
    "streamfunction": abs(psi_again - psi).max() / abs(psi).max(),
    "potential": abs(potential).max() / abs(psi).max(),
}
for name, error in errors.items():
    print(f"{name:14} off by {error:.0e}, in proportion")
    assert error < 1e-11

east, north = wind_sht.gradient(height[0, 0], radius=RADIUS)
middle = (era5_grid.latitude > 30) & (era5_grid.latitude < 70)
f = 2 * 7.292e-5 * np.sin(np.deg2rad(era5_grid.latitude[middle]))[:, None]
gap = jnp.hypot(
    u[middle] + GRAVITY / f * north[middle], v[middle] - GRAVITY / f * east[middle]
)
speed = jnp.hypot(u, v)
print(
    f"30N to 70N: {speed[middle].mean():.1f} m/s, {gap.mean():.1f} m/s from geostrophic"
)
assert gap.mean() < 0.2 * speed[middle].mean()

# %%
with plot.style():
    figure, (left, right) = panels(2, ccrs.NorthPolarStereo(), (6.6, 3.8))
    plot.map_field(
        speed,
        era5_grid,
        ax=left,
        levels=np.arange(0, 71, 10),
        units="m s-1",
        label="wind speed",
        colours="YlGnBu",
        title="Wind from vorticity",
    )
    plot.map_field(
        vorticity * 1e5,
        era5_grid,
        ax=right,
        levels=np.arange(-16.5, 17, 3),
        units="$10^{-5}$ s-1",
        label="vorticity",
        colours="RdBu_r",
        title="Vorticity, 2017-01-01 00 UTC",
    )
    x, y = era5_grid.longitude, era5_grid.latitude
    arrows = {"regrid_shape": 18, "scale": 700, "width": 0.003, "zorder": 4}
    left.quiver(
        x, y, np.asarray(u), np.asarray(v), transform=ccrs.PlateCarree(), **arrows
    )
plt.show()

# %% [markdown]
# ## Random fields
#
# Draw the coefficients at random, each degree with a variance of its own, and the field
# is random, the same in law at every point and in every direction. The spectrum says
# the rest: here Matern's, with two length scales.
#
# There is a trap. Coefficients of order 0 are real, all others have a real and an
# imaginary part, and who halves the variance of all parts alike makes the poles quieter
# than the equator: there order 0 is all there is. So we draw 10,000 fields and look.

# %%
polar_grid = sphere.equiangular(33, 64)
polar_sht = sphere.SphericalHarmonics(polar_grid, lmax=21)
power = jnp.asarray(sphere.matern_spectrum(21, length_scale=0.3))
field = sphere.GaussianRandomField(polar_sht, power)
halved = jnp.ones(22).at[0].set(np.sqrt(0.5))


@jax.jit
def squares(key):
    coefficients = field.coefficients(key, (500,))
    both = jnp.stack([coefficients, halved * coefficients])
    return jnp.mean(polar_sht.synthesis(both) ** 2, axis=(1, 3))


variance, wrong = jax.lax.map(squares, jr.split(jr.key(1), 20)).mean(0)
ratio = float((variance[0] + variance[-1]) / 2 / variance[16])
print(f"variance at the poles over that at the equator: {ratio:.3f}")
assert abs(ratio - 1) < 4 * np.sqrt(2 / 20_000)  # what chance allows two poles

# %%
rough, smoother = (
    sphere.GaussianRandomField(
        sht, jnp.asarray(sphere.matern_spectrum(42, length_scale=length))
    ).sample(jr.key(2))
    for length in (0.1, 0.5)
)

with plot.style():
    figure = plt.figure(figsize=(8, 2.5), dpi=72)
    maps = [figure.add_subplot(1, 3, i, projection=ccrs.Robinson()) for i in (1, 2)]
    for sample, length, ax in zip((rough, smoother), (0.1, 0.5), maps, strict=True):
        plot.map_field(
            sample,
            sht.grid,
            ax=ax,
            levels=np.arange(-3.3, 3.4, 0.6),
            label="one sample",
            colours="RdBu_r",
            title=f"Length scale {length} rad",
        )
    ax = figure.add_subplot(1, 3, 3)
    ax.plot(polar_grid.latitude, variance, label="skyens")
    ax.plot(polar_grid.latitude, wrong, "--", label="order 0 halved")
    ax.set(ylim=(0, 1.2), xticks=range(-90, 91, 45), xlabel="latitude (degrees)")
    ax.set_title("Variance of 10,000")
    ax.legend(loc="lower center")
plt.show()

# %% [markdown]
# ## A world on it: the jet that rolls up
#
# Last, all of it at work. `dynamics.ShallowWater` steps the vorticity, divergence and
# height of one layer of fluid on a rotating sphere: it goes to the grid for products,
# and back for all else.
#
# Galewsky, Scott and Polvani (2004) gave such models a test. A narrow jet blows around
# the north, in perfect balance, and would do so for ever. A bump of 120 m in the height
# disturbs it; within six days the jet rolls up into vortices. We run both, with and
# without the bump, as two members side by side.

# %%
jet_sht = sphere.SphericalHarmonics(sphere.gauss_legendre(96, 192), lmax=63)
model = dynamics.ShallowWater(
    jet_sht, time_step=3600.0, substeps=2, hyperdiffusion=1e15
)
fields = [
    dynamics.galewsky_jet(jet_sht.grid, perturbation=bump) for bump in (120.0, 0.0)
]
jets = dynamics.ShallowWaterState.from_fields(
    jet_sht, *(jnp.stack(pair) for pair in zip(*fields, strict=True))
)
run = lambda jet: dynamics.rollout(model, jet, 6 * 24)
path = eqx.filter_jit(jax.vmap(run))(jets)  # coefficients (member, hour, l, m)

# %% [markdown]
# The *eddies* are what is not the same at all longitudes: every order but 0. Their
# vorticity grows by a factor of e in less than a day, until the waves break. Without
# the bump there is nothing to grow. The mass is conserved to the last bit.

# %%
bumped = path.vorticity[0]
eddies = jnp.sqrt(jnp.sum(jnp.abs(path.vorticity[..., 1:]) ** 2, (-2, -1)))
daily = eddies[:, 23::24]
for day, (with_bump, without) in enumerate(daily.T, 1):
    print(f"day {day}: eddy vorticity {with_bump:.1e} s-1, without bump {without:.0e}")
mass = path.height[:, :, 0, 0].real
drift = float(abs(mass[:, -1] / mass[:, 0] - 1).max())
print(f"grown {daily[0, -1] / daily[0, 0]:.0f} times; mass off by {drift:.0e}")
assert daily[0, -1] > 50 * daily[0, 0]
assert daily[1, -1] < 1e-6 * daily[0, -1]
assert drift < 1e-14

# %% [markdown]
# Coastlines are there for orientation only; this planet is all water.

# %%
days = (4, 6)
with plot.style():
    figure, axes = panels(2, ccrs.NorthPolarStereo(), (6, 3.5))
    for day, ax in zip(days, axes, strict=True):
        plot.map_field(
            jet_sht.synthesis(bumped[24 * day - 1]) * 1e5,
            jet_sht.grid,
            ax=ax,
            levels=np.arange(-11, 12, 2),
            units="$10^{-5}$ s-1",
            label="vorticity",
            colours="RdBu_r",
            title=f"Day {day}",
        )
plt.show()

# %% [markdown]
# ## What to take away
#
# - `analysis` and `synthesis` are exact up to the largest degree a grid can hold, on
#   every grid here; derivatives are exact as well, and poles are points like others.
# - Filters, spectra and random fields are numbers by degree. Nothing more is needed.
# - All of it is JAX: it runs under `jit`, `vmap` and `grad`, in float32 if its input
#   does, and a whole week of weather is one function of where it started.

# %%
print(f"all of it took {time.perf_counter() - started:.0f} s")
