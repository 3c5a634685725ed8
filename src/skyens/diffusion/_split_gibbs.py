"""Split Gibbs samplers: alternate between the prior alone and the likelihood alone.

A noisy copy z of the clean state x, `N(z; x, sigma^2 I)`, lets each half of the problem
be sampled by itself: the likelihood with a Gaussian about x, and the prior given z,
which is what a diffusion samples. Level by level sigma falls, and z becomes x. No
gradient goes through the denoiser.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from skyens.diffusion._checked import (
    checked_denoiser,
    checked_levels,
    first_failure,
    report_failure,
)
from skyens.diffusion._denoisers import Denoiser
from skyens.diffusion._likelihood_step import Perturbed
from skyens.diffusion._noise import White
from skyens.diffusion._samplers import Method
from skyens.diffusion._schedule import Schedule
from skyens.diffusion._steppers import Heun
from skyens.diffusion._steppers_sde import DPMSolverSDE
from skyens.diffusion._units import InUnits, in_terms_of
from skyens.diffusion._walk import checked_walks, ladder, walk
from skyens.observations import Observation

_WHITE = White()
_PERTURBED = Perturbed()
_DPM_SOLVER = DPMSolverSDE()
_HEUN = Heun()


def _least(inner):
    if inner < 2:
        raise ValueError(f"`inner` must be at least 2, got {inner}.")
    return inner


class PlugAndPlay(eqx.Module):
    """Plug-and-play sampling: exact halves, and so exact as sigma falls slowly to 0.

    At each level z is drawn near x and near the observation, and x is drawn given z by
    reverse diffusion from that level, with noise: `sampler` must be a stochastic one.
    At a fixed level x has the law `p(x) p(y | x + sigma * noise)`.

    Source: Wu et al. (2024), NeurIPS 37, arXiv:2405.18782, algorithm 1.
    """

    likelihood: Callable
    sampler: Method
    inner: int = eqx.field(static=True)

    def __init__(
        self,
        inner: int = 10,
        *,
        likelihood: Callable = _PERTURBED,
        sampler: Method = _DPM_SOLVER,
    ):
        """Set the `inner` steps down from each level, and how to draw both halves.

        `likelihood(observation, x, std, *, key)` draws z, as `Perturbed()` does, or
        `Langevin()` where the problem is far from linear and Gaussian.

        Raises:
            ValueError: `inner` is below 2.
        """
        self.inner, self.likelihood, self.sampler = _least(inner), likelihood, sampler

    def __call__(
        self,
        denoise: Callable,
        observation: Observation,
        x: Float[Array, "*state"],
        sigmas: Float[Array, "levels"],
        *,
        key: PRNGKeyArray,
    ) -> Float[Array, "*state"]:
        """Return the next clean state; `sigmas` lead from this level down to 0."""
        first, second = jr.split(key)
        near = self.likelihood(observation, x, sigmas[0], key=first)
        return walk(denoise, self.sampler, sigmas, near, noise=_WHITE, key=second)


class DAPS(eqx.Module):
    """Decoupled annealing: denoise by the flow, then move towards the observation.

    At each level x is noised and carried down the probability flow, and the clean state
    is drawn near the result and near the observation, as if the prior there were a
    Gaussian of variance `r^2 = spread^2 sigma^2 / (spread^2 + sigma^2)`. The errors of
    one level are forgotten at the next; the guess of that variance leaves a bias.

    Source: Zhang et al. (2025), CVPR, arXiv:2407.01521, algorithm 1, where r is sigma:
    an infinite `spread`.
    """

    spread: Float[Array, ""]
    likelihood: Callable
    sampler: Method
    inner: int = eqx.field(static=True)

    def __init__(
        self,
        spread: float | Float[Array, ""] = 1.0,
        inner: int = 5,
        *,
        likelihood: Callable = _PERTURBED,
        sampler: Method = _HEUN,
    ):
        """Set the standard deviation of clean states, and the rest as `PlugAndPlay`.

        Raises:
            ValueError: `inner` is below 2.
            EquinoxRuntimeError: `spread` is not above 0.
        """
        spread = jnp.asarray(spread, float)
        self.spread = eqx.error_if(spread, ~(spread > 0), "`spread` must be above 0.")
        self.inner, self.likelihood, self.sampler = _least(inner), likelihood, sampler

    def __call__(
        self,
        denoise: Callable,
        observation: Observation,
        x: Float[Array, "*state"],
        sigmas: Float[Array, "levels"],
        *,
        key: PRNGKeyArray,
    ) -> Float[Array, "*state"]:
        """Return the next clean state; `sigmas` lead from this level down to 0."""
        noise_key, walk_key, draw_key = jr.split(key, 3)
        sigma = sigmas[0].astype(x.dtype)
        noisy = x + sigma * jr.normal(noise_key, x.shape, x.dtype)
        guess = walk(denoise, self.sampler, sigmas, noisy, noise=_WHITE, key=walk_key)
        ratio = sigma / self.spread.astype(x.dtype)
        std = sigma / jnp.sqrt(1 + jnp.square(ratio))
        return self.likelihood(observation, guess, std, key=draw_key)


_PLUG_AND_PLAY = PlugAndPlay()


def split_gibbs(
    denoiser: Denoiser,
    schedule: Schedule,
    observation: Observation | InUnits,
    shape: tuple[int, ...],
    *,
    key: PRNGKeyArray,
    method: PlugAndPlay | DAPS | Callable = _PLUG_AND_PLAY,
    steps: int = 50,
    condition: Any = None,
    dtype: DTypeLike = float,
) -> Float[Array, "*state"]:
    """Draw one sample of `shape` from the posterior, in the denoiser's units.

    It visits `steps` levels of the schedule, from its first down to the last one above
    its `sigma_min`, and from each goes down `method.inner` levels to 0. Many samples:
    `jax.vmap` over keys. The noise is white.

    Raises:
        ValueError: `steps` is below 1, the schedule does not give as many levels as it
            is asked for, units are stated by one of prior and observation only, or
            differ, or the denoiser returns another shape or dtype than it was given.
        EquinoxRuntimeError: the levels do not decrease or leave the range the denoiser
            was trained in, or the state does not stay finite.
    """
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1, got {steps}.")
    own: Observation = in_terms_of(denoiser, observation)
    # One more, so that each visited level is above the lowest one.
    sigmas = checked_levels(denoiser, schedule, steps + 1)
    denoise = checked_denoiser(denoiser, condition)
    lowest = sigmas[-2]
    if hasattr(method, "sampler"):
        walks = jax.vmap(lambda sigma: ladder(sigma, lowest, method.inner))(sigmas[:-2])
        sigmas = checked_walks(denoiser, method.sampler, walks, sigmas)

    def step(carry, this):
        x, failed = carry
        sigma, index = this
        levels = ladder(sigma, lowest, method.inner)
        x = method(denoise, own, x, levels, key=jr.fold_in(key, index))
        return (x, first_failure(failed, sigma, jnp.isfinite(x).all())), None

    start = jnp.zeros(shape, dtype), jnp.zeros((), sigmas.dtype)
    (x, failed), _ = jax.lax.scan(step, start, (sigmas[:-2], jnp.arange(steps)))
    return report_failure(x, failed)
