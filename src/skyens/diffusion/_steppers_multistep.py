"""DPM-Solver++: methods of higher order in log(sigma), where the flow is half linear.

With `r = sigma' / sigma` and the length `h = -log(r)` of a step, the exact flow is
`x' = r x + integral of exp(s - h) D(s)` over s from 0 to h. The methods differ in what
they take for the denoised state D between the levels.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class DPMSolver2S(eqx.Module):
    """DPM-Solver++ (2S): second order from two evaluations per step, without a past.

    The denoised state is taken at the middle of the step in log(sigma), where a first
    half step leads. A step into 0, which has no middle, is of first order.

    Source: Lu et al. (2022), arXiv:2211.01095, algorithm 1 with r = 1/2.
    """

    def plan(self, sigmas: Float[Array, "levels"]) -> Any:
        """Return each step's level, the next level, and the ratio to the middle."""
        return sigmas[:-1], sigmas[1:], jnp.exp(-step_lengths(sigmas)[0] / 2)

    def init(self, x: Float[Array, "*state"]) -> Any:
        """Remember nothing."""
        return None

    def step(self, denoise, x, memory, now, *, noise, key):
        """Move to the middle, and from the start towards what is denoised there."""
        sigma, after, half = now
        clean = denoise(x, sigma)
        middle = lambda: denoise(clean + half * (x - clean), half * sigma)
        target = jax.lax.cond(after > 0, middle, lambda: clean)
        return target + (after / sigma) * (x - target), None


class DPMSolver2M(eqx.Module):
    """DPM-Solver++ (2M): second order with one evaluation per step.

    The denoised state is extrapolated linearly in log(sigma) from the last two levels.
    The first step, which has no past, and a step into 0, which is infinitely long in
    log(sigma), are of first order.

    Source: Lu et al. (2022), arXiv:2211.01095, algorithm 2.
    """

    def plan(self, sigmas: Float[Array, "levels"]) -> Any:
        """Return each step's level, ratio to the next, and weight of extrapolation."""
        return sigmas[:-1], sigmas[1:] / sigmas[:-1], extrapolation(sigmas)

    def init(self, x: Float[Array, "*state"]) -> Any:
        """Remember the last denoised state; there is none yet."""
        return jnp.zeros_like(x)

    def step(self, denoise, x, memory, now, *, noise, key):
        """Move towards the extrapolated denoised state."""
        sigma, ratio, weight = now
        clean = denoise(x, sigma)
        target = clean + weight * (clean - memory)
        return target + ratio * (x - target), clean


class DPMSolver3M(eqx.Module):
    """DPM-Solver++ (3M): third order with one evaluation per step.

    The denoised state is the parabola through its last three values, integrated
    exactly. The first two steps have a shorter past and a lower order; a step into 0 is
    of first order. With few steps, ten say, `DPMSolver2M` is the safer one.

    Source: Lu et al. (2022), arXiv:2211.01095, section 4.2 and appendix B; the weights
    here are those of the exponential Adams-Bashforth method (Hochbruck & Ostermann
    2010, Acta Numerica 19, 209-286, equation 2.59). The published code halves the
    curvature's weight, which leaves an error of second order.
    """

    def plan(self, sigmas: Float[Array, "levels"]) -> Any:
        """Return each step's level, ratio to the next, and weights of two changes."""
        lengths, final = step_lengths(sigmas)
        ratio = sigmas[1:] / sigmas[:-1]
        # The integrals of s and s^2 against the kernel, over h and h^2:
        linear = 1 + jnp.expm1(-lengths) / lengths
        square = 1 - 2 * linear / lengths
        # The past in units of this step's length, 1 where there is none.
        last = _past(lengths, 1) / lengths
        before = _past(lengths, 2) / lengths
        # Two levels only: a line. One: a constant.
        step = jnp.arange(lengths.size)
        bend = jnp.where(step >= 2, (linear * last + square) / (last + before), 0)
        newest = jnp.where(step >= 1, (linear + bend) / last, 0)
        oldest = -bend / before
        share = lambda weight: jnp.where(final, 0, weight / (1 - ratio))
        return sigmas[:-1], ratio, share(newest), share(oldest)

    def init(self, x: Float[Array, "*state"]) -> Any:
        """Remember the last denoised state and its last change; there is none yet."""
        return jnp.zeros_like(x), jnp.zeros_like(x)

    def step(self, denoise, x, memory, now, *, noise, key):
        """Move towards the mean of the extrapolated denoised state over the step."""
        sigma, ratio, newest, oldest = now
        last, last_change = memory
        clean = denoise(x, sigma)
        change = clean - last
        target = clean + newest * change + oldest * last_change
        return target + ratio * (x - target), (clean, change)


def step_lengths(
    sigmas: Float[Array, "levels"],
) -> tuple[Float[Array, "steps"], Array]:
    """Return the length of each step in log(sigma), and whether it leads into 0.

    A step into 0 is infinitely long; its length is given as 1.
    """
    before, after = sigmas[:-1], sigmas[1:]
    final = after <= 0
    ratio = before / jnp.where(final, 1, after)
    return jnp.where(final, 1, jnp.log(jnp.where(final, 1, ratio))), final


def _past(lengths, steps):
    """Return the lengths of the steps that many before, 1 where there is none."""
    steps = min(steps, lengths.size)
    return jnp.pad(lengths[: lengths.size - steps], (steps, 0), constant_values=1)


def extrapolation(sigmas: Float[Array, "levels"]) -> Float[Array, "steps"]:
    """Return the weight of the last change of the denoised state in its extrapolation.

    Half the length of this step over the last one's: what leads to the middle of this
    step. 0 at the first step and at a step into 0.
    """
    lengths, final = step_lengths(sigmas)
    weights = jnp.pad(lengths[1:] / (2 * lengths[:-1]), (1, 0))
    return jnp.where(final, 0, weights)
