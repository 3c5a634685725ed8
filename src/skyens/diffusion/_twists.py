"""Twists: guesses, at every noise level, of what the observation will say.

Sequential Monte Carlo (`smc`) walks particles through the laws `p(x, sigma) psi(x)`.
The twist psi stands for the likelihood of the observation given the noisy state. The
last weight replaces it by the likelihood itself, so any twist that is positive is
exact with many particles; the better one needs fewer.

Some look at the denoised state D: `MomentMatched`, `PseudoInverse`, `Plain`. Others at
the noisy state itself, `Annealed` and `Noised`: these cost no derivative of the
denoiser, and make `LocallyOptimal` proposals possible.
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
from skyens.diffusion._whitened import Whitened, condition, solve, whiten
from skyens.observations import Observation

State = Float[Array, "*state"]
Level = Float[Array, ""]


class Look(eqx.Module):
    """What a twist says of one particle.

    `clean` is the denoised state, `guided` the denoised state given the observation,
    as far as the twist knows, and `log_twist` the logarithm of psi.
    """

    clean: State
    guided: State
    log_twist: Level


class Twist(eqx.Module):
    """What twists have in common: one look at a particle, and where to start.

    `memory` is what all particles share and what changes from level to level.
    """

    @abc.abstractmethod
    def __call__(
        self,
        denoise: Callable[[State], State],
        observation: Observation,
        x: State,
        sigma: Level,
        memory: Any,
    ) -> Look:
        """Return the look at `x`; `denoise` is the denoiser at the level `sigma`."""

    def init(self, like: State, sigma: Level, *, key: PRNGKeyArray) -> Any:
        """Return the memory at the first level; `like` has a state's shape, dtype."""
        return None

    def advance(
        self, memory: Any, square: Level, std: Level, *, key: PRNGKeyArray
    ) -> Any:
        """Return the memory one level down, see `Kernel` for `square` and `std`."""
        return memory

    def start(
        self,
        observation: Observation,
        like: State,
        sigma: Level,
        memory: Any,
        *,
        key: PRNGKeyArray,
    ) -> tuple[State, Level]:
        """Return a state at the first level, drawn from the prior or nearer.

        With it comes the log of the prior's density over that of the draw.
        """
        return sigma * jr.normal(key, like.shape, like.dtype), jnp.zeros_like(sigma)


class MomentMatched(Twist):
    """The Gaussian with the moments of the clean state given the noisy one.

    With J = dD/dx, the clean state has mean D and covariance sigma^2 J, so that the
    values have mean A D and covariance `R + sigma^2 A J A^T`: exact where the prior is
    Gaussian. It takes one vector-Jacobian product per observation: for few of them.

    Sources: Boys et al. (2024), TMLR, arXiv:2310.06721; Rozet et al. (2024),
    arXiv:2405.13712; as a twist, Wu et al. (2023), arXiv:2306.17775.
    """

    def __call__(self, denoise, observation, x, sigma, memory):
        """Return the look at `x`."""
        clean, pull = jax.vjp(denoise, x)
        white = whiten(observation, clean)
        variance = sigma * sigma
        pulled = jax.vmap(lambda row: pull(row)[0])(white.rows)
        spread = variance * white.gram(pulled)
        weight = solve(spread, white.innovation)
        moved = jnp.tensordot(weight, pulled, 1, precision="highest")
        return Look(clean, clean + variance * moved, white.log_density(spread))


class PseudoInverse(Twist):
    """The Gaussian whose covariance is that of independent entries: one derivative.

    The clean state given the noisy one counts as having the variance `sigma^2 v /
    (v + sigma^2)` in every entry, for a prior of variance v.

    Source: Song et al. (2023), "Pseudoinverse-guided diffusion models", ICLR.
    """

    variance: Float[Array, ""]

    def __init__(self, variance: Scalar = 1.0):
        """Set the prior's `variance` of one entry, in the state's units squared.

        Raises:
            EquinoxRuntimeError: it is not positive and finite.
        """
        variance = jnp.asarray(variance, float)
        good = (variance > 0) & jnp.isfinite(variance)
        self.variance = eqx.error_if(
            variance, ~good, "`variance` must be positive and finite."
        )

    def __call__(self, denoise, observation, x, sigma, memory):
        """Return the look at `x`."""
        prior = self.variance.astype(x.dtype)
        inside = prior / (prior + sigma * sigma)
        return _guess(denoise, observation, x, sigma, inside)


class Plain(Twist):
    """The likelihood of the denoised state, as if nothing else were possible.

    Far too sharp in strong noise where the errors are small: for comparison.

    Source: Chung et al. (2023), arXiv:2209.14687; Wu et al. (2023), arXiv:2306.17775.
    """

    def __call__(self, denoise, observation, x, sigma, memory):
        """Return the look at `x`."""
        return _guess(denoise, observation, x, sigma, jnp.zeros_like(sigma))


class StateTwist(Twist):
    """A twist of the noisy state: Gaussian about `A (scale * (x - offset))`.

    Its covariance is `R + inflation scale^2 A A^T`. `offset`, `scale` and `inflation`
    are what kinds differ in. An operator that is not linear is linearised there.
    """

    @abc.abstractmethod
    def inflation(self, sigma: Level) -> Level:
        """Return the variance that is added to the entries of the noisy state."""

    def scale(self, sigma: Level) -> Level:
        """Return the factor on the state before it is observed."""
        return jnp.ones_like(sigma)

    def offset(self, like: State, memory: Any) -> State:
        """Return what is taken from the state before it is observed."""
        return jnp.zeros_like(like)

    def white(
        self, observation: Observation, x: State, sigma: Level, memory: Any
    ) -> Whitened:
        """Return the observation about the noisy state, whitened."""
        scale = self.scale(sigma)
        white = whiten(observation, scale * (x - self.offset(x, memory)))
        return Whitened(white.innovation, scale * white.rows, white.level)

    def __call__(self, denoise, observation, x, sigma, memory):
        """Return the look at `x`."""
        white = self.white(observation, x, sigma, memory)
        spread = self.inflation(sigma) * white.gram()
        clean = denoise(x)
        moved = white.back(solve(spread, white.innovation))
        return Look(clean, clean + sigma * sigma * moved, white.log_density(spread))

    def start(self, observation, like, sigma, memory, *, key):
        """Return a state drawn given the observation; exact where A is linear."""
        white = self.white(observation, jnp.zeros_like(like), sigma, memory)
        variance, inflation = sigma * sigma, self.inflation(sigma)
        x, fit = condition(white, variance, inflation, key=key)
        return x, white.log_density((variance + inflation) * white.gram()) - fit


class Annealed(StateTwist):
    """The likelihood of the noisy state, with errors that grow with its noise.

    For a prior of variance v the clean state is about `scale * x`, with
    `scale = v / (v + sigma^2)`; the values are then Gaussian about `A (scale * x)` with
    the covariance `R + gamma sigma^2 scale A A^T`. With v infinite the state stands for
    itself, as published; in strong noise that says too much, and the log-evidence is
    often several times closer with a v near the prior's variance. Where modes are far
    apart a `gamma` of 4 keeps more of them than 1, as does seldom resampling
    (`threshold` 0.35).

    With `Guided` proposals it is the approximation-free weighted-particle sampler
    (AFDPS): in the limit of short steps drift and weights are those of the modified
    Fokker-Planck equation, and at any step the weights are exact for the steps taken.
    With `Flow` it is its deterministic form. With `LocallyOptimal` it is MCGdiff where
    there are no errors.

    Sources: Chen et al. (2025), arXiv:2506.03979; Cardoso et al. (2024), ICLR,
    arXiv:2308.07983.
    """

    gamma: Float[Array, ""]
    variance: Float[Array, ""]

    def __init__(self, gamma: Scalar = 1.0, variance: Scalar = jnp.inf):
        """Set `gamma`, dimensionless, and the prior's `variance` about 0, v.

        Raises:
            EquinoxRuntimeError: `gamma` is negative or not finite, or `variance` is not
                positive.
        """
        self.gamma = _not_negative(gamma)
        variance = jnp.asarray(variance, float)
        self.variance = eqx.error_if(
            variance, ~(variance > 0), "`variance` must be positive."
        )

    def inflation(self, sigma: Level) -> Level:
        """Return `gamma sigma^2 / scale`."""
        return self.gamma.astype(sigma.dtype) * sigma * sigma / self.scale(sigma)

    def scale(self, sigma: Level) -> Level:
        """Return `v / (v + sigma^2)`."""
        return 1 / (1 + sigma * sigma / self.variance.astype(sigma.dtype))


class Noised(StateTwist):
    """The likelihood of noisy values, which follow one path of noise down to none.

    All particles share a path w of state noise: at each level they are held against
    `y + A w`, with the covariance `R + gamma sigma^2 A A^T`. With `LocallyOptimal`
    proposals it is filtering posterior sampling (FPS), with gamma = 0 its potential as
    published. Weights are exact here, with the twist of the level before divided out,
    which FPS leaves in. At gamma of 1 and below that makes them uneven: estimates of
    the evidence have no bias, and are mostly far too low.

    Source: Dou & Song (2024), "Diffusion posterior sampling for linear inverse problem
    solving: a filtering perspective", ICLR.
    """

    gamma: Float[Array, ""]

    def __init__(self, gamma: Scalar = 4.0):
        """Set `gamma`, dimensionless.

        Raises:
            EquinoxRuntimeError: it is negative or not finite.
        """
        self.gamma = _not_negative(gamma)

    def inflation(self, sigma: Level) -> Level:
        """Return `gamma sigma^2`."""
        return self.gamma.astype(sigma.dtype) * sigma * sigma

    def offset(self, like: State, memory: Any) -> State:
        """Return the path's noise at this level."""
        return memory

    def init(self, like, sigma, *, key):
        """Return noise of the first level."""
        return sigma * jr.normal(key, like.shape, like.dtype)

    def advance(self, memory, square, std, *, key):
        """Return noise of the next level, given that of this one."""
        return square * memory + std * jr.normal(key, memory.shape, memory.dtype)


def _not_negative(gamma):
    gamma = jnp.asarray(gamma, float)
    good = (gamma >= 0) & jnp.isfinite(gamma)
    return eqx.error_if(gamma, ~good, "`gamma` must be finite and >= 0.")


def _guess(denoise, observation, x, sigma, inside):
    """Return the look, if the clean state varies by `inside` times sigma^2."""
    clean, pull = jax.vjp(denoise, x)
    white = whiten(observation, clean)
    variance = sigma * sigma
    spread = variance * inside * white.gram()
    moved = pull(white.back(solve(spread, white.innovation)))[0]
    return Look(clean, clean + variance * moved, white.log_density(spread))
