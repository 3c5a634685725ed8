"""Samplers: walk a noisy state down the levels of a schedule, one `lax.scan`.

All methods follow the probability flow `dx / dsigma = (x - D(x, sigma)) / sigma`, in
coordinates scaled by `1 / alpha`, in which it is the same for every schedule.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from skyens.diffusion._denoisers import Denoiser
from skyens.diffusion._noise import Noise, White
from skyens.diffusion._schedule import Schedule


@runtime_checkable
class Method(Protocol):
    """A stepper: what it needs of the levels, what it remembers, and one step."""

    def plan(self, sigmas: Float[Array, "levels"]) -> Any:
        """Return arrays with one leading entry per step, from the levels alone."""
        ...

    def init(self, x: Float[Array, "*state"]) -> Any:
        """Return the memory before the first step."""
        ...

    def step(
        self,
        denoise: Callable,
        x: Float[Array, "*state"],
        memory: Any,
        now: Any,
        *,
        noise: Callable,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, "*state"], Any]:
        """Return state and memory one level down; `now` is this step's plan.

        `denoise(x, sigma)` is the denoiser, `noise(key=key)` a sample of unit noise.
        """
        ...


class Euler(eqx.Module):
    """The first-order method, one evaluation per step; the same as DDIM without noise.

    Source: Song, Meng & Ermon (2021), ICLR, arXiv:2010.02502, equation 13.
    """

    def plan(self, sigmas: Float[Array, "levels"]) -> Any:
        """Return each step's level and the ratio of the next level to it."""
        return sigmas[:-1], sigmas[1:] / sigmas[:-1]

    def init(self, x: Float[Array, "*state"]) -> Any:
        """Remember nothing."""
        return None

    def step(self, denoise, x, memory, now, *, noise, key):
        """Move on the straight line through the state and its denoised guess."""
        sigma, ratio = now
        clean = denoise(x, sigma)
        return clean + ratio * (x - clean), None


class Heun(eqx.Module):
    """The second-order method of EDM, two evaluations per step, with optional churn.

    Before a step from a level in [churn_min, churn_max] the noise is raised to
    `sigma * (1 + min(churn / steps, sqrt(2) - 1))` by adding fresh noise of standard
    deviation `noise_scale` times what that takes. A step into 0 is one of Euler's.
    `churn = 0` is deterministic; above 1, `noise_scale` makes up for a denoiser that
    removes too much, and biases an exact one.

    Source: Karras et al. (2022), arXiv:2206.00364, algorithm 2.
    """

    churn: Float[Array, ""]
    churn_min: Float[Array, ""]
    churn_max: Float[Array, ""]
    noise_scale: Float[Array, ""]

    def __init__(
        self,
        churn: float | Float[Array, ""] = 0.0,
        churn_min: float | Float[Array, ""] = 0.0,
        churn_max: float | Float[Array, ""] = jnp.inf,
        noise_scale: float | Float[Array, ""] = 1.0,
    ):
        """Set `churn` and `noise_scale`, dimensionless, and the levels it acts between.

        Raises:
            EquinoxRuntimeError: a setting is negative or NaN, or churn_min > churn_max.
        """
        settings = (churn, churn_min, churn_max, noise_scale)
        settings = tuple(jnp.asarray(value, float) for value in settings)
        good = jnp.all(jnp.stack(settings) >= 0) & (settings[1] <= settings[2])
        self.churn = eqx.error_if(
            settings[0],
            ~good,
            "`churn`, `churn_min`, `churn_max` and `noise_scale` must not be negative, "
            "and `churn_min` not above `churn_max`.",
        )
        self.churn_min, self.churn_max, self.noise_scale = settings[1:]

    def plan(self, sigmas: Float[Array, "levels"]) -> Any:
        """Return each step's raised level, its added noise, and the next level."""
        cast = lambda setting: setting.astype(sigmas.dtype)
        before, after = sigmas[:-1], sigmas[1:]
        inside = (before >= cast(self.churn_min)) & (before <= cast(self.churn_max))
        growth = jnp.minimum(cast(self.churn) / before.size, 2**0.5 - 1)
        growth = jnp.where(inside, growth, 0)
        # Double where: the square root must never see the 0 it would differentiate.
        active = growth > 0
        variance = jnp.where(active, growth * (2 + growth), 1)
        added = cast(self.noise_scale) * before * jnp.sqrt(variance)
        return before * (1 + growth), jnp.where(active, added, 0), after

    def init(self, x: Float[Array, "*state"]) -> Any:
        """Remember nothing."""
        return None

    def step(self, denoise, x, memory, now, *, noise, key):
        """Raise the noise, step down, and correct with the slope found there."""
        sigma, added, after = now
        x = jax.lax.cond(added > 0, lambda: x + added * noise(key=key), lambda: x)
        clean = denoise(x, sigma)
        slope = (x - clean) / sigma
        reached = clean + (after / sigma) * (x - clean)

        def corrected():
            # At 0 this branch may run under `vmap`, unused; it must stay finite.
            level = jnp.where(after > 0, after, sigma)
            slope_after = (reached - denoise(reached, level)) / level
            return x + (after - sigma) * (slope + slope_after) / 2

        return jax.lax.cond(after > 0, corrected, lambda: reached), None


class DPMSolver2M(eqx.Module):
    """DPM-Solver++ (2M): second order with one evaluation per step.

    The denoised state is extrapolated linearly in log(sigma) from the last two levels.
    The first step, which has no past, and a step into 0, which is infinitely long in
    log(sigma), are of first order.

    Source: Lu et al. (2022), arXiv:2211.01095, algorithm 2.
    """

    def plan(self, sigmas: Float[Array, "levels"]) -> Any:
        """Return each step's level, ratio to the next, and weight of extrapolation."""
        before, after = sigmas[:-1], sigmas[1:]
        final = after <= 0
        lengths = jnp.log(before / jnp.where(final, before, after))
        # h_i / (2 h_(i-1)), and 0 at the first step
        weights = lengths[1:] / (2 * lengths[:-1])
        return before, after / before, jnp.pad(weights, (1, 0))

    def init(self, x: Float[Array, "*state"]) -> Any:
        """Remember the last denoised state; there is none yet."""
        return jnp.zeros_like(x)

    def step(self, denoise, x, memory, now, *, noise, key):
        """Move towards the extrapolated denoised state."""
        sigma, ratio, weight = now
        clean = denoise(x, sigma)
        target = clean + weight * (clean - memory)
        return target + ratio * (x - target), clean


_DPM_SOLVER = DPMSolver2M()
_WHITE = White()


def sample(
    denoiser: Denoiser,
    schedule: Schedule,
    shape: tuple[int, ...],
    *,
    key: PRNGKeyArray,
    method: Method = _DPM_SOLVER,
    steps: int = 18,
    noise: Noise = _WHITE,
    condition: Any = None,
    dtype: DTypeLike = float,
) -> Float[Array, "*state"]:
    """Draw one sample of `shape` and `dtype`, in the units of the denoiser's states.

    It starts from pure noise at the first level, as if the clean states' mean m and
    variance v were nothing against it: to first order the samples are off by
    `m sqrt(v) / sigma_max` in mean. Centre and scale states, and choose the schedule,
    so that this is small. Many samples: `jax.vmap` over keys.

    `condition` is handed to every call of the denoiser. Gradients flow to everything
    the denoiser and the schedule hold.

    Raises:
        ValueError: `steps` is below 1, the schedule does not give `steps + 1` levels,
            or the denoiser returns another shape or dtype than it was given.
        EquinoxRuntimeError: the levels do not decrease, or one of them, but for the
            last, is not positive.
    """
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1, got {steps}.")
    sigmas = schedule.sigmas(steps)
    if sigmas.shape != (steps + 1,):
        raise ValueError(
            f"`schedule` must give {steps + 1} levels for {steps} steps, got an array "
            f"of shape {sigmas.shape}."
        )
    decreasing = jnp.all(sigmas[1:] < sigmas[:-1]) & (sigmas[-1] >= 0)
    sigmas = eqx.error_if(
        sigmas,
        ~(decreasing & jnp.isfinite(sigmas[0])),
        "The levels of `schedule` must be finite, decrease, and end at 0 or above.",
    )
    start, walk = jr.split(key)
    draw = lambda *, key: noise(shape, dtype, key=key)

    def denoise(x, sigma):
        clean = denoiser(x, sigma, condition=condition)
        if clean.shape != x.shape or clean.dtype != x.dtype:
            raise ValueError(
                f"`denoiser` must keep shape and dtype: it was given "
                f"{x.dtype}{x.shape} and returned {clean.dtype}{clean.shape}."
            )
        return clean

    def step(carry, this):
        x, memory = carry
        now, index = this
        key = jr.fold_in(walk, index)
        return method.step(denoise, x, memory, now, noise=draw, key=key), None

    x = draw(key=start)
    # Ratios and logarithms are taken in the schedule's precision, then cast: levels
    # that differ there may be equal in the state's.
    plan = jax.tree.map(lambda part: part.astype(x.dtype), method.plan(sigmas))
    x = sigmas[0].astype(x.dtype) * x
    (x, _), _ = jax.lax.scan(step, (x, method.init(x)), (plan, jnp.arange(steps)))
    return x
