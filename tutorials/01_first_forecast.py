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
# # The first forecast
#
# In April 1950 a computer forecast the weather for the first time. It knew one
# equation, the conservation of vorticity in a layer of air, and one field, the height
# of the 500 hPa surface. It took a day to forecast a day.
#
# Here the same physics makes an *ensemble* from real analyses, in seconds: twenty
# members, each a little different at the start and on the way. We correct them with
# observations at the stations of real radiosondes, and check every number against the
# analyses of what the weather then did.
#
# `make demo` runs the same story with a hundred members and a longer training.

# %%
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np

from skyens import demo, plot, scores
from skyens.dynamics import Purpose, member_keys, run_key

# %% [markdown]
# ## What we know
#
# ERA5 comes with ten analyses of each moment, which differ by what the observations
# leave open. The sample in the package has four moments, 12 hours apart, from
# 2017-01-01 00 UTC. The first is where we start; the others are the truth that we
# verify against, and see no earlier.

# %%
analyses = demo.open_analyses()
print(analyses.height.shape, analyses.time, analyses.grid.kind)
disagreement = analyses.height[:, 0].std(axis=0, ddof=1).mean()
print(f"the ten analyses differ by {disagreement:.1f} m (standard deviation)")

# %% [markdown]
# ## The physics
#
# A *step* is a function from a state to the state some hours later. This one takes a
# height, finds the wind in balance with it, lets the wind carry the vorticity for six
# hours, and adds the height that balances the change. Against the forecast that nothing
# changes it wins everywhere but in the tropics, where there is little vorticity to
# carry (root-mean-square errors in m):

# %%
model = demo.physics(analyses.grid)
path = demo.forecast(
    model, analyses.height[:1, 0], 6, key=jr.key(0), reduce=lambda x: x
)
control = demo.at_leads(path)
persistence = np.repeat(analyses.height[:1, :1], 3, axis=1)
card = demo.scorecard({"control": control, "persistence": persistence}, analyses)
table = card.pivot_table(index=["region", "lead_time"], columns="system", values="rmse")
print(table.round(1))

# %% [markdown]
# ## How it errs
#
# The model has no temperature, so it cannot grow new storms. Its error in the first 12
# hours tells how large that is at each latitude and on which scales. We let every
# member err as much, with noise that remembers itself for two days.

# %%
noisy = demo.fit_model_error(model, analyses, key=jr.key(1))
size = noisy.inject.amplitude
print(f"noise in six hours: {size.max():.0f} m at most, {size.min():.0f} m at least")

# %% [markdown]
# ## Twenty members
#
# Pairs about each analysis: one random field in balance, plus one *bred vector*, the
# perturbation that grows fastest. Each member has its own key, made from the purpose,
# the start and its number; any one of them can be run again alone.

# %%
key = jr.key(0)
start = demo.starting_members(model, analyses, 20, key=key)
keys = member_keys(run_key(key, Purpose.PERTURB, start=analyses.time[0]), 20)
states = jax.vmap(lambda value, key: noisy.start(value, key=key))(start, keys)
step_key = run_key(key, Purpose.STEP, start=analyses.time[0])
everything = demo.forecast(noisy, states, 2, key=step_key, reduce=lambda state: state)
at_12 = jax.tree.map(lambda leaf: leaf[:, -1], everything)
later_key = run_key(key, Purpose.STEP, start=analyses.time[1])
later = demo.forecast(noisy, at_12, 4, key=later_key)
physics = demo.at_leads(jnp.concatenate([everything["value"], later], axis=1))

# %%
figure = plot.map_forecast(
    physics[:, -1].mean(0),
    physics[:, -1].std(0, ddof=1),
    analyses.truth[-1],
    analyses.grid,
    units="m",
    label="500 hPa height",
    title="20 members, 36 h ahead",
)
plt.show()

# %% [markdown]
# ## Observations in the middle
#
# At 12 hours we observe the height at the places where radiosondes really rise (drawn
# from the verifying analysis with an error of 8 m) and let the ensemble itself say how
# far each observation reaches: a local ensemble transform Kalman filter.

# %%
analysed, info, observation = demo.assimilate(
    at_12, analyses, key=run_key(key, Purpose.OBSERVE, start=analyses.time[1])
)
later = demo.forecast(noisy, analysed, 4, key=later_key)
nothing = jnp.full_like(later[:, :2], jnp.nan)
assimilated = demo.at_leads(jnp.concatenate([nothing, later], axis=1))
print(f"{int(info.used)} observations used")

# %%
plot.increment(
    np.asarray((analysed["value"] - at_12["value"]).mean(0)),
    analyses.grid,
    station_latitude=np.asarray(observation.coordinates["latitude"]),
    station_longitude=np.asarray(observation.coordinates["longitude"]),
    units="m",
    title="What the stations change at 12 h",
)
plt.show()

# %% [markdown]
# ## The verdict
#
# The continuous ranked probability score compares the whole ensemble with what
# happened; for a single forecast it is the absolute error. Lower is better, in metres.
# One day and a half of one winter is a demonstration, not a climate of skill.

# %%
systems = {
    "control": control,
    "dressed persistence": demo.dressed_persistence(analyses, 20, key=jr.key(3)),
    "physics": physics,
    "physics, assimilated": assimilated,
}
card = demo.scorecard(systems, analyses)
crps = card.pivot_table(index=["region", "lead_time"], columns="system", values="crps")
print(crps.round(1))

# %%
north = crps.loc["20N-80N"]
for lead in (24, 36):
    gain = 1 - north.loc[lead, "physics"] / north.loc[lead, "control"]
    print(f"{lead} h, 20N-80N: the ensemble's CRPS is {gain:.0%} below the control's")
    assert gain > 0.2
    assert north.loc[lead, "physics, assimilated"] < north.loc[lead, "physics"]

# %% [markdown]
# ## A step that was learned
#
# Any function of that shape is a step. `demo.train` teaches a small neural operator
# the physics and its noise, with the almost fair CRPS of two members as the loss, on
# worlds that start from perturbed analyses of the first moment. Here is the loss it
# minimises, at its simplest: of all single numbers, the CRPS of a forecast is best at
# the median, and an ensemble is best when it is the distribution.

# %%
truth = jr.normal(jr.key(4), (4000,))
spreads = np.linspace(0.2, 2, 10)
members = jr.normal(jr.key(5), (4, 4000))
fair = [float(scores.crps(s * members, truth).mean()) for s in spreads]
print("best spread:", spreads[int(np.argmin(fair))], "for a truth of spread 1")
assert abs(spreads[int(np.argmin(fair))] - 1) < 0.25
