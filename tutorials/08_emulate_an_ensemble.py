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
# # Few members in, many out
#
# Members of a forecast are expensive. Yet whoever has seen many ensembles knows, from
# a few members of a new one, what the others may look like. A diffusion can learn that:
# it draws as many more members as wanted, for almost nothing (Li et al. 2024, Sci. Adv.
# 10, eadk4489, call theirs SEEDS). And it can learn more. If for some of the forecasts
# it is shown what came true in place of another member, it also repairs what the
# forecasts get wrong.
#
# Here the weather is the model of Lorenz (1996), and the forecasts come from a wrong
# version of it.

# %%
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import optax

from skyens import (
    assimilation as da,
    diffusion,
    dynamics,
    nn,
    observations,
    scores,
    training,
)

plt.rcParams["figure.dpi"] = 72
started = time.perf_counter()

# %% [markdown]
# ## A biased forecasting system
#
# Nature has the forcing 8, the model 7: its waves are too weak. An ensemble Kalman
# filter of thirty members follows nature by observations of every site each six hours.
# From its analyses at every fourth of these times, the model runs three days ahead:
# first from the mean of the members, the *control*, then from each of them. This is
# repeated in 128 worlds. The last sixteen are for the verification.

# %%
SITES, MEMBERS, WORLDS, TIMES = 40, 30, 128, 120
BURN_IN, EVERY, LEAD = 24, 4, 12  # steps of six hours
nature, model = dynamics.Lorenz96(forcing=8.0), dynamics.Lorenz96(forcing=7.0)
kalman = da.Inflated(da.ETKF(1.08, rotate=True), da.RelaxToPriorSpread(0.5))


def history(key):
    """Return forecasts of the control and the members, and what came true."""
    place, weather, members, filter_key = jr.split(key, 4)
    world = da.twin(
        nature,
        8 + jr.normal(place, (SITES,)),
        lambda state: state,
        observations.Diagonal(1.0),
        TIMES,
        key=weather,
        spin_up=400,
    )
    first = world.state0 + jr.normal(members, (MEMBERS, SITES))
    result = da.cycle(
        model,
        kalman,
        first,
        world.observe,
        world.data,
        key=filter_key,
        reduce=lambda ensemble: ensemble,
    )
    analyses = result.analyses[BURN_IN::EVERY]
    starts = jnp.concatenate([analyses.mean(1, keepdims=True), analyses], axis=1)
    ahead = lambda step, states: jax.lax.fori_loop(
        0, LEAD, lambda _, states: jax.vmap(step)(states), states
    )
    truth = ahead(nature, world.truth[BURN_IN::EVERY])
    return jax.vmap(lambda states: ahead(model, states))(starts), truth


runs = jax.jit(lambda keys: jax.lax.map(history, keys, batch_size=32))
forecasts, truths = runs(jr.split(jr.key(0), WORLDS))
split = lambda array: (
    array[:112].reshape(-1, *array.shape[2:]),
    array[112:, ::3].reshape(-1, *array.shape[2:]),
)
(seen, test), (seen_truth, truth) = split(forecasts), split(truths)
print(f"{len(seen)} forecasts to learn from, {len(test)} to verify")
print(f"{time.perf_counter() - started:.0f} s so far")

# %% [markdown]
# ## A network that reads a set
#
# What is to be drawn is a departure from the control: of another member, or of the
# truth. The network is told the control, the departures of three members in any order
# (`SetNetwork`), and a number: 0 for another member, 1 for the truth. `Preconditioned`
# makes it a denoiser, for states of order one.
#
# Forty sites are few for a transformer. Folded into two rows, the odd and the even
# ones, patches of two by two are tokens of four neighbours each, and the rotary
# embedding closes the circle.

# %%
FEW = 3
mean, deviation = jnp.mean(seen), jnp.std(seen)
spread = jnp.std(seen[:, 1:] - seen[:, :1])
fold = lambda x: x.reshape(*x.shape[:-1], 1, SITES // 2, 2).swapaxes(-1, -2)
unfold = lambda x: x.swapaxes(-1, -2).reshape(*x.shape[:-3], SITES)


def told(control, members, aim):
    """Return what the network is told: `aim` is 0 for a member, 1 for the truth."""
    return nn.Condition(
        fields=fold((control - mean) / deviation),
        members=fold((members - control) / spread),
        vector=jnp.asarray([aim], jnp.float32),
    )


circle = nn.Plane((2, SITES // 2), periodic=(False, True))
encoder = nn.SetEncoder(circle, channels=1, features=8, key=jr.key(1))
transformer = nn.Transformer(
    circle,
    1,
    1,
    patch=2,
    width=96,
    blocks=4,
    field_channels=1 + encoder.field_channels,
    vector_size=1,
    key=jr.key(2),
)
denoiser = diffusion.Preconditioned(nn.SetNetwork(transformer, encoder))

# %% [markdown]
# ## Learn
#
# Each example is a forecast, turned by some sites around the circle, which has no
# beginning. Four members are drawn: three to be told, one to be guessed, in whose
# place half of the examples have the truth. The loss is that of denoising, over noise
# levels about those where a departure drowns.

# %%
UPDATES, BATCH = 1200, 64


def example(key):
    which, turn, draw, coin = jr.split(key, 4)
    case = jr.randint(which, (), 0, len(seen))
    around = lambda x: jnp.roll(x, jr.randint(turn, (), 0, SITES), axis=-1)
    ensemble, truth = around(seen[case]), around(seen_truth[case])
    control, members = ensemble[0], ensemble[1:]
    drawn = members[jr.choice(draw, MEMBERS, (FEW + 1,), replace=False)]
    aim = jr.bernoulli(coin)
    target = jnp.where(aim, truth, drawn[-1])
    return fold((target - control) / spread), told(control, drawn[:-1], aim)


rate = optax.warmup_cosine_decay_schedule(0.0, 2e-3, 100, UPDATES)
optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
loss = diffusion.DenoisingLoss(levels=diffusion.LogNormalLevels(-0.7, 1.2))
update = training.make_step(loss, optimiser, ema_decay=0.995)
state = training.TrainState.init(denoiser, optimiser)


@eqx.filter_jit
def hundred(state, key):
    keys = jr.split(key, (100, BATCH))
    batches = jax.vmap(jax.vmap(example))(keys)
    state, metrics = training.scan_steps(update, state, batches, key=jr.key(3))
    return state, metrics.loss.mean()


before = time.perf_counter()
for number in range(UPDATES // 100):
    state, value = hundred(state, jr.key(100 + number))
    if number % 3 == 2:
        print(f"{100 * (number + 1)} updates, loss {float(value):.3f}")
trained = training.ema_model(state)
print(f"trained in {time.perf_counter() - before:.0f} s")

# %% [markdown]
# ## Draw
#
# For each forecast of the test, thirty new members of the model's own kind
# (*generated*) and thirty of nature's (*repaired*), from the control and three members.
# Twelve steps are enough. (A run of this small model is cheaper still. One of a weather
# model costs thousands of times more, and a draw hardly more than here.)

# %%
levels = diffusion.EDM(0.02, 40.0)


@eqx.filter_jit
def draw(model, ensembles, aim, key):
    def members(ensemble, key):
        control, few = ensemble[0], ensemble[1 : 1 + FEW]
        one = lambda key: diffusion.sample(
            model,
            levels,
            (1, *circle.shape),
            key=key,
            steps=12,
            condition=told(control, few, aim),
            dtype=jnp.float32,
        )
        departures = jax.vmap(one)(jr.split(key, MEMBERS))
        return control + spread * unfold(departures)

    keys = jr.split(key, len(ensembles))
    return jax.lax.map(lambda pair: members(*pair), (ensembles, keys), batch_size=4)


before = time.perf_counter()
ensembles = {
    "the four given": test[:, : 1 + FEW],
    "big ensemble": test[:, 1:],
    "generated": draw(trained, test, 0.0, jr.key(4)),
    "repaired": draw(trained, test, 1.0, jr.key(5)),
}
print(f"drawn in {time.perf_counter() - before:.0f} s")

# %% [markdown]
# One forecast: what was given, what the whole ensemble says, and what the network makes
# of the four.

# %%
CASE = 0
figure, panels = plt.subplots(
    4, 1, figsize=(7.2, 6.6), sharex=True, sharey=True, layout="constrained"
)
for panel, (name, members) in zip(panels, ensembles.items(), strict=True):
    panel.plot(members[CASE].T, color="C0", linewidth=0.6, alpha=0.6)
    panel.plot(truth[CASE], color="black", linewidth=1.4, label="came true")
    panel.set_ylabel(name)
    panel.grid(alpha=0.3)
panels[0].legend(fontsize=8, loc="upper right")
panels[-1].set_xlabel("site")
plt.show()

# %% [markdown]
# ## Verify
#
# The CRPS (0 is best, in the units of the variables) is that of an ensemble as it is,
# with no credit for members that it does not have: this is what four members lack.


# %%
def summary(ensemble):
    error = ensemble.mean(1) - truth
    crps = scores.crps(ensemble, truth, alpha=0.0, axis=1)
    return {
        "CRPS": float(crps.mean()),
        "RMSE": float(jnp.sqrt(jnp.mean(error**2))),
        "spread": float(jnp.sqrt(ensemble.var(1, ddof=1).mean())),
        "bias": float(error.mean()),
    }


table = {name: summary(ensemble) for name, ensemble in ensembles.items()}
print(f"{'':<18}" + "".join(f"{column:>9}" for column in table["generated"]))
for name, row in table.items():
    print(f"{name:<18}" + "".join(f"{value:>9.3f}" for value in row.values()))

# %% [markdown]
# The generated members are as good as the model's own, and share its faults: the truth
# lies too often outside of all. Among the repaired ones it is one among equals, and
# their bias is gone. They beat the big ensemble that they were made to resemble.
#
# A rank histogram counts how many members lie below a value. It is flat where the value
# might have been another member. For the generated ensemble this is asked of a member
# that was not told, for the others of the truth.


# %%
def ranks(ensemble, value):
    below = np.asarray(jnp.sum(ensemble < value[:, None], axis=1)).ravel()
    return np.bincount(below, minlength=ensemble.shape[1] + 1) / below.size


def spectrum(fields):
    power = np.abs(np.fft.rfft(np.asarray(fields), axis=-1)) ** 2
    return power.reshape(-1, power.shape[-1]).mean(axis=0)[1:]


histograms = {
    "truth in big ensemble": ranks(ensembles["big ensemble"], truth),
    "member in generated": ranks(ensembles["generated"], test[:, -1]),
    "truth in repaired": ranks(ensembles["repaired"], truth),
}
spectra = {name: spectrum(ensemble) for name, ensemble in ensembles.items()}
spectra["came true"] = spectrum(truth)

figure, panels = plt.subplots(
    1, 3, figsize=(7.2, 2.5), sharey=True, layout="constrained"
)
for panel, (name, shares) in zip(panels, histograms.items(), strict=True):
    panel.bar(np.arange(len(shares)), len(shares) * shares, width=1.0)
    panel.axhline(1, color="black", linewidth=1)
    panel.set(title=name, xlabel="rank")
panels[0].set_ylabel("share over a flat one")
plt.show()

# %% [markdown]
# And the spectra around the circle, over the truth's: the model is too weak in all
# waves, its emulator alike, and the repaired members are not. What wiggles is chance in
# the truth, of which there is one where there are thirty members.

# %%
figure, axes = plt.subplots(figsize=(7.2, 2.8), layout="constrained")
for name in ("big ensemble", "generated", "repaired"):
    axes.plot(np.arange(1, 21), spectra[name] / spectra["came true"], label=name)
axes.axhline(1, color="black", linewidth=1)
axes.set(
    xlabel="waves around the circle",
    ylabel="power over the truth's",
    xticks=range(2, 21, 2),
)
axes.legend(fontsize=8)
axes.grid(alpha=0.3)
plt.show()


# %%
def unevenness(shares):
    return float(np.abs(shares - 1 / len(shares)).sum())


crps = {name: row["CRPS"] for name, row in table.items()}
uneven = {name: unevenness(shares) for name, shares in histograms.items()}
off = lambda name, other: float(np.abs(spectra[name] / spectra[other] - 1).mean())
print({name: round(value, 3) for name, value in uneven.items()})
print(f"spectra: generated {off('generated', 'big ensemble'):.3f} from the big")
print(f"ensemble's, repaired {off('repaired', 'came true'):.3f} from the truth's")
assert abs(crps["generated"] / crps["big ensemble"] - 1) < 0.05
assert crps["generated"] < 0.95 * crps["the four given"]
assert crps["repaired"] < 0.92 * crps["big ensemble"]
assert off("generated", "big ensemble") < 0.05
assert off("repaired", "came true") < 0.6 * off("big ensemble", "came true")
assert uneven["member in generated"] < 0.2
assert uneven["truth in repaired"] < 0.7 * uneven["truth in big ensemble"]
print(f"{time.perf_counter() - started:.0f} s in all")
