"""Noise schedules: how much signal and how much noise there is at each time."""

from typing import Protocol, runtime_checkable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


@runtime_checkable
class Schedule(Protocol):
    """The law `x(t) = alpha(t) * clean + sigma(t) * noise`, t from 0 (clean) to 1.

    A denoiser sees `x / alpha` at noise level `sigma / alpha`. In those coordinates
    the probability flow is the same for every schedule; schedules differ in the
    levels they visit, and these are what a sampler asks for.
    """

    def alpha(self, time: Float[Array, "*time"]) -> Float[Array, "*time"]:
        """Return the factor on the clean state, dimensionless."""
        ...

    def sigma(self, time: Float[Array, "*time"]) -> Float[Array, "*time"]:
        """Return the standard deviation of the noise, in the state's units."""
        ...

    def sigmas(self, steps: int) -> Float[Array, "levels"]:
        """Return the `steps + 1` levels `sigma / alpha` of `steps` steps."""
        ...


class EDM(eqx.Module):
    """The schedule of "elucidated" diffusion models: noise grows, signal stays.

    `alpha = 1` and `sigma(t)^(1/rho)` is linear in t, from `sigma_min` at t = 0 to
    `sigma_max` at t = 1. `sigma_max` must be large against the spread of the clean
    states and against their mean, because samples start from pure noise; `sigma_min`
    small against the finest scale of interest.

    Source: Karras et al. (2022), NeurIPS 35, arXiv:2206.00364, equation 5.
    """

    sigma_min: Float[Array, ""]
    sigma_max: Float[Array, ""]
    rho: Float[Array, ""]

    def __init__(
        self,
        sigma_min: float | Float[Array, ""] = 0.002,
        sigma_max: float | Float[Array, ""] = 80.0,
        rho: float | Float[Array, ""] = 7.0,
    ):
        """Set the levels, in the state's units, and `rho`, dimensionless.

        Raises:
            EquinoxRuntimeError: not 0 < sigma_min < sigma_max, or `rho` not positive.
        """
        low, high, rho = (
            jnp.asarray(value, float) for value in (sigma_min, sigma_max, rho)
        )
        # Written so that NaN fails too.
        ordered = (low > 0) & (high > low) & jnp.isfinite(high)
        self.sigma_min = eqx.error_if(
            low, ~ordered, "Noise levels need 0 < `sigma_min` < `sigma_max` < inf."
        )
        self.sigma_max = high
        self.rho = eqx.error_if(
            rho, ~((rho > 0) & jnp.isfinite(rho)), "`rho` must be positive and finite."
        )

    def alpha(self, time: Float[Array, "*time"]) -> Float[Array, "*time"]:
        """Return 1 at every time."""
        return jnp.ones_like(time)

    def sigma(self, time: Float[Array, "*time"]) -> Float[Array, "*time"]:
        """Return the noise level at `time`, in [0, 1]."""
        smin, smax, rho = (
            jnp.asarray(value, time.dtype)
            for value in (self.sigma_min, self.sigma_max, self.rho)
        )
        # A logarithmic mean of the ends: exact where a power of 1 / rho would round.
        root = time * (smax / smin) ** (1 / rho) + (1 - time)
        return smin * root**rho

    def sigmas(self, steps: int) -> Float[Array, "levels"]:
        """Return `steps + 1` levels, from `sigma_max` down to `sigma_min`, then 0.

        With one step the levels are `sigma_max` and 0.

        Raises:
            ValueError: `steps` is below 1.
        """
        if steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {steps}.")
        time = jnp.linspace(1, 0, steps, dtype=self.sigma_max.dtype)
        return jnp.append(self.sigma(time), jnp.zeros((), time.dtype))
