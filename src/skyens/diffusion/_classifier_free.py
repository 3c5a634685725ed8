"""Classifier-free guidance: lean on a condition more, or less, than the prior does."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from skyens.diffusion._denoisers import Denoiser, Scalar


class ClassifierFree(eqx.Module):
    """A conditional denoiser, extrapolated from what it says without the condition.

        D(x, nothing) + strength * (D(x, condition) - D(x, nothing))

    0 forgets the condition, 1 is the denoiser as it is; above 1 samples look more
    typical of their condition and less diverse, and are no longer those of any
    conditional law. Two evaluations of a denoiser that was trained with the condition
    left out at times. Levels outside of [low, high] count as of strength 1: guidance
    does harm where the noise is high.

    Sources: Ho & Salimans (2022), arXiv:2207.12598, equation 6, with `strength` for
    1 + w; Kynkaanniemi et al. (2024), NeurIPS 37, arXiv:2404.07724, for the interval.
    """

    denoiser: Denoiser
    strength: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    unconditional: Any

    def __init__(
        self,
        denoiser: Denoiser,
        strength: float | Float[Array, ""] = 1.0,
        *,
        unconditional: Any = None,
        low: float | Float[Array, ""] = 0.0,
        high: float | Float[Array, ""] = jnp.inf,
    ):
        """Set the `strength`, dimensionless, and the levels it acts between.

        Args:
            denoiser: takes a condition, and does without.
            strength: of the guidance, at least 0.
            unconditional: what the denoiser takes for no condition.
            low: the lowest level guided, in the state's units.
            high: the highest level guided.

        Raises:
            EquinoxRuntimeError: a number is negative or NaN, or `low` above `high`.
        """
        strength, low, high = (jnp.asarray(n, float) for n in (strength, low, high))
        good = (strength >= 0) & (low >= 0) & (low <= high)
        self.denoiser = denoiser
        self.strength = eqx.error_if(
            strength,
            ~good,
            "`strength` and `low` must not be negative, and `low` not above `high`.",
        )
        self.low, self.high, self.unconditional = low, high, unconditional

    def __call__(
        self, x: Float[Array, "*state"], sigma: Scalar, *, condition: Any = None
    ) -> Float[Array, "*state"]:
        """Return the guided clean state, in shape, units and dtype of `x`.

        Raises:
            ValueError: there is no `condition`.
        """
        if condition is None:
            raise ValueError("`condition` is what guides: give one.")
        free = self.denoiser(x, sigma, condition=self.unconditional)
        given = self.denoiser(x, sigma, condition=condition)
        low, high = self.low.astype(x.dtype), self.high.astype(x.dtype)
        sigma = jnp.asarray(sigma, x.dtype)
        inside = (sigma >= low) & (sigma <= high)
        strength = jnp.where(inside, self.strength.astype(x.dtype), 1)
        return free + strength * (given - free)
