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
# # Assimilate real stations
#
# At noon of 2 November 2018 (UTC) some 7,800 weather stations reported. They stand
# where people live, on mountains and in valleys; some are wrong, and one claims 99
# degrees Celsius. From the climate of November and these reports we make maps of
# temperature and surface pressure, and say how sure of them we are.
#
# One station in five is set aside before anything is looked at. All that is claimed
# here is measured there.
#
# The second part follows 1,200 stations of North America through a day, hour by hour,
# and asks whether the filter foresees the next hour better than the last report does.

# %%
import cartopy.crs as ccrs
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np

from skyens import assimilation, data, observations, plot, sphere

reports = data.open_sample("synop")
number = reports.sizes["obs"]
withheld = np.random.default_rng(20181102).permutation(number) < number // 5
placed = np.isfinite(reports["elevation"].values)  # without a height, no prediction
reports, withheld = reports.isel(obs=placed), withheld[placed]
places = {name: reports[name].values for name in ("latitude", "longitude", "elevation")}
print(f"{number} reports, {placed.sum()} with a height, {withheld.sum()} withheld")
print(f"hottest {reports['temperature'].max().item():.1f} K")

# %% [markdown]
# ## A world with mountains
#
# The state is temperature and pressure *at the ground*, on a grid of 2.5 degrees over
# the real relief. A station is not at the height of its grid cell. The operator takes
# it there: by 6.5 K for each kilometre, and for pressure by the weight of the air in
# between (the hypsometric equation), which depends on the state's own temperature.

# %%
grid = sphere.equiangular(73, 144)
topography = data.open_sample("topography")["elevation"]
to_grid = sphere.Regridder(data.grid_of(topography), grid)
ground = np.maximum(topography.values, 0).astype(np.float32)
relief = to_grid(jnp.asarray(ground))  # m
land = to_grid(jnp.asarray((topography.values > 0).astype(np.float32)))
LAPSE, GRAVITY, GAS = 6.5e-3, 9.80665, 287.05  # K m-1, m s-2, J kg-1 K-1


def weight_of_air(base, top, temperature_at_top):
    """Return pressure at `top` over that at `base`, heights in m."""
    mean = temperature_at_top + LAPSE * (top - base) / 2
    return jnp.exp(-GRAVITY * (top - base) / (GAS * mean))


class Station(eqx.Module):
    """What a thermometer, or a barometer, shows at places of any height."""

    look: observations.Interpolate
    height: jax.Array
    barometer: bool = eqx.field(static=True)

    def __call__(self, state):
        ground = self.look(relief)
        temperature = self.look(state["temperature"]) + LAPSE * (ground - self.height)
        if not self.barometer:
            return temperature
        pressure = jnp.exp(self.look(jnp.log(state["pressure"])))
        return pressure * weight_of_air(ground, self.height, temperature)


def station(place, barometer):
    """Return the operator of stations at `place`."""
    look = observations.Interpolate(grid, place["latitude"], place["longitude"])
    return Station(look, place["elevation"], barometer)


# %% [markdown]
# ## What we know without a report
#
# The climate of November: surface temperature from a seasonal model (the mean of 13
# forecasts for another November, made in July 2011), pressure at sea level from the
# logs of ships, carried inland. Over land the sun adds a daily cycle of 4 K either way,
# highest at half past two. Nothing of it has seen a report of this day.


# %%
def fill(field):
    """Carry a field over the places where it is missing, as smoothly as can be."""
    missing, field = jnp.isnan(field), jnp.where(jnp.isnan(field), jnp.nanmean(field), field)

    def relax(_, x):
        edge = jnp.pad(x, ((1, 1), (0, 0)), mode="edge")
        mean = (edge[:-2] + edge[2:] + jnp.roll(x, 1, 1) + jnp.roll(x, -1, 1)) / 4
        return jnp.where(missing, mean, field)

    return jax.lax.fori_loop(0, 4000, relax, field)


def to_ours(field, source):
    """Interpolate a field bilinearly to our grid."""
    latitude, longitude = np.meshgrid(grid.latitude, grid.longitude, indexing="ij")
    where = (jnp.asarray(x.ravel(), jnp.float32) for x in (latitude, longitude))
    return sphere.interpolate(source, field, *where).reshape(latitude.shape)


globe = data.open_sample("glosea4")["surface_temperature"]
ships = data.open_sample("coads")["mean_sea_level_pressure"]
height_there = sphere.Regridder(data.grid_of(topography), data.grid_of(globe))(ground)
warmth = jnp.asarray(globe.values, jnp.float32) + LAPSE * height_there  # at sea level
solar_hour = 12 + jnp.asarray(grid.longitude, jnp.float32)[None] / 15
sun = 4 * jnp.cos(2 * jnp.pi * (solar_hour - 14.5) / 24)
temperature = to_ours(warmth, data.grid_of(globe)) - LAPSE * relief + sun * land
sea_level = fill(jnp.asarray(ships.values, jnp.float32))
pressure = to_ours(sea_level, data.grid_of(ships))
pressure = pressure * weight_of_air(0.0, relief, temperature)
climate = {"temperature": temperature, "pressure": pressure}

# %% [markdown]
# ## Forty possible worlds
#
# How the weather departs from it is drawn at random: sums of spherical random fields,
# each with a scale of its own and an amplitude that depends on the place. So the
# covariance is not isotropic. Temperature varies more over land than over sea, and on
# smaller scales in the mountains; pressure varies more towards the poles.
#
# Scales, amplitudes and the reach of the filter further down were chosen on a quarter
# of the *kept* stations, never on those withheld.

# %%
MEMBERS = 40
sht = sphere.SphericalHarmonics(grid, lmax=71)
polar = jax.nn.sigmoid((abs(jnp.asarray(grid.latitude, jnp.float32)) - 35) / 6)
everywhere = jnp.ones_like(relief)
LAWS = {  # scales in km, amplitudes in K and (at sea level) Pa
    "temperature": (
        (700, 400, 300),
        (3 * everywhere, 3 * land, jnp.clip(relief, 0, 3000) / 800),
    ),
    "pressure": (
        (1000, 400),
        (400 + 500 * polar[:, None] * everywhere, 50 + 100 * land + relief / 10),
    ),
}


def random_fields(scales):
    """Return independent unit random fields, one for each scale in km."""
    spectra = [sphere.matern_spectrum(sht.lmax, scale / 6371) for scale in scales]
    return sphere.GaussianRandomField(sht, jnp.asarray(np.stack(spectra), jnp.float32))


def draw(name, key):
    """Draw departures from the climate, `(member, latitude, longitude)`, mean 0."""
    scales, amplitudes = LAWS[name]
    parts = random_fields(scales).sample(key, (MEMBERS,)) * jnp.stack(amplitudes)
    departures = parts.sum(axis=1)
    return departures - departures.mean(axis=0)


background = {
    "temperature": temperature + draw("temperature", jr.key(1)),
    "pressure": pressure * (1 + draw("pressure", jr.key(2)) / 101_325),
}

# %% [markdown]
# ## How far to trust a report
#
# A perfect thermometer still does not show what a cell of 250 km has on average: we
# give it an error of 1.8 K. A barometer gets 2 hPa, for heights that are known to some
# 15 m, and 2 hPa more for each kilometre between it and the ground of the grid.
#
# Is that reasonable? Two kept stations within 50 km see nearly the same weather, so
# their departures from the climate differ by little but their errors.


# %%
def table_of(variable, which):
    """Return the operator's variable at those stations, as an observation."""
    chosen = reports.isel(obs=np.flatnonzero(which))
    barometer = variable == "surface_pressure"
    higher = chosen["elevation"].values - np.asarray(
        sphere.interpolate(
            grid,
            relief,
            jnp.asarray(chosen["latitude"].values, jnp.float32),
            jnp.asarray(chosen["longitude"].values, jnp.float32),
        )
    )
    error = np.hypot(200, 0.2 * higher) if barometer else np.full(higher.shape, 1.8)
    return data.station_observation(
        chosen.astype(np.float32),
        variable,
        operator=lambda place: station(place, barometer),
        error=observations.Diagonal(np.asarray(error, np.float32)),
    )


VARIABLES = {"temperature": "temperature", "pressure": "surface_pressure"}
UNITS = {"temperature": ("K", 1.0), "pressure": ("hPa", 100.0)}
north, east = np.deg2rad(places["latitude"]), np.deg2rad(places["longitude"])
position = np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)
near = np.stack(position)[:, ~withheld]
first, second = np.nonzero(np.triu(near.T @ near > np.cos(50 / 6371), 1))
for name, variable in VARIABLES.items():
    kept = table_of(variable, ~withheld)
    departure = np.asarray(kept.residual(kept.predict(climate)))
    both = np.asarray(kept.mask)[first] & np.asarray(kept.mask)[second]
    difference = abs(departure[first] - departure[second])[both]
    units, scale = UNITS[name]
    error = 1.4826 * np.median(difference) / np.sqrt(2) / scale
    print(f"{name}: {both.sum()} pairs within 50 km, error about {error:.1f} {units}")

# %% [markdown]
# ## Quality control
#
# Every report is checked twice. Against the ensemble: it must lie within five standard
# deviations of what forty worlds and its own error allow. That stops nonsense only, as
# the climate knows so little. And against its neighbours within 300 km: a rare day
# moves all of them, an error moves one. The withheld stations are checked in the same
# way, before any analysis, so that all methods are judged by the same reports.

# %%
usable, rejected = {}, {}
for name, variable in VARIABLES.items():
    everything = table_of(variable, np.ones(withheld.size, bool))
    first = eqx.filter_jit(observations.gross_error_check)(everything, background)
    second = eqx.filter_jit(observations.buddy_check)(first, background, radius=300e3)
    usable[name], rejected[name] = np.asarray(second.mask), np.asarray(second.rejected)
    gross = int(first.rejected.sum())
    print(
        f"{name}: {int(everything.mask.sum())} reports, {gross} fail against the "
        f"ensemble, {rejected[name].sum() - gross} against their neighbours"
    )
hot = np.asarray(reports["temperature"]) > 340
assert rejected["temperature"][hot].all()

# %%
def stations_on(ax, which, values=None, **look):
    """Draw stations, coloured by values if there are some."""
    where = ax.projection.transform_points(
        ccrs.PlateCarree(), places["longitude"][which], places["latitude"][which]
    )
    return ax.scatter(where[:, 0], where[:, 1], c=values, zorder=5, **look)


with plot.style():
    figure = plt.figure(figsize=(6.2, 3.2), dpi=60)
    ax = figure.add_subplot(projection=ccrs.Robinson())
    plot.map_field(
        np.asarray(relief), grid, ax=ax, levels=[0, 500, 1500, 3000, 5500],
        colours="Greys", colour_bar=False, title="Rejected reports",
    )  # fmt: skip
    for (name, which), colour in zip(rejected.items(), ("#c1272d", "#0000a7"), strict=True):
        stations_on(ax, which, s=14, color=colour, label=f"{name}, {which.sum()}")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2)
plt.show()

# %% [markdown]
# ## The analysis
#
# A local ensemble transform Kalman filter: at each grid point, the forty worlds are
# recombined so that they fit the reports about it. Its reach is a Gaspari-Cohn function
# that ends after 1,000 km for temperature and 1,400 km for pressure.

# %%
LENGTH = {"temperature": 500e3, "pressure": 700e3}


def analyse(name, state, observation, localisation):
    """Return the ensemble with one of its fields analysed."""
    method = assimilation.LETKF(localisation, where=lambda state: state[name])
    return eqx.filter_jit(method)(state, observation)


kept, localisations, analysis = {}, {}, background
for name, variable in VARIABLES.items():
    kept[name] = table_of(variable, usable[name] & ~withheld)
    localisations[name] = assimilation.Localisation(
        grid, kept[name].coordinates, length=LENGTH[name]
    )
    analysis, info = analyse(name, analysis, kept[name], localisations[name])
    print(f"{name}: {int(info.used)} reports used")

# %% [markdown]
# ## The verdict, where nobody looked
#
# At the withheld stations: how far are background and analysis from the report? The
# ensemble says how far it expects to be: its spread there, and the report's own error.
#
# The best that can be done with this background is *optimal interpolation* with the
# very covariance that drew it: no ensemble, no localisation, an exact solution (here
# with the 200 kept stations nearest to each place, which is all that matters). And to
# see what the amplitudes and scales by land, sea, height and latitude are worth, the
# same with an isotropic covariance: one amplitude, the root-mean-square of the others
# at the kept stations, and one scale, of the largest component.


# %%
def optimal_interpolation(name, kept, departure, target, isotropic=False):
    """Return mean and standard deviation of the departure at the places of `target`."""
    scales, amplitudes = LAWS[name]
    here, there = kept.coordinates, target.coordinates

    def sizes(observation):
        seen = observation.operator.look(jnp.stack(amplitudes))
        if name == "pressure":
            seen = seen * observation.predict(climate)[None] / 101_325
        return seen

    size, size_there = sizes(kept), sizes(target)
    if isotropic:
        scales = scales[:1]
        power = jnp.sum(size**2, axis=0)
        size, size_there = (jnp.full((1, x.shape[1]), jnp.sqrt(power.mean())) for x in (size, size_there))
    distances = jnp.linspace(0, jnp.pi, 8001)
    tables = random_fields(scales).covariance(distances)
    error = kept.error.std

    def covariance(lat1, lon1, size1, lat2, lon2, size2):
        angle = sphere.great_circle_distance(lat1, lon1, lat2, lon2)
        parts = [jnp.interp(angle, distances, table) for table in tables]
        return sum(a * b * c for a, b, c in zip(size1, size2, parts, strict=True))

    def at(place):
        latitude, longitude, size_here = place
        angle = sphere.great_circle_distance(
            latitude, longitude, here["latitude"], here["longitude"]
        )
        _, near = jax.lax.top_k(-angle, 200)
        lat, lon, own = here["latitude"][near], here["longitude"][near], size[:, near]
        among = covariance(lat[:, None], lon[:, None], own[:, :, None], lat, lon, own[:, None])
        towards = covariance(latitude, longitude, size_here, lat, lon, own)
        right = jnp.stack([departure[near], towards], axis=1)
        solved = jnp.linalg.solve(among + jnp.diag(error[near] ** 2), right)
        variance = jnp.sum(size_here**2) - towards @ solved[:, 1]
        return towards @ solved[:, 0], jnp.sqrt(variance)

    points = there["latitude"], there["longitude"], size_there.T
    return jax.jit(lambda x: jax.lax.map(at, x, batch_size=8))(points)


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


def judge(name, ensemble, target):
    """Return the departures of the mean, and what spread and error expect of them."""
    seen = jax.vmap(target.predict)(ensemble)
    expected = rms(np.hypot(seen.std(axis=0, ddof=1), target.error.std))
    return np.asarray(target.value - seen.mean(axis=0)), expected


score = {}
print("at withheld stations     climate   LETKF   optimal   isotropic   spread/error")
for name, variable in VARIABLES.items():
    target = table_of(variable, usable[name] & withheld)
    before = np.asarray(target.residual(target.predict(climate)))
    after, expected = judge(name, analysis, target)
    departure = kept[name].residual(kept[name].predict(climate))
    methods = [
        before - np.asarray(optimal_interpolation(name, kept[name], departure, target, flat)[0])
        for flat in (False, True)
    ]
    units, scale = UNITS[name]
    errors = [rms(x) / scale for x in (before, after, *methods)]
    score[name] = (*errors, expected / scale / errors[1], before, after)
    print(
        f"{name:12s} {before.size:5d} {units:4s}"
        + "".join(f"{error:9.2f}" for error in errors)
        + f"{score[name][4]:13.2f}"
    )
