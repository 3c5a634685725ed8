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
# # Posteriors from a diffusion prior
#
# A diffusion model is a prior: it draws fields that look like those it was trained on.
# An observation turns a prior into a posterior, and there are a dozen published ways to
# draw from that posterior with the prior's network as it is. Which can be trusted? In
# two dimensions every answer can be drawn beside the exact one.
#
# Three contracts are enough for all of them. A *denoiser* returns the expected clean
# state, `denoiser(x, sigma)`. An *observation* is what any filter of skyens takes. And
# a *method* is an object that is handed in.

# %%
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np

from skyens import diffusion, observations

jax.config.update("jax_enable_x64", True)
plt.rcParams["figure.dpi"] = 72
started = time.perf_counter()

# %% [markdown]
# ## A prior with many modes, and one number that is seen
#
# The prior has 25 modes on a grid, of unequal weight: regimes of a very simple weather.
# Its denoiser is known in closed form, so that whatever goes wrong below is the
# method's fault and not a network's. One number is seen, a mean of both entries with
# unequal weights, which singles out a band across the plane. What is left are several
# modes, and the question is whether a method finds them all, and with the right
# weights.

# %%
rng = np.random.default_rng(3)
side = np.arange(-2, 3)
corners = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
means, spread = jnp.asarray(corners / 2**0.5), 0.11
weights = jnp.asarray(rng.chisquare(1, size=25) + 0.1)
prior = diffusion.GaussianMixtureDenoiser(means, spread**2, weights=weights)

look = observations.Linear(np.array([[0.5, 0.9]]))
seen = observations.Observation(np.array([0.35]), look, observations.Diagonal(0.2))
posterior = prior.posterior(seen)  # closed form, for this prior

# %% [markdown]
# ## Thirteen ways
#
# - **Guidance** makes a denoiser of a denoiser: `guide(prior, seen, MMPS())` is handed
#   to any sampler. It replaces the likelihood at each noise level by a guess: DPS asks
#   what the denoised state would give, PiGDM adds the uncertainty of a Gaussian prior,
#   MMPS that of this prior, from the denoiser's derivative.
# - **Sequential Monte Carlo** lets particles compete. The same guesses become *twists*,
#   and weights make up for what is wrong with them. AFDPS, MCGdiff and filtering
#   posterior sampling (FPS) are other twists and proposals of one driver, `smc`. It
#   also tells the *evidence*: how probable the observation was.
# - **Split Gibbs** samplers alternate between prior and likelihood: DAPS, and plug and
#   play.
# - **Ensemble guidance** asks for no derivative of the observation's operator: it
#   analyses the ensemble with a Kalman filter on its way.

# %%
SAMPLES, STEPS = 1000, 100
schedule = diffusion.EDM(0.01, 40.0)
annealed, optimal = diffusion.Annealed(4.0, 1.0), diffusion.LocallyOptimal()

METHODS = {
    "guidance: DPS": diffusion.DPS(),
    "guidance: PiGDM": diffusion.PiGDM(),
    "guidance: MMPS": diffusion.MMPS(),
    "SMC: matched moments": (diffusion.MomentMatched(), diffusion.Guided(), 0.5),
    "SMC: pseudo-inverse": (diffusion.PseudoInverse(), diffusion.Guided(), 0.5),
    "SMC: plain": (diffusion.Plain(), diffusion.Guided(), 0.5),
    "AFDPS": (annealed, diffusion.Guided(), 0.35),
    "AFDPS, as a flow": (annealed, diffusion.Flow(), 0.0),
    "MCGdiff": (diffusion.Annealed(), optimal, 0.2),
    "FPS": (diffusion.Noised(), optimal, 0.2),
    "DAPS": diffusion.DAPS(),
    "plug and play": diffusion.PlugAndPlay(),
    "ensemble guidance": None,
}


@eqx.filter_jit
def solve(method, prior, seen, key):
    """Return weighted samples, and the log-evidence where a method tells it."""
    keys, count = jr.split(key, SAMPLES), jnp.full(SAMPLES, -np.log(SAMPLES))
    if isinstance(method, tuple):
        twist, proposal, threshold = method
        found = diffusion.smc(
            prior,
            schedule,
            seen,
            (2,),
            key=key,
            particles=SAMPLES,
            steps=STEPS,
            twist=twist,
            proposal=proposal,
            threshold=threshold,
        )
        return found.samples, found.log_weights, found.log_evidence
    if method is None:
        # Four ensembles: the work grows faster than the number of members.
        draw = lambda key: diffusion.ensemble_guidance(
            prior, schedule, seen, (2,), key=key, members=SAMPLES // 4
        )
        states = jax.vmap(draw)(keys[:4]).reshape(SAMPLES, 2)
    elif isinstance(method, diffusion.DAPS | diffusion.PlugAndPlay):
        draw = lambda key: diffusion.split_gibbs(
            prior, schedule, seen, (2,), key=key, method=method
        )
        states = jax.vmap(draw)(keys)
    else:
        guided = diffusion.guide(prior, seen, method)
        draw = lambda key: diffusion.sample(
            guided, schedule, (2,), key=key, steps=STEPS
        )
        states = jax.vmap(draw)(keys)
    return states, count, jnp.nan


@eqx.filter_jit
def exact(posterior, key, count):
    return jax.vmap(lambda key: posterior.sample(key=key))(jr.split(key, count))


# %% [markdown]
# ## How far from the truth
#
# The *distance* is the sliced Wasserstein distance to exact draws: how far, on average
# over directions, probability has to be moved, in units of the prior's spread. Beside
# it stands what exact draws score, the floor. *Modes* is the share of the probability
# that sits in the wrong modes.


# %%
def distance(first, second):
    angles = np.linspace(0, np.pi, 180, endpoint=False)
    lines = np.stack([np.cos(angles), np.sin(angles)])
    along = [np.sort(np.asarray(x) @ lines, axis=0) for x in (first, second)]
    return np.sqrt(np.mean((along[0] - along[1]) ** 2))


def shares(states, weights):
    apart = np.sum((np.asarray(states)[:, None] - np.asarray(means)) ** 2, axis=-1)
    return np.bincount(np.argmin(apart, axis=1), weights, minlength=25)


def equal(states, log_weights):
    """Return samples that count the same."""
    index = jnp.linspace(0, 1, len(states), endpoint=False) + 0.5 / len(states)
    index = jnp.searchsorted(jnp.cumsum(jnp.exp(log_weights)), index)
    return np.asarray(states)[np.minimum(index, len(states) - 1)]


draws, others, many = (
    np.asarray(exact(posterior, jr.key(seed), count))
    for seed, count in ((1, SAMPLES), (2, SAMPLES), (3, 50_000))
)
truth = shares(many, np.full(len(many), 1 / len(many)))
evidence = float(prior.log_evidence(seen))


def score(states, log_weights, log_evidence):
    weights = np.exp(np.asarray(log_weights))
    return {
        "distance": distance(equal(states, log_weights), draws),
        "modes": np.abs(shares(states, weights) - truth).sum() / 2,
        "evidence": float(log_evidence) - evidence,
    }


floor = score(others, jnp.full(SAMPLES, -np.log(SAMPLES)), evidence)
results = {"exact draws": (others, floor)}
for name, method in METHODS.items():
    states, log_weights, log_evidence = solve(method, prior, seen, jr.key(4))
    finite = np.isfinite(np.asarray(states)).all(axis=1).mean()
    error = score(states, log_weights, log_evidence)
    results[name] = (equal(states, log_weights), {**error, "finite": finite})

print(f"{'method':<24}{'distance':>9}{'modes':>8}{'log-evidence':>14}")
for name, (_, x) in sorted(results.items(), key=lambda item: item[1][1]["distance"]):
    told = f"{x['evidence']:+.3f}" if np.isfinite(x["evidence"]) else ""
    print(f"{name:<24}{x['distance']:>9.3f}{x['modes']:>8.3f}{told:>14}")

# %% [markdown]
# What there is to read off:
#
# - Guidance alone finds the band and the modes in it, but not their weights: a sixth of
#   the probability or more is in the wrong place, and more samples would not mend that.
#   DPS believes the observation too much, and sits on the line. MMPS needs no tuning
#   and is right where the prior is Gaussian.
# - With such a guess as a *twist*, weighted particles come about twice as near, with a
#   third of the error in the modes, and more of them come nearer still. The guess has
#   to be decent, though: with the plain one, DPS's, most of the weights vanish on the
#   way.
# - Sequential Monte Carlo also knows the log-evidence, to a few percent where the twist
#   is good: the currency in which priors, or models, are compared.
# - Of the split Gibbs samplers, plug and play stays with the prior's modes; DAPS and
#   ensemble guidance blur them. None of them weighs the modes better than guidance.
#
# The pictures show 1,000 samples of each, over contours of the exact posterior. The red
# line is where the state would be if the observation had no error.

# %%
axis = np.linspace(-2, 2, 121)
plane = jnp.asarray(np.stack(np.meshgrid(axis, axis), axis=-1))
log_density = eqx.filter_jit(lambda law: jax.vmap(jax.vmap(law.log_prob))(plane))
before, density = np.exp(log_density(prior)), log_density(posterior)

figure, panels = plt.subplots(
    3, 5, figsize=(8.6, 5.6), sharex=True, sharey=True, layout="constrained"
)
panels = panels.ravel()
panels[0].contourf(axis, axis, before, 12, cmap="Greys")
panels[0].set_title("the prior", fontsize=8)
across = (0.35 - 0.5 * np.asarray(axis)) / 0.9
for panel, (name, (states, x)) in zip(panels[1:], results.items(), strict=False):
    panel.contour(
        axis, axis, density, np.arange(-4, 4, 2), colors="0.7", linewidths=0.6
    )
    panel.plot(*np.asarray(states).T, ".", markersize=1.2, color="#0072b2", alpha=0.5)
    panel.set_title(f"{name}\n{x['distance']:.2f}", fontsize=7.5)
for panel in panels:
    panel.plot(axis, across, color="#cc3311", linewidth=0.6)
    panel.set(xlim=(-2, 2), ylim=(-2, 2), aspect="equal", xticks=[], yticks=[])
plt.show()

# %%
modes = {name: x["modes"] for name, (_, x) in results.items()}
far = {name: x["distance"] for name, (_, x) in results.items()}
matched = results["SMC: matched moments"][1]
assert all(x.get("finite", 1) == 1 for _, x in results.values())
assert modes["SMC: matched moments"] < 0.7 * modes["guidance: MMPS"]
assert far["SMC: matched moments"] < far["guidance: MMPS"] < far["SMC: plain"]
assert abs(matched["evidence"]) < 0.3
print(f"{time.perf_counter() - started:.0f} s in all")
