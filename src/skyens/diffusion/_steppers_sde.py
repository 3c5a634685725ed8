"""Stochastic methods: exponential integrators of the reverse process, and Langevin.

With `h = log(sigma / sigma')` the step of the reverse process with noise `eta` is

    x' = k x + (1 - k) D + sigma' sqrt(1 - exp(-2 eta h)) z,  k = exp(-(1 + eta) h),

where D stands for the denoised state over the step and z for unit noise. All laws on
the way are those of the flow, `eta = 0`; noise makes up for errors made before, and
needs more steps.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from skyens.diffusion._checked import visited_levels
from skyens.diffusion._steppers import add_noise, safe_sqrt
from skyens.diffusion._steppers_multistep import extrapolation, step_lengths


class ExponentialSDE(eqx.Module):
    """The reverse process with the denoised state held over each step: first order.

    With `eta = 1`, the reverse of the process that added the noise, it is the ancestral
    sampler, `DDIM(1.0)`; there is no upper limit to `eta`.

    Source: Lu et al. (2022), arXiv:2211.01095, SDE-DPM-Solver++ (1); Gonzalez et al.
    (2023), NeurIPS 36, arXiv:2305.14267, equation 10.
    """

    eta: Float[Array, ""]

    def __init__(self, eta: float | Float[Array, ""] = 1.0):
        """Set `eta`, dimensionless: 0 for the flow, 1 for the reverse process.

        Raises:
            EquinoxRuntimeError: `eta` is negative or not finite.
        """
        self.eta = _checked_eta(eta)

    def plan(self, sigmas: Float[Array, "levels"]) -> Any:
        """Return each step's level, how much of the state stays, and its noise."""
        return sigmas[:-1], *_kept_and_added(sigmas, self.eta)

    def init(self, x: Float[Array, "*state"]) -> Any:
        """Remember nothing."""
        return None

    def step(self, denoise, x, memory, now, *, noise, key):
        """Move towards the denoised state and add noise."""
        sigma, kept, added = now
        clean = denoise(x, sigma)
        return add_noise(clean + kept * (x - clean), added, noise, key), None


class DPMSolverSDE(eqx.Module):
    """SDE-DPM-Solver++ (2M): the reverse process, its denoised state extrapolated.

    One evaluation per step; the first step, and a step into 0, do not extrapolate.
    `eta = 0` is `DPMSolver2M`.

    Source: Lu et al. (2022), arXiv:2211.01095, SDE-DPM-Solver++ (2M).
    """

    eta: Float[Array, ""]

    def __init__(self, eta: float | Float[Array, ""] = 1.0):
        """Set `eta`, dimensionless: 0 for the flow, 1 for the reverse process.

        Raises:
            EquinoxRuntimeError: `eta` is negative or not finite.
        """
        self.eta = _checked_eta(eta)

    def plan(self, sigmas: Float[Array, "levels"]) -> Any:
        """Return each step's level, what stays, its noise, and the extrapolation."""
        return sigmas[:-1], *_kept_and_added(sigmas, self.eta), extrapolation(sigmas)

    def init(self, x: Float[Array, "*state"]) -> Any:
        """Remember the last denoised state; there is none yet."""
        return jnp.zeros_like(x)

    def step(self, denoise, x, memory, now, *, noise, key):
        """Move towards the extrapolated denoised state and add noise."""
        sigma, kept, added, weight = now
        clean = denoise(x, sigma)
        target = clean + weight * (clean - memory)
        return add_noise(target + kept * (x - target), added, noise, key), clean


class PredictorCorrector(eqx.Module):
    """Any method, and some steps of Langevin dynamics at each level it arrives at.

    A corrector's step adds `step (D - x) + sqrt(2 step) sigma z`, with
    `step = 2 signal_to_noise^2`: the published step, in which the norm of the noise
    over that of the score stands for `sigma`, its expectation. It costs an evaluation,
    leaves the law of the level as it is up to errors of the order of the step, and
    pulls a state that has left it back. None is made at the level 0.

    Source: Song et al. (2021), ICLR, arXiv:2011.13456, algorithms 1 and 4.
    """

    predictor: Any
    signal_to_noise: Float[Array, ""]
    corrections: int = eqx.field(static=True)

    def __init__(
        self,
        predictor: Any,
        signal_to_noise: float | Float[Array, ""] = 0.16,
        corrections: int = 1,
    ):
        """Set the method that goes down, and size and number of steps at each level.

        `signal_to_noise` is dimensionless.

        Raises:
            ValueError: `corrections` is below 1.
            EquinoxRuntimeError: `signal_to_noise` lies outside (0, 0.7], where steps
                are stable.
        """
        if corrections < 1:
            raise ValueError(f"`corrections` must be at least 1, got {corrections}.")
        ratio = jnp.asarray(signal_to_noise, float)
        bad = ~((ratio > 0) & (ratio <= 0.7))
        self.predictor, self.corrections = predictor, corrections
        self.signal_to_noise = eqx.error_if(
            ratio, bad, "`signal_to_noise` must lie above 0 and not above 0.7."
        )

    def plan(self, sigmas: Float[Array, "levels"]) -> Any:
        """Return the predictor's plan, each step's next level, and its correction."""
        length = 2 * self.signal_to_noise.astype(sigmas.dtype) ** 2
        lengths = jnp.full(sigmas.size - 1, length)
        return self.predictor.plan(sigmas), sigmas[1:], lengths

    def visited(self, sigmas: Float[Array, "levels"]) -> Float[Array, "visited"]:
        """Return the predictor's levels, and the last one, corrected at unless 0."""
        predicted, last = visited_levels(self.predictor, sigmas), sigmas[-1:]
        last = jnp.where(last > 0, last, predicted[-1:])
        return jnp.concatenate([predicted, last])

    def init(self, x: Float[Array, "*state"]) -> Any:
        """Remember what the predictor does."""
        return self.predictor.init(x)

    def step(self, denoise, x, memory, now, *, noise, key):
        """Go down by the predictor's step and correct at the level reached."""
        plan, sigma, length = now
        key, correct = jr.split(key)
        x, memory = self.predictor.step(denoise, x, memory, plan, noise=noise, key=key)

        def correction(x, key):
            added = jnp.sqrt(2 * length) * sigma * noise(key=key)
            return x + length * (denoise(x, sigma) - x) + added, None

        keys = jr.split(correct, self.corrections)
        corrected = lambda: jax.lax.scan(correction, x, keys)[0]
        return jax.lax.cond(sigma > 0, corrected, lambda: x), memory


def _checked_eta(eta):
    eta = jnp.asarray(eta, float)
    bad = ~((eta >= 0) & jnp.isfinite(eta))
    return eqx.error_if(eta, bad, "`eta` must be finite and not negative.")


def _kept_and_added(sigmas, eta):
    """Return the factor on the state and the standard deviation of added noise."""
    lengths, final = step_lengths(sigmas)
    eta = eta.astype(sigmas.dtype)
    kept = jnp.where(final, 0, jnp.exp(-(1 + eta) * lengths))
    return kept, sigmas[1:] * safe_sqrt(-jnp.expm1(-2 * eta * lengths))
