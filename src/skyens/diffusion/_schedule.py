"""Noise schedules: how much signal and how much noise there is at each time."""

from typing import Protocol, runtime_checkable

import equinox as eqx
import jax
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


def level(schedule: Schedule, time: Float[Array, "*time"]) -> Float[Array, "*time"]:
    """Return `sigma / alpha`, the noise level a denoiser is told at `time`."""
    return schedule.sigma(time) / schedule.alpha(time)


def drift(schedule: Schedule, time: Float[Array, "*time"]) -> Float[Array, "*time"]:
    """Return f of the process `dx = f x dt + g dW`, per unit of time.

    `f = d log(alpha) / dt`, by forward differentiation of the schedule.

    Source: Kingma et al. (2021), NeurIPS 34, arXiv:2107.00630, appendix.
    """
    alpha, slope = _with_slope(schedule.alpha, time)
    return slope / alpha


def dispersion(
    schedule: Schedule, time: Float[Array, "*time"]
) -> Float[Array, "*time"]:
    """Return g of the process `dx = f x dt + g dW`, in units per root of time.

    `g^2 = alpha^2 d(sigma^2 / alpha^2) / dt`, by forward differentiation.

    Source: Kingma et al. (2021), NeurIPS 34, arXiv:2107.00630, appendix.
    """
    # At time 0 the derivative of sigma is often infinite where that of its square is
    # not; a time this small has the same limit.
    time = jnp.maximum(time, jnp.finfo(time.dtype).eps ** 2)
    ratio, slope = _with_slope(lambda time: level(schedule, time), time)
    return schedule.alpha(time) * jnp.sqrt(2 * ratio * slope)


def decreasing_levels(
    schedule: Schedule,
    first: Float[Array, ""],
    last: Float[Array, ""],
    steps: int,
) -> Float[Array, "levels"]:
    """Return the levels at `steps` equidistant times from `first` to `last`, then 0.

    With one step they are the level at `first`, and 0.

    Raises:
        ValueError: `steps` is below 1.
    """
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1, got {steps}.")
    time = jnp.linspace(first, last, steps, dtype=first.dtype)
    return jnp.append(level(schedule, time), jnp.zeros((), time.dtype))


def ordered(
    low: float | Float[Array, ""], high: float | Float[Array, ""], message: str
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return both as arrays, or fail with `message` unless 0 < low < high < inf."""
    low, high = jnp.asarray(low, float), jnp.asarray(high, float)
    # Written so that NaN fails too.
    good = (low > 0) & (high > low) & jnp.isfinite(high)
    return eqx.error_if(low, ~good, message), high


def _with_slope(function, time):
    return jax.jvp(function, (time,), (jnp.ones_like(time),))


_ENDS = "Noise levels need 0 < `sigma_min` < `sigma_max` < inf."


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
        self.sigma_min, self.sigma_max = ordered(sigma_min, sigma_max, _ENDS)
        rho = jnp.asarray(rho, float)
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

    def time_of(self, level: Float[Array, "*time"]) -> Float[Array, "*time"]:
        """Return the time at which the noise level is `level`."""
        smin, smax, rho = (
            jnp.asarray(value, level.dtype)
            for value in (self.sigma_min, self.sigma_max, self.rho)
        )
        # expm1 keeps levels near `sigma_min` apart.
        grown = lambda sigma: jnp.expm1(jnp.log(sigma / smin) / rho)
        return grown(level) / grown(smax)

    def sigmas(self, steps: int) -> Float[Array, "levels"]:
        """Return `steps + 1` levels, from `sigma_max` down to `sigma_min`, then 0.

        With one step the levels are `sigma_max` and 0.

        Raises:
            ValueError: `steps` is below 1.
        """
        one = jnp.ones_like(self.sigma_max)
        return decreasing_levels(self, one, jnp.zeros_like(one), steps)


class VarianceExploding(eqx.Module):
    """Noise grows geometrically, signal stays: levels are equidistant in their log.

    `alpha = 1` and `sigma(t) = sigma_min (sigma_max / sigma_min)^t`.

    Source: Song et al. (2021), ICLR, arXiv:2011.13456, appendix C.
    """

    sigma_min: Float[Array, ""]
    sigma_max: Float[Array, ""]

    def __init__(
        self,
        sigma_min: float | Float[Array, ""] = 0.01,
        sigma_max: float | Float[Array, ""] = 80.0,
    ):
        """Set the levels, in the state's units.

        Raises:
            EquinoxRuntimeError: not 0 < sigma_min < sigma_max < inf.
        """
        self.sigma_min, self.sigma_max = ordered(sigma_min, sigma_max, _ENDS)

    def alpha(self, time: Float[Array, "*time"]) -> Float[Array, "*time"]:
        """Return 1 at every time."""
        return jnp.ones_like(time)

    def sigma(self, time: Float[Array, "*time"]) -> Float[Array, "*time"]:
        """Return the noise level at `time`, in [0, 1]."""
        low, high = self.sigma_min.astype(time.dtype), self.sigma_max.astype(time.dtype)
        return low * (high / low) ** time

    def time_of(self, level: Float[Array, "*time"]) -> Float[Array, "*time"]:
        """Return the time at which the noise level is `level`."""
        low = self.sigma_min.astype(level.dtype)
        return jnp.log(level / low) / jnp.log(self.sigma_max.astype(level.dtype) / low)

    def sigmas(self, steps: int) -> Float[Array, "levels"]:
        """Return `steps + 1` levels, from `sigma_max` down to `sigma_min`, then 0.

        With one step the levels are `sigma_max` and 0.

        Raises:
            ValueError: `steps` is below 1.
        """
        one = jnp.ones_like(self.sigma_max)
        return decreasing_levels(self, one, jnp.zeros_like(one), steps)
