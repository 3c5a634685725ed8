"""One-step methods: what they need is the state, and the level it has.

Each follows the probability flow `dx / dsigma = (x - D(x, sigma)) / sigma`, or a
stochastic process of the same laws, in coordinates scaled by `1 / alpha`, in which both
are the same for every schedule.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Euler(eqx.Module):
    """The first-order method, one evaluation per step.

    It is DDIM without noise, and DPM-Solver++ (1S), for every schedule; for rectified
    flow it is the straight step along the velocity.

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


class DDIM(eqx.Module):
    """Denoising diffusion implicit models: first order, with fresh noise at will.

    A step down to the level s' from s adds noise of variance
    `u^2 = eta^2 s'^2 (1 - s'^2 / s^2)`, and goes down as far as `sqrt(s'^2 - u^2)`
    before. `eta = 1` is the ancestral sampler of denoising diffusion models (DDPM),
    `eta = 0` is `Euler`, without any noise.

    Source: Song, Meng & Ermon (2021), ICLR, arXiv:2010.02502, equations 12 and 16.
    """

    eta: Float[Array, ""]

    def __init__(self, eta: float | Float[Array, ""] = 1.0):
        """Set `eta`, dimensionless, from 0 (no noise) to 1 (ancestral).

        Raises:
            EquinoxRuntimeError: `eta` lies outside [0, 1].
        """
        eta = jnp.asarray(eta, float)
        inside = (eta >= 0) & (eta <= 1)
        self.eta = eqx.error_if(eta, ~inside, "`eta` must lie in [0, 1].")

    def plan(self, sigmas: Float[Array, "levels"]) -> Any:
        """Return each step's level, the ratio it goes down by, and its added noise."""
        eta, ratio = self.eta.astype(sigmas.dtype), sigmas[1:] / sigmas[:-1]
        kept = (1 - eta) * (1 + eta) + (eta * ratio) ** 2
        down = ratio * safe_sqrt(kept)
        return sigmas[:-1], down, eta * sigmas[1:] * jnp.sqrt((1 - ratio) * (1 + ratio))

    def init(self, x: Float[Array, "*state"]) -> Any:
        """Remember nothing."""
        return None

    def step(self, denoise, x, memory, now, *, noise, key):
        """Move towards the denoised guess, further than the level, and add noise."""
        sigma, down, added = now
        clean = denoise(x, sigma)
        return add_noise(clean + down * (x - clean), added, noise, key), None


class Heun(eqx.Module):
    """The second-order method of EDM, two evaluations per step, with optional churn.

    Before a step from a level in [churn_min, churn_max] the noise is raised to
    `sigma * (1 + min(churn / steps, sqrt(2) - 1))` by adding fresh noise of standard
    deviation `noise_scale` times what that takes. A step into 0 is one of Euler's.
    `churn = 0` is deterministic; above 1, `noise_scale` makes up for a denoiser that
    removes too much, and biases an exact one. A raised level may lie up to 1.42 times
    above the schedule's. With a network, keep `churn_max` as much below the highest
    level it was trained at: samplers refuse to go beyond a level it names.

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
            EquinoxRuntimeError: a setting is negative or NaN, churn_min > churn_max, or
                one of the others is set and `churn` is 0, which leaves it no effect.
        """
        settings = (churn, churn_min, churn_max, noise_scale)
        settings = tuple(jnp.asarray(value, float) for value in settings)
        good = jnp.all(jnp.stack(settings) >= 0) & (settings[1] <= settings[2])
        checked = eqx.error_if(
            settings[0],
            ~good,
            "`churn`, `churn_min`, `churn_max` and `noise_scale` must not be negative, "
            "and `churn_min` not above `churn_max`.",
        )
        self.churn_min, self.churn_max, self.noise_scale = settings[1:]
        usual = (self.churn_min == 0) & jnp.isinf(self.churn_max)
        self.churn = eqx.error_if(
            checked,
            (checked == 0) & ~(usual & (self.noise_scale == 1)),
            "`churn` is 0, so that `churn_min`, `churn_max` and `noise_scale` would do "
            "nothing: set it, or leave them out.",
        )

    def plan(self, sigmas: Float[Array, "levels"]) -> Any:
        """Return each step's raised level, its added noise, and the next level."""
        cast = lambda setting: setting.astype(sigmas.dtype)
        before, after = sigmas[:-1], sigmas[1:]
        inside = (before >= cast(self.churn_min)) & (before <= cast(self.churn_max))
        growth = jnp.minimum(cast(self.churn) / before.size, 2**0.5 - 1)
        growth = jnp.where(inside, growth, 0)
        added = cast(self.noise_scale) * before * safe_sqrt(growth * (2 + growth))
        return before * (1 + growth), added, after

    def visited(self, sigmas: Float[Array, "levels"]) -> Float[Array, "visited"]:
        """Return the raised levels, and the last one, where it corrects unless at 0."""
        raised, _, after = self.plan(sigmas)
        last = jnp.where(after[-1:] > 0, after[-1:], raised[-1:])
        return jnp.concatenate([raised, last])

    def init(self, x: Float[Array, "*state"]) -> Any:
        """Remember nothing."""
        return None

    def step(self, denoise, x, memory, now, *, noise, key):
        """Raise the noise, step down, and correct with the slope found there."""
        sigma, added, after = now
        x = add_noise(x, added, noise, key)
        clean = denoise(x, sigma)
        slope = (x - clean) / sigma
        reached = clean + (after / sigma) * (x - clean)

        def corrected():
            # At 0 this branch may run under `vmap`, unused; it must stay finite.
            level = jnp.where(after > 0, after, sigma)
            slope_after = (reached - denoise(reached, level)) / level
            return x + (after - sigma) * (slope + slope_after) / 2

        return jax.lax.cond(after > 0, corrected, lambda: reached), None


def safe_sqrt(value: Float[Array, "*values"]) -> Float[Array, "*values"]:
    """Return the square root, 0 with the derivative 0 where `value` is not above 0."""
    # Double where: the square root must never see the 0 it would differentiate.
    active = value > 0
    return jnp.where(active, jnp.sqrt(jnp.where(active, value, 1)), 0)


def add_noise(x, added, noise, key):
    """Return `x` with noise of standard deviation `added`; none is drawn for 0."""
    return jax.lax.cond(added > 0, lambda: x + added * noise(key=key), lambda: x)
