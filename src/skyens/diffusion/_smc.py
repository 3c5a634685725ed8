"""Sequential Monte Carlo: particles of the posterior, with weights and evidence.

One driver walks particles down the levels of a schedule. Three pieces vary:

| method | twist | proposal |
|---|---|---|
| twisted diffusion (TDS) | `MomentMatched`, `PseudoInverse`, `Plain` | `Guided` |
| AFDPS, with noise | `Annealed(gamma)` | `Guided` |
| AFDPS, without | `Annealed(gamma)` | `Flow` |
| filtering posterior sampling (FPS) | `Noised` | `LocallyOptimal` |
| MCGdiff | `Annealed(1)` | `LocallyOptimal` |

All are exact as particles and steps grow; guidance alone is not.
"""

import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from skyens.assimilation import Systematic, Weighted
from skyens.assimilation._progress import Bar
from skyens.diffusion._checked import checked_denoiser, checked_levels
from skyens.diffusion._denoisers import Denoiser
from skyens.diffusion._proposals import Guided, Kernel, Last, Proposal
from skyens.diffusion._schedule import Schedule
from skyens.diffusion._twists import Look, MomentMatched, Twist
from skyens.diffusion._units import InUnits, in_terms_of
from skyens.observations import Observation

_MOMENT_MATCHED = MomentMatched()
_GUIDED = Guided()
_SYSTEMATIC = Systematic()


class Particles(eqx.Module):
    """Weighted samples of a posterior, and how it went.

    `samples` lead with a particle axis; `log_weights` are normalised. `log_evidence` is
    the logarithm of an unbiased estimate of the density of the values, for the prior as
    the schedule's steps draw it.

    `sigmas` are the levels, the clean state's 0 last. At each of them, `ess` is the
    effective number of particles before any resampling, from 1 to all of them, 0 once
    all weights are 0; and `finite` the share of particles that are finite.
    """

    samples: Float[Array, "particle *state"]
    log_weights: Float[Array, "particle"]
    log_evidence: Float[Array, ""]
    ess: Float[Array, "level"]
    finite: Float[Array, "level"]
    sigmas: Float[Array, "level"]

    @property
    def weighted(self) -> Weighted:
        """The samples as a weighted ensemble: `.mean()`, `.covariance()` and so on."""
        return Weighted(self.samples, self.log_weights)

    def resample(
        self, resampling: Callable[..., Any] = _SYSTEMATIC, *, key: PRNGKeyArray
    ) -> Float[Array, "particle *state"]:
        """Return as many samples that count the same."""
        return self.weighted.resample(resampling, key=key)


def smc(
    denoiser: Denoiser,
    schedule: Schedule,
    observation: Observation | InUnits,
    shape: tuple[int, ...],
    *,
    key: PRNGKeyArray,
    particles: int = 1000,
    twist: Twist = _MOMENT_MATCHED,
    proposal: Proposal = _GUIDED,
    steps: int = 100,
    resampling: Callable[..., Any] = _SYSTEMATIC,
    threshold: float | Float[Array, ""] = 0.5,
    condition: Any = None,
    dtype: DTypeLike = float,
    batch: int | None = None,
    progress: bool | str = False,
) -> Particles:
    """Return particles of the posterior of a state of `shape`, given an observation.

    The observation is one of the state that the denoiser knows, in its units: if that
    is normalised or a latent, `observation.pullback(decode)` makes it so, or both state
    their units, as `Normalised` and `InUnits`. The noise is white. `sigma_max` must be
    large against the prior, and `sigma_min` small.

    Args:
        denoiser: the prior.
        schedule: the levels, which end at 0.
        observation: of few values: matrices of their number squared are factorised.
        shape: of one state.
        key: for everything random.
        particles: their number.
        twist: what stands for the likelihood at noisy levels.
        proposal: how particles move.
        steps: how many; the last one goes from the schedule's least level to 0.
        resampling: `(weighted, *, key) -> members` that copies whole members.
        threshold: resample when the effective number is at most this share of the
            particles; 1 always, 0 never.
        condition: handed to every call of the denoiser.
        dtype: of the samples.
        batch: how many particles are moved at once, to save memory; all if None.
        progress: whether to show a bar, or what to write before it.

    A particle that is not finite gets the weight 0. If all weights are 0 the
    log-evidence is -inf and the weights are equal; `ess` and `finite` show where. That
    is an error, or under tracing a warning, which lets other problems be.

    Gradients flow along the particles that were chosen, and not through the choice:
    with `threshold` 0, which never chooses, they are those of the result.

    Raises:
        ValueError: `particles` is below 2, `steps` or `batch` below 1, the schedule
            does not give `steps + 1` levels, the denoiser returns another shape or
            dtype than it was given, the proposal does not fit the twist, or units are
            stated by one of prior and observation only, or differ.
        EquinoxRuntimeError: the levels do not decrease to 0 or leave the range the
            denoiser was trained in, `threshold` is negative, or all weights became 0.
    """
    for name, number, least in (
        ("particles", particles, 2),
        ("batch", particles if batch is None else batch, 1),
    ):
        if number < least:
            raise ValueError(f"`{name}` must be at least {least}, got {number}.")
    own: Observation = in_terms_of(denoiser, observation)
    sigmas = checked_levels(denoiser, schedule, steps)
    message = (
        "The last level of `schedule` must be 0: weights are those of clean states."
    )
    sigmas = eqx.error_if(sigmas, sigmas[-1] > 0, message)
    limit = jnp.asarray(threshold, float)
    limit = eqx.error_if(limit, ~(limit >= 0), "`threshold` must not be negative.")
    denoise = checked_denoiser(denoiser, condition)
    bar = Bar(steps, progress if isinstance(progress, str) else "Weighing particles")
    walk = _Walk(denoise, own, twist, resampling, limit, batch)
    # In the schedule's precision, then cast: levels that differ there may be equal in
    # the state's.
    kernels = jax.tree.map(lambda part: part.astype(dtype), Kernel.between(sigmas))
    cast = sigmas.astype(dtype)
    like = jnp.zeros(shape, dtype)
    first, start_key, walk_key = jr.split(key, 3)
    memory = twist.init(like, cast[0], key=first)
    start = lambda key: twist.start(own, like, cast[0], memory, key=key)
    x, change = walk.over(start)(jr.split(start_key, particles))
    log_weights = change - float(np.log(particles))
    cloud = (x, log_weights, jnp.zeros((), dtype))

    def step(state, this):
        cloud, memory = state
        kernel, index = this
        path, rest = jr.split(jr.fold_in(walk_key, index))
        looks = walk.looks(cloud[0], kernel.sigma, memory)
        memory = twist.advance(memory, kernel.square, kernel.std, key=path)
        cloud, trace = walk(proposal, cloud, looks, kernel, memory, key=rest)
        if progress:
            bar.tell(index)
        return (cloud, memory), trace

    inner = jax.tree.map(lambda part: part[:-1], kernels)
    (cloud, memory), traces = jax.lax.scan(
        step, (cloud, memory), (inner, jnp.arange(steps - 1))
    )
    final = jax.tree.map(lambda part: part[-1], kernels)
    key = jr.fold_in(walk_key, steps - 1)
    cloud, trace = walk(Last(), cloud, None, final, memory, key=key)
    x, change, log_evidence = cloud
    fits = walk.over(lambda x: own.log_prob(x).astype(x.dtype))(x)
    log_weights, total, finite = _weigh(change + fits, x)
    ess, share = jax.tree.map(
        lambda several, one, last: jnp.concatenate([several, jnp.stack([one, last])]),
        traces,
        trace,
        (_effective(log_weights, total), finite),
    )
    if progress:
        bar.tell(jnp.asarray(steps - 1))
    log_evidence = log_evidence + total
    return _reported(Particles(x, log_weights, log_evidence, ess, share, cast))


class _Walk(eqx.Module):
    """One step of all particles: weigh ahead, resample, move."""

    denoise: Callable
    observation: Observation
    twist: Twist
    resampling: Callable[..., Any]
    threshold: Float[Array, ""]
    batch: int | None

    def __call__(self, proposal, cloud, looks, kernel, memory, *, key):
        """Return the cloud one level down: states, log-weights and log-evidence.

        The weights are those of the prior times the likelihood, over the law of the
        states so far: whatever twist is in use is multiplied in to resample, and
        divided out again. With the cloud come this level's effective number and share
        of finite particles.
        """
        x, log_weights, log_evidence = cloud
        choose, draw = jr.split(key)
        prepare = lambda x, look: proposal.prepare(
            self.denoise, self.twist, self.observation, x, look, kernel, memory
        )
        way = self.over(prepare)(x, looks)
        log_weights = log_weights + way.log_ahead
        log_weights, total, finite = _weigh(log_weights, way.x, way.look.clean)
        ess = _effective(log_weights, total)
        size = len(log_weights)
        limit = self.threshold.astype(ess.dtype) * size

        def resample(way, log_weights):
            index = jnp.arange(size, dtype=jnp.int32)
            index = self.resampling(Weighted(index, log_weights), key=choose)
            equal = jnp.full_like(log_weights, -np.log(size))
            return jax.tree.map(lambda leaf: leaf[index], way), equal

        keep = lambda way, log_weights: (way, log_weights)
        way, log_weights = jax.lax.cond(ess <= limit, resample, keep, way, log_weights)
        move = lambda way, key: proposal.move(
            self.denoise, self.twist, self.observation, way, kernel, memory, key=key
        )
        x, ratio = self.over(move)(way, jr.split(draw, size))
        log_weights = log_weights + ratio - way.log_ahead
        return (x, log_weights, log_evidence + total), (ess, finite)

    def looks(self, x, sigma, memory) -> Look:
        """Return what the twist says of all particles."""
        denoise = lambda x: self.denoise(x, sigma)
        look = lambda x: self.twist(denoise, self.observation, x, sigma, memory)
        return self.over(look)(x)

    def over(self, function):
        """Return the function of all particles, some at a time."""
        if self.batch is None:
            return jax.vmap(function)
        return lambda *args: jax.lax.map(
            lambda one: function(*one), args, batch_size=self.batch
        )


def _weigh(log_weights, *states):
    """Return normalised log-weights, the log of their sum, and how many are finite.

    A particle whose states are not finite gets the weight 0. If all have, the weights
    are equal and the sum is -inf.
    """
    fine = jnp.stack(
        [jnp.all(jnp.isfinite(s).reshape(len(s), -1), axis=1) for s in states]
    )
    fine = jnp.all(fine, axis=0)
    present = fine & (log_weights > -jnp.inf)
    some = jnp.any(present)
    # Double where: neither NaN nor a sum of nothing may reach a derivative.
    inside = jnp.where(present, jnp.where(present, log_weights, 0), -jnp.inf)
    total = jax.nn.logsumexp(jnp.where(some, inside, 0))
    equal = jnp.full_like(log_weights, -np.log(len(log_weights)))
    log_weights = jnp.where(some, inside - total, equal)
    share = jnp.mean(fine.astype(log_weights.dtype))
    return log_weights, jnp.where(some, total, -jnp.inf), share


def _effective(log_weights, total):
    """Return the effective number of particles, 0 if all weights were 0."""
    size = jnp.exp(-jax.nn.logsumexp(2 * log_weights))
    return jnp.where(total > -jnp.inf, size, 0)


def _reported(result: Particles) -> Particles:
    """Return the result, and say where all weights became 0, if they have."""
    if not isinstance(result.ess, Tracer):
        if np.all(np.asarray(result.ess) > 0):
            return result
        message = _message(result.ess, result.finite, result.sigmas)
        return eqx.error_if(result, np.asarray(True), message)
    parts = jax.lax.stop_gradient((result.ess, result.finite, result.sigmas))
    lost = jnp.any(parts[0] == 0)
    warn = lambda: jax.debug.callback(_warn, *parts)
    jax.lax.cond(lost, warn, lambda: None)
    return result


def _warn(ess, finite, sigmas):
    # A batch of problems, of which some are well, runs both branches.
    if np.any(np.asarray(ess) == 0):
        warnings.warn(_message(ess, finite, sigmas), RuntimeWarning, stacklevel=2)


def _message(ess, finite, sigmas):
    ess = np.asarray(ess)
    at = int(np.argmax(ess == 0))
    trace = ", ".join(f"{value:.3g}" for value in ess[max(at - 5, 0) : at + 1])
    return (
        f"All weights are 0 at level {at} of {len(ess) - 1}, sigma = "
        f"{float(sigmas[at]):.4g}, where {float(finite[at]):.0%} of the particles are "
        f"finite; effective numbers up to there: {trace}. The prior, in the units of "
        "the observation, must allow what was observed, and the denoiser be finite."
    )
