"""Proposals: how a particle of sequential Monte Carlo goes down one level of noise.

The prior's own step is the kernel `N(mean, std^2)` of the noisy state one level down,
given the noisy and the denoised one. A proposal draws from a law that knows the
observation, and says by how much the kernel's density differs from its own.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from skyens.diffusion._denoisers import Scalar
from skyens.diffusion._twists import Look, StateTwist, Twist
from skyens.diffusion._whitened import Whitened, condition, whiten
from skyens.observations import Observation

State = Float[Array, "*state"]


class Kernel(eqx.Module):
    """The prior's step from the level `sigma` to `after`.

    Given x and the denoised D it is the normal law of mean `D + square * (x - D)` and
    standard deviation `std`, with `square = (after / sigma)^2`, `rest = 1 - square` and
    `std^2 = after^2 rest`.

    Source: Ho, Jain & Abbeel (2020), arXiv:2006.11239, equation 6.
    """

    sigma: Float[Array, "*step"]
    after: Float[Array, "*step"]
    square: Float[Array, "*step"]
    rest: Float[Array, "*step"]
    std: Float[Array, "*step"]

    @classmethod
    def between(cls, sigmas: Float[Array, "levels"]) -> "Kernel":
        """Return the kernels of all steps, stacked."""
        sigma, after = sigmas[:-1], sigmas[1:]
        rest = (sigma - after) * (sigma + after) / sigma**2
        std = after * jnp.sqrt(rest)
        return cls(sigma, after, (after / sigma) ** 2, rest, std)

    def mean(self, x: State, clean: State) -> State:
        """Return the mean one level down."""
        return clean + self.square * (x - clean)


class Way(eqx.Module):
    """One particle on its way: what is needed to move it, and its weight so far.

    `log_ahead` takes the place of the twist in the weight before the move, so that
    particles are resampled by what is known of where they will go.
    """

    x: State
    look: Look
    log_ahead: Scalar


class Proposal(eqx.Module):
    """What proposals have in common: look ahead, then move."""

    def prepare(
        self,
        denoise: Callable[[State, Scalar], State],
        twist: Twist,
        observation: Observation,
        x: State,
        look: Look,
        kernel: Kernel,
        memory: Any,
    ) -> Way:
        """Return the particle, ready to move; `memory` is that of one level down."""
        return Way(x, look, look.log_twist)

    @abc.abstractmethod
    def move(
        self,
        denoise: Callable[[State, Scalar], State],
        twist: Twist,
        observation: Observation,
        way: Way,
        kernel: Kernel,
        memory: Any,
        *,
        key: PRNGKeyArray,
    ) -> tuple[State, Scalar]:
        """Return the state one level down, and the log of kernel over proposal."""


class Unguided(Proposal):
    """The prior's kernel itself, which knows nothing of the observation.

    The bootstrap filter of diffusion: for twists whose gradient leads astray, or to see
    what guidance is worth.
    """

    def move(self, denoise, twist, observation, way, kernel, memory, *, key):
        """Return a draw from the kernel."""
        noise = jr.normal(key, way.x.shape, way.x.dtype)
        x = kernel.mean(way.x, way.look.clean) + kernel.std * noise
        return x, jnp.zeros_like(way.log_ahead)


class Guided(Proposal):
    """The kernel about the guided state in place of the denoised one.

    It moves along the slope of the twist (twisted diffusion sampler, TDS).

    Source: Wu et al. (2023), NeurIPS 36, arXiv:2306.17775, algorithm 1.
    """

    def move(self, denoise, twist, observation, way, kernel, memory, *, key):
        """Return a draw from the kernel of the guided state."""
        noise = jr.normal(key, way.x.shape, way.x.dtype)
        x = kernel.mean(way.x, way.look.guided) + kernel.std * noise
        # Both have the same covariance; in units of std the means are this far apart.
        shift = kernel.rest * (way.look.guided - way.look.clean) / kernel.std
        return x, -jnp.sum(shift * (noise + shift / 2))


class LocallyOptimal(Proposal):
    """The kernel times the next twist, normalised: no other draw has better weights.

    For twists of the noisy state (`Annealed`, `Noised`), which are Gaussian in it.
    The weight does not depend on the draw, so particles are resampled before it. An
    operator that is not linear is linearised at the kernel's mean, and the weight makes
    up for it.

    Sources: Doucet, Godsill & Andrieu (2000), Stat. Comput. 10, 197-208; Cardoso et
    al. (2024), arXiv:2308.07983.
    """

    def prepare(self, denoise, twist, observation, x, look, kernel, memory):
        """Return the particle, with the next twist's mean over the kernel.

        Raises:
            ValueError: the twist is not one of the noisy state.
        """
        twist = _of_the_state(twist)
        mean = kernel.mean(x, look.clean)
        white = twist.white(observation, mean, kernel.after, memory)
        variance = kernel.std**2 + twist.inflation(kernel.after)
        return Way(x, look, white.log_density(variance * white.gram()))

    def move(self, denoise, twist, observation, way, kernel, memory, *, key):
        """Return a draw given the next twist."""
        twist, mean = _of_the_state(twist), kernel.mean(way.x, way.look.clean)
        white = twist.white(observation, mean, kernel.after, memory)
        inflation = twist.inflation(kernel.after)
        change, fit = condition(white, kernel.std**2, inflation, key=key)
        return mean + change, way.log_ahead - fit


class Flow(Proposal):
    """The probability flow, without noise: one step of Heun's method.

    Weights are then ratios of the twist, from one end to the other. Nothing makes
    copies differ again, so resample late or never (`threshold` 0). Two evaluations of
    the denoiser a step.

    Source: Chen et al. (2025), arXiv:2506.03979, for twists of the noisy state.
    """

    def move(self, denoise, twist, observation, way, kernel, memory, *, key):
        """Return the state that flows from this one."""
        x, clean = way.x, way.look.clean
        ratio = kernel.after / kernel.sigma
        reached = clean + ratio * (x - clean)
        # Heun's two slopes, over their levels: the second weighs in by the ratio.
        slope = (x - clean) / kernel.sigma
        slope_after = (reached - denoise(reached, kernel.after)) / kernel.after
        x = x + (kernel.after - kernel.sigma) * (slope + slope_after) / 2
        return x, jnp.zeros_like(way.log_ahead)


class Last(Proposal):
    """The step from the last level to the clean state, the same after all proposals.

    The prior's step is `D + sigma J z` with white z and J = dD/dx: a covariance of
    `sigma^2 J J^T`, which is nearly that of the clean state, `sigma^2 J`, and lies
    where the prior lets it. z is drawn given the observation, however small its errors;
    with a linear operator the weight does not depend on it.
    """

    def prepare(self, denoise, twist, observation, x, look, kernel, memory):
        """Return the particle, with the mean of the likelihood over the step.

        No twist is asked: `look` may be None.
        """
        clean, pull = jax.vjp(lambda x: denoise(x, kernel.sigma), x)
        white = _seen(observation, clean, pull, kernel.sigma)
        ahead = white.log_density(white.gram())
        return Way(x, Look(clean, clean, ahead), ahead)

    def move(self, denoise, twist, observation, way, kernel, memory, *, key):
        """Return a clean state given the observation."""
        denoiser = lambda x: denoise(x, kernel.sigma)
        clean, pull = jax.vjp(denoiser, way.x)
        white = _seen(observation, clean, pull, kernel.sigma)
        one = jnp.ones_like(kernel.sigma)
        noise, fit = condition(white, one, jnp.zeros_like(one), key=key)
        change = jax.jvp(denoiser, (way.x,), (kernel.sigma * noise,))[1]
        return clean + change, way.log_ahead - fit


def _of_the_state(twist: Twist) -> StateTwist:
    if not isinstance(twist, StateTwist):
        raise ValueError(
            "`LocallyOptimal` needs a twist of the noisy state, `Annealed` or "
            f"`Noised`, got {type(twist).__name__}; `Guided` takes any."
        )
    return twist


def _seen(observation, clean, pull, sigma):
    """Return the observation about the denoised state, as one of unit noise before."""
    white = whiten(observation, clean)
    rows = jax.vmap(lambda row: sigma * pull(row)[0])(white.rows)
    return Whitened(white.innovation, rows, white.level)
