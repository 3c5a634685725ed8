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
# # What is missing in a real forecast?
#
# The first numerical forecast knew one equation and one field: vorticity is carried
# along in a layer of air, and the layer is the 500 hPa surface. After 12 hours it is
# wrong by some twenty metres. Can the errors themselves say what the equation lacks?
#
# We take the model of the first forecast, pairs of real analyses, and a list of terms
# that could be missing. A regression tells how much of each would have made the
# forecasts right. That is the easy part. The hard part is to know which of its answers
# to believe: real errors have structure, real samples are small, and a regression is
# never at a loss for an answer. So this is a page about doubt as well.

# %%
import time
from functools import partial
from itertools import pairwise

import cartopy.crs as ccrs
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np

from skyens import data, demo, dynamics, plot, sparse, sphere

jax.config.update("jax_enable_x64", True)
started = time.perf_counter()

# %% [markdown]
# ## Pairs
#
# ERA5's ten analyses at four times make three windows of 12 hours, with ten pairs in
# each: an analysis, and the one that followed it. We learn from the first two windows
# and keep the third to see whether what was learned is true.
#
# The state holds the heights of two surfaces, 500 and 850 hPa. We judge the first; what
# the second is there for will be seen. The model steps each as if there were no other.

# %%
DAY, WINDOW = 86400.0, 0.5  # s; days
sample = data.open_sample("era5_eda")
grid = data.grid_of(sample)
height = sample["geopotential"].sel(level=[500, 850]) / 9.80665
height = height.transpose("time", "member", "level", "latitude", "longitude")
analyses = jnp.asarray(height.values, jnp.float32)  # single precision is enough

six_hours = demo.physics(grid)
model, inner = six_hours.model, six_hours.model.sht
step = dynamics.BalancedHeight(model, six_hours.balance, six_hours.sht, steps=12)

# %% [markdown]
# ## Candidates
#
# The model says that potential vorticity is carried by the wind,
#
# $$\partial_t (\nabla^2 \psi - \psi / R^2) = -J(\psi, \nabla^2 \psi + f),$$
#
# with the streamfunction $\psi$ and a deformation radius $R$ of 1500 km. Each candidate
# is something to be added on the right. Eight of them a single layer may have:
#
# - `advection`, `beta`: a share of what is there already, if the wind at 500 hPa is not
#   the one that carries;
# - `radius`: another $1 / R^2$, as a share of the model's;
# - `topography`: columns of air that shrink where they climb mountains;
# - `drag`: on vorticity; `relaxation`: of all eddies towards the zonal mean (per day);
# - `diffusion` (in 10^6 m2/s), and more or less `hyperdiffusion`, as a share of the
#   model's.
#
# The ninth, `thermal`, no single layer can have: $-J(\psi, \psi_{850}) / R^2$. Where
# the wind of 500 hPa crosses the height lines of 850 hPa it carries warm or cold air,
# and the surfaces above rise or sink. It is how storms grow, and Charney's computer
# left it out.
#
# A term is any function of the state. These are written as tendencies of potential
# vorticity and turned into metres per day.

# %%
relief = data.open_sample("topography")["elevation"]
ground = jnp.asarray(np.maximum(relief.values, 0), jnp.float32)
ground = sphere.Regridder(data.grid_of(relief), inner.grid)(ground)
coriolis = 2 * model.rotation * np.cos(inner.grid.colatitude)[:, None]
coriolis = jnp.asarray(coriolis * np.ones(inner.grid.shape), jnp.float32)
per_area = float(1 / model.deformation_radius**2)
hyperdiffusion = float(model.hyperdiffusion)

jacobian = partial(sparse.sphere_jacobian, inner, radius=model.radius)
laplacian = partial(inner.laplacian, radius=model.radius)
eigenvalues = inner.laplacian_eigenvalues(model.radius)[:, None]
eigenvalues = jnp.asarray(eigenvalues, jnp.float32)
pv = lambda psi: laplacian(psi) - per_area * psi
invert = lambda field: inner.analysis(field) / (eigenvalues - per_area)
eddies = lambda psi: psi - jnp.mean(psi, axis=-1, keepdims=True)
model_tendency = lambda psi: -jacobian(psi, laplacian(psi) + coriolis)

CANDIDATES = {
    "advection": lambda psi, below: -jacobian(psi, laplacian(psi)),
    "beta": lambda psi, below: -jacobian(psi, coriolis),
    "radius": lambda psi, below: (
        per_area * inner.synthesis(invert(model_tendency(psi)))
    ),
    "topography": lambda psi, below: -jacobian(psi, coriolis * ground / 1e4),
    "drag": lambda psi, below: -laplacian(psi) / DAY,
    "relaxation": lambda psi, below: -pv(eddies(psi)) / DAY,
    "diffusion": lambda psi, below: 1e6 * laplacian(pv(psi)),
    "hyperdiffusion": lambda psi, below: (
        -hyperdiffusion * laplacian(laplacian(pv(psi)))
    ),
    "thermal": lambda psi, below: -per_area * jacobian(psi, below),
}


def term(name, tendency):
    def metres_per_day(heights):
        psi, below = inner.synthesis(step.streamfunction(heights))
        change = DAY * step.height(invert(tendency(psi, below)))
        return jnp.stack([change, jnp.zeros_like(change)])  # at 500 hPa alone

    return sparse.Term(name, metres_per_day)


library = sparse.Library([term(*item) for item in CANDIDATES.items()])
names = np.asarray(library.names)

# %% [markdown]
# ## The regression
#
# In 12 hours what a term adds is itself carried around. `model_error_pairs` takes care
# of that: it evaluates all candidates at both ends of a window, and carries those of
# its beginning to the end by the model's tangent linear.
#
# Near the equator heights say little of the wind, and beyond 80 degrees there are many
# points and little area. So we look at 20 to 80 degrees of both hemispheres, and weigh
# by area.

# %%
inside = (np.abs(grid.latitude) > 20) & (np.abs(grid.latitude) < 80)
root = np.sqrt(grid.weights[inside] / grid.weights[inside].mean())[:, None]
belts = lambda heights: heights[0, inside] * root

windows = [
    sparse.model_error_pairs(
        step, before, after, library, dt=WINDOW, quadrature=sparse.Trapezoid()
    ).of(belts)
    for before, after in pairwise(analyses)
]
windows = jax.tree.map(lambda values: values.astype(float), windows)
rms = lambda field: float(jnp.sqrt(jnp.mean(field**2)))
for number, window in enumerate(windows):
    error = WINDOW * window.target
    print(
        f"window {number}: the forecasts are off by {rms(error):.1f} m, "
        f"the ten errors differ by {rms(error - error.mean(0)):.1f} m"
    )
print(f"{time.perf_counter() - started:.0f} s so far")

# %% [markdown]
# Note the second number. Ten members of one weather err alike; they are one sample, and
# not ten.
#
# `compress` makes a small triangle of each window's 48,000 rows; problems add up.

# %%
ONE_LAYER, EVERY = jnp.asarray(names != "thermal"), jnp.ones(len(names), bool)


@jax.jit
def problem(window, allowed):
    """Return a window's regression. A column of zeros is never found."""
    matrix = jnp.where(allowed, window.matrix, 0)
    return sparse.compress(matrix, window.values, names=library.names)


@jax.jit
def examine(fitted, held):
    """Return fit and path, and the share of the error they leave, held out too."""
    path, fit = sparse.backward_path(fitted), sparse.rvm(fitted)
    left = lambda mean: held.rest + jnp.sum((held.target - held.factor @ mean) ** 2)
    variance = path.misfit[0] / fitted.rows
    nothing = -0.5 * fitted.rows * (jnp.log(2 * jnp.pi * variance) + 1)
    return {
        "path": path,
        "elbow": sparse.elbow(path),
        "mean": fit.mean,
        "z": fit.z,
        "gain": fit.log_evidence - nothing,
        "left": path.misfit / path.misfit[0],
        "held out": jax.vmap(left)(path.mean) / left(0 * fit.mean),
    }


def learn(windows, allowed):
    first, second, last = (problem(window, allowed) for window in windows)
    return {"terms": int(allowed.sum()), **examine(first + second, last)}


control = [jax.tree.map(lambda values: values[:1], window) for window in windows]
one_layer, alone = learn(windows, ONE_LAYER), learn(control, ONE_LAYER)

# %% [markdown]
# ## All that glitters
#
# Let us begin with the eight candidates of a single layer. The relevance vector machine
# finds the coefficients where the evidence is largest. It keeps them all, dozens of
# standard deviations from zero, and the data are e to the power of thousands likelier
# than without them.

# %%
print(f"{'':<16}{'coefficient':>12}{'z':>8}{'z, control alone':>18}")
for name, *row in zip(
    names, one_layer["mean"], one_layer["z"], alone["z"], strict=True
):
    if name != "thermal":
        print(f"{name:<16}{row[0]:>12.2f}{row[1]:>8.0f}{row[2]:>18.0f}")
print(f"log-evidence {one_layer['gain']:+.0f}, control alone {alone['gain']:+.0f}")

# %% [markdown]
# Nobody should believe that. Ten members make z larger by the root of ten, and nothing
# was learned from the other nine. Nor are the rows of one member independent: errors
# are systems a thousand kilometres wide, with dozens of points in each.
#
# What would the method find where there is nothing to be found? Turn the errors about
# the Earth's axis, against the weather that is to explain them. They keep their size,
# scales and latitudes, and have nothing to do with the columns any more. (What is the
# same at all longitudes stays, so the bar is if anything too high.)


# %%
@jax.jit
def turned(window, shift):
    target = jnp.roll(window.target, shift, axis=-1)
    return sparse.ModelErrorPairs(window.columns, target)


shifts = jnp.arange(10, 111, 4)  # of 3 degrees each
worlds = [learn([turned(w, shift) for w in control], EVERY) for shift in shifts]
worlds = jax.tree.map(lambda *values: jnp.stack(values), *worlds)
false = jnp.sum(jnp.abs(worlds["z"]) > 4, axis=1)
largest = jnp.max(jnp.abs(worlds["z"]), axis=1)
bar_jump = float(jnp.max(worlds["elbow"].jump))
explained = np.asarray(1 - worlds["held out"])
print(
    f"{len(shifts)} worlds without model error, on average: {false.mean():.1f} of "
    f"{len(names)} terms\nwith z above 4, the largest {largest.mean():.0f}; "
    f"log-evidence {worlds['gain'].mean():+.0f}.\n"
    f"Largest jump of a path: {jnp.median(worlds['elbow'].jump):.3f} in the middle, "
    f"{bar_jump:.3f} at most.\nAll terms explain {np.median(explained[:, -1]):.1%} of "
    f"the window held out, {explained.max():.1%} at most."
)

# %% [markdown]
# Where nothing is to be found, z and evidence find half of the library: both take
# residuals for white noise. Two things do not, and they are worth looking at. The
# *backward path* leaves out the least useful term again and again; its elbow is where
# the error jumps most. And the *window held out* has not been fitted.


# %%
def show(title, found):
    bend, support = found["elbow"], np.asarray(found["path"].support)
    print(f"{title}: the elbow is at {bend.size}, with a jump of {bend.jump:.3f}")
    print(f"{'terms':>6}{'left':>8}{'held out':>10}   the last to come")
    for size in range(found["terms"] + 1):
        last = names[support[size] & ~support[max(size - 1, 0)]]
        print(
            f"{size:>6}{found['left'][size]:>8.1%}{found['held out'][size]:>10.1%}"
            f"   {''.join(last)}"
        )


show("one layer", one_layer)

# %% [markdown]
# There is no elbow: the largest jump is no larger than chance makes it in a world
# without model error. No single term is what a layer lacks. Yet the whole is worth
# something: in the window held out the variance of the error goes down by a fifth,
# twice as much as in the luckiest of the turned worlds.
#
# ## The term that no layer has
#
# Now the ninth candidate may take part.

# %%
two_levels = learn(windows, EVERY)
show("two levels", two_levels)

# %% [markdown]
# Here is an elbow. It stands at one term, and its jump is beyond what chance does. What
# the barotropic forecast lacks first of all is that it is barotropic.
#
# For the others we need an uncertainty that knows of systems. Cut both belts into 48
# boxes of 30 degrees, draw boxes with replacement, each with all its points and both
# windows, and fit again: a bootstrap by blocks.


# %%
def by_boxes(rows):
    boxes = rows.reshape(2, 4, 10, 12, 10, -1)  # window, band, row, sector, column
    return boxes.transpose(1, 3, 0, 2, 4, 5).reshape(-1, rows.shape[-1])


pair = jax.tree.map(lambda *values: jnp.concatenate(values), *control[:2])
fits = sparse.bootstrap(
    by_boxes(pair.matrix),
    by_boxes(pair.values[:, None])[:, 0],
    lambda resampled: sparse.ridge(resampled).mean,
    resamples=200,
    block=200,
    key=jr.key(0),
)
mean, deviation = two_levels["path"].mean[-1], jnp.std(fits, axis=0)
z = mean / deviation
as_large = jnp.sum(jnp.abs(worlds["path"].mean[:, -1]) >= jnp.abs(mean), axis=0)
columns = mean, deviation, z, two_levels["z"], as_large
print(f"{'':<16}{'coefficient':>15}{'z by boxes':>13}{'z by rows':>11}{'turned':>9}")
for name, *row in zip(names, *columns, strict=True):
    print(
        f"{name:<16}{row[0]:>7.2f} +- {row[1]:.2f}{row[2]:>12.1f}{row[3]:>11.0f}"
        f"{row[4]:>9}"
    )

# %% [markdown]
# Of z in the dozens little more than 4 is left. The last column counts the turned
# worlds, of 26, that made a coefficient as large. Four terms stand both tests:
#
# - **thermal**: the deformation radius that it implies, 1500 km over the root of the
#   coefficient, is one of 1200 km, a size that storms have;
# - **topography** at less than half: the wind that climbs mountains is weaker than that
#   at 500 hPa;
# - **relaxation** of the eddies, in ten to fifteen days;
# - **advection**, but not for itself. Its column resembles those of beta and radius,
#   and without these (in the equation below) nothing is left of it.
#
# A negative diffusion is no physics but the growth of short waves, for which the list
# has no better term; chance makes as much of it. Drag is found in the turned worlds
# too: it sees what is the same at all longitudes and does not turn.

# %%
kept = (jnp.abs(z) > 3) & (as_large == 0)
fitted = problem(windows[0], EVERY) + problem(windows[1], EVERY)
equations = {
    "model": jnp.zeros(len(names)),
    "elbow": two_levels["elbow"].mean,
    "one layer": one_layer["path"].mean[-1],
    "both tests": sparse.ridge(fitted, support=kept).mean,
    "all terms": mean,
}
print(library.equation(equations["both tests"], left="dz/dt - model", digits=2))

# %% [markdown]
# Left, the paths. Right, what each term changes in 12 hours, with two standard
# deviations of the bootstrap; grey, the same in the turned worlds.

# %%
size = WINDOW * jnp.sqrt(jnp.mean(pair.matrix**2, axis=0))
effect = lambda coefficients: np.asarray(coefficients * size)
line = {"color": "0.8", "linewidth": 0.8}
with plot.style():
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8.4, 3.4), layout="constrained", width_ratios=(1, 1.1)
    )
    left.plot(100 * np.asarray(worlds["held out"]).T, **line)
    left.plot([], label="held out, turned worlds", **line)
    both = {"one layer": (one_layer, "C0"), "two levels": (two_levels, "C1")}
    for name, (found, colour) in both.items():
        for key, kind in (("left", "fitted"), ("held out", "held out")):
            share = 100 * found[key][: found["terms"] + 1]
            look = "--" if kind == "fitted" else "o-"
            left.plot(share, look, color=colour, ms=4, label=f"{kind}, {name}")
    left.set(xlabel="terms", ylabel="variance of the error left (%)", ylim=(45, 104))
    left.legend(fontsize=8, loc="lower left")
    places = np.arange(len(names))
    for world in effect(worlds["path"].mean[:, -1]):
        right.plot(world, places, "|", color="0.75", markersize=9)
    right.errorbar(
        effect(mean), places, xerr=2 * effect(deviation), fmt="o", ms=4, capsize=2
    )
    right.axvline(0, color="black", linewidth=0.8)
    right.set_yticks(places, labels=names)
    right.invert_yaxis()
    right.set_xlabel("change in 12 hours (m)")
plt.show()

# %% [markdown]
# ## Does it forecast?
#
# The columns above came from analyses at both ends of a window, and a part of what they
# explain is their own: the end of a window knows of the error. So the last word is that
# of forecasts. `CorrectedStep` is a step again, model and found terms together. It
# starts from the third analysis, and knows nothing of the fourth.


# %%
@eqx.filter_jit
def forecast(coefficients, starts):
    corrected = sparse.CorrectedStep(
        step, library, coefficients, dt=WINDOW, quadrature=sparse.Trapezoid()
    )
    return jax.vmap(corrected)(starts)[:, 0]


def rmse(field, region):
    south, north = demo.REGIONS[region]
    weight = grid.weights * ((grid.latitude >= south) & (grid.latitude <= north))
    square = np.asarray(field) ** 2
    return float(np.sqrt(weight @ square.mean(axis=(0, -1)) / weight.sum()))


forecasts = {name: forecast(found, analyses[2]) for name, found in equations.items()}
errors = {name: analyses[3, :, 0] - field for name, field in forecasts.items()}
table = {
    name: {region: rmse(error, region) for region in demo.REGIONS}
    for name, error in errors.items()
}
heading = "".join(f"{region:>10}" for region in demo.REGIONS)
print(f"{'error at 12 h (m)':<18}{heading}")
for name, row in table.items():
    print(f"{name:<18}" + "".join(f"{value:>10.1f}" for value in row.values()))

# %% [markdown]
# A fifth less error in the north and a little less in the south, by a start that knew
# nothing of the end. In the tropics, which had no say, hardly anything changes. All
# terms together do better still: tests as strict as these throw away some that help.
# They leave 65 percent of the variance on the pairs, and 70 percent in the forecasts.
#
# The window held out, mean of ten members: the error of the model, and what the terms
# that stood both tests would have changed.

# %%
fields = {
    "analysis - model's forecast": errors["model"],
    "change by the found terms": forecasts["both tests"] - forecasts["model"],
}
levels = np.arange(-70, 71, 20)
with plot.style():
    figure, axes = plt.subplots(
        1, 2, figsize=(9, 2.9), subplot_kw={"projection": ccrs.Robinson()}
    )
    for ax, (title, field) in zip(axes, fields.items(), strict=True):
        plot.increment(
            field.mean(axis=0),
            grid,
            ax=ax,
            levels=levels,
            units="m",
            label="height, 500 hPa",
            title=title,
        )
plt.show()

# %% [markdown]
# ## What to take away
#
# - A regression on thousands of rows is always sure. Ask what it says where there is
#   nothing: turn the errors, and see.
# - Members of one weather are one sample; points of one system are one point. Resample
#   what is independent.
# - The elbow of the path and a window held out say what evidence and z cannot: here
#   that one term stands out which a single layer cannot have, that a few small ones
#   help, and that two thirds of the variance are none of them.
# - A regression chooses from a list. That `thermal` was on it is knowledge, and no
#   discovery.
# - Two windows of one day fitted, one judged, all in the same weather, and the list was
#   settled with the last in view: a demonstration, and no climate of model errors.

# %%
outside = lambda found: float(1 - found["held out"][-1])
north, south = "20N-80N", "20S-80S"
assert jnp.min(jnp.abs(one_layer["z"][:-1])) > 10  # sure of everything,
assert false.mean() > 3  # as it is where nothing is to be found
assert one_layer["elbow"].jump < 1.5 * bar_jump
assert outside(one_layer) > 1.3 * explained.max()
assert names[np.asarray(two_levels["elbow"].support)].tolist() == ["thermal"]
assert two_levels["elbow"].jump > 2 * bar_jump
assert 1 < float(two_levels["elbow"].mean[-1]) < 2.5
assert outside(two_levels) > 1.4 * outside(one_layer)
assert jnp.max(jnp.abs(z)) < 10
assert table["both tests"][north] < 0.88 * table["model"][north]
assert table["both tests"][south] < 0.97 * table["model"][south]
print(f"{time.perf_counter() - started:.0f} s in all")
