"""Guidance by an ensemble: for operators that have no derivative."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from skyens.assimilation import EnKF
from skyens.diffusion._checked import (
    checked_denoiser,
    checked_levels,
    first_failure,
    report_failure,
)
from skyens.diffusion._denoisers import Denoiser
from skyens.diffusion._noise import Noise, White
from skyens.diffusion._samplers import Method
from skyens.diffusion._schedule import Schedule
from skyens.diffusion._steppers import Heun
from skyens.diffusion._units import InUnits, in_terms_of
from skyens.diffusion._walk import checked_walks, ladder, walk
from skyens.observations import Error, Observation

_ENKF = EnKF(centred=False)
_HEUN = Heun()
_WHITE = White()


def ensemble_guidance(
    denoiser: Denoiser,
    schedule: Schedule,
    observation: Observation | InUnits,
    shape: tuple[int, ...],
    *,
    key: PRNGKeyArray,
    members: int = 100,
    analyse: Callable = _ENKF,
    sampler: Method = _HEUN,
    steps: int = 18,
    inner: int = 5,
    noise: Noise = _WHITE,
    condition: Any = None,
    dtype: DTypeLike = float,
) -> Float[Array, "member *state"]:
    """Draw `members` samples of `shape` from the posterior, without any derivative.

    All members go down the probability flow together. At each of `steps` levels they
    are analysed by an ensemble method, whose operator sees where the flow takes a noisy
    state, `operator(flow(x))`, with the observation's errors `steps` times as likely
    spread: all levels together use it once. A flow carries such posteriors of
    different levels into each other, so where it is linear and the operator too, many
    members have the exact posterior; else the flow brings back to the prior what an
    analysis has moved out of it.

    The operator is called for each member and need not be differentiable: one that is
    no JAX function goes into `jax.pure_callback(..., vmap_method="sequential")`.

    Args:
        denoiser: of the prior.
        schedule: the levels.
        observation: of the clean state, in the denoiser's units, or with its own
            stated, see `Normalised`.
        shape: of one state.
        key: randomness of the start, the analyses and the sampler.
        members: how many, at least 2. Fewer than there are directions to find
            underestimate the spread.
        analyse: `method(background, observation, *, key) -> (analysis, info)`, an
            ensemble method of `assimilation`: `ETKF()`, a localised one.
        sampler: one that adds no noise, for the flow.
        steps: number of levels.
        inner: steps of the flow from a level to the clean state, for the operator.
        noise: the denoiser's noise law.
        condition: for the denoiser.
        dtype: of the samples.

    Source: after Zheng et al. (2024), arXiv:2409.20175, algorithm 2, with an analysis
    of a share of the observation in place of a gradient step of a size to be tuned.

    Raises:
        ValueError: `steps` is below 1, `inner` or `members` below 2, the schedule does
            not give as many levels as it is asked for, units are stated by one of prior
            and observation only, or differ, or the denoiser returns another shape or
            dtype than it was given.
        EquinoxRuntimeError: the levels do not decrease or leave the range the denoiser
            was trained in, or a member does not stay finite.
    """
    if members < 2 or steps < 1 or inner < 2:
        raise ValueError(
            "`members` and `inner` must be at least 2 and `steps` 1, got "
            f"{members}, {inner} and {steps}."
        )
    own: Observation = in_terms_of(denoiser, observation)
    # One more, so that each analysed level is above the lowest one.
    sigmas = checked_levels(denoiser, schedule, steps + 1)
    lowest, pairs = sigmas[-2], jnp.stack([sigmas[:-1], sigmas[1:]], axis=1)
    ladders = jax.vmap(lambda level: ladder(level, lowest, inner))(sigmas[:-2])
    for walks in (ladders, pairs):
        sigmas = checked_walks(denoiser, sampler, walks, sigmas)
    denoise = checked_denoiser(denoiser, condition)
    start_key, run_key = jr.split(key)
    shared = Share(own.error, jnp.asarray(1 / steps, float))
    go = lambda levels, key: (
        lambda x: walk(denoise, sampler, levels, x, noise=noise, key=key)
    )

    def step(carry, this):
        x, failed = carry
        levels, index = this
        analysis_key, flow_key = jr.split(jr.fold_in(run_key, index))
        flow = go(ladder(levels[0], lowest, inner), flow_key)
        seen = own.pullback(flow)
        here = lambda node: node is own.error
        seen = eqx.tree_at(lambda o: o.error, seen, shared, is_leaf=here)
        x, _ = analyse(x, seen, key=analysis_key)
        x = jax.vmap(go(levels, flow_key))(x)
        return (x, first_failure(failed, levels[0], jnp.isfinite(x).all())), None

    draw = lambda key: noise(shape, dtype, key=key)
    x = sigmas[0].astype(dtype) * jax.vmap(draw)(jr.split(start_key, members))
    first = x, jnp.zeros((), sigmas.dtype)
    (x, failed), _ = jax.lax.scan(step, first, (pairs[:-1], jnp.arange(steps)))
    x = jax.vmap(go(pairs[-1], run_key))(x)
    return report_failure(x, first_failure(failed, lowest, jnp.isfinite(x).all()))


class Share(eqx.Module):
    """A share of an observation: its errors' density to a power, not normalised."""

    error: Error
    share: Float[Array, ""]

    @property
    def independent(self) -> bool:
        """Whether the errors are."""
        return self.error.independent

    def at(self, prediction: Float[Array, "*shape"]) -> "Share":
        """Return the share of the law where this is predicted."""
        at = getattr(self.error, "at", None)
        return self if at is None else Share(at(prediction), self.share)

    def gaussian(
        self, residual: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
    ) -> "Share":
        """Return the share of the Gaussian law about these residuals."""
        gaussian = getattr(self.error, "gaussian", None)
        return self if gaussian is None else Share(gaussian(residual, mask), self.share)

    def whiten(
        self, residual: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        """Return the whitened residual, times the root of the share."""
        root = jnp.sqrt(self.share.astype(residual.dtype))
        return root * self.error.whiten(residual, mask)

    def log_prob(
        self, residual: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
    ) -> Float[Array, ""]:
        """Return the share of the log-density."""
        density = self.error.log_prob(residual, mask)
        return self.share.astype(density.dtype) * density

    def sample(
        self, prediction: Float[Array, "*shape"], *, key: PRNGKeyArray
    ) -> Float[Array, "*shape"]:
        """Return an error of the Gaussian that has this share."""
        root = jnp.sqrt(self.share.astype(prediction.dtype))
        return self.error.sample(prediction, key=key) / root
