"""Schedules whose signal fades as the noise grows: from the state to pure noise."""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from skyens.diffusion._schedule import decreasing_levels, ordered

_TIMES = "Times need 0 < `time_min` < `time_max` <= 1."
_OPEN = "Times need 0 < `time_min` < `time_max` < 1, where the signal is not yet gone."


class VariancePreserving(eqx.Module):
    """The schedule of denoising diffusion models: `alpha^2 + sigma^2 = 1`.

    `alpha(t)^2 = exp(-b(t))`, where `b(t) = beta_min t + (beta_max - beta_min) t^2 / 2`
    is the integral of a rate that grows linearly. The levels of a sampler are those at
    equidistant times.

    The default rates are, in the limit of many steps, those of models with 1,000 steps
    and rates from 1e-4 to 0.02 (Ho et al. 2020): their step i is the time (i + 1) /
    1,000.

    Source: Song et al. (2021), ICLR, arXiv:2011.13456, equation 33.
    """

    beta_min: Float[Array, ""]
    beta_max: Float[Array, ""]
    time_min: Float[Array, ""]
    time_max: Float[Array, ""]

    def __init__(
        self,
        beta_min: float | Float[Array, ""] = 0.1,
        beta_max: float | Float[Array, ""] = 20.0,
        time_min: float | Float[Array, ""] = 1e-3,
        time_max: float | Float[Array, ""] = 1.0,
    ):
        """Set the rates, per unit of time, and the times samplers begin and end at.

        Raises:
            EquinoxRuntimeError: not 0 < beta_min < beta_max < inf, or not
                0 < time_min < time_max <= 1.
        """
        rates = "Rates need 0 < `beta_min` < `beta_max` < inf."
        self.beta_min, self.beta_max = ordered(beta_min, beta_max, rates)
        self.time_min, last = ordered(time_min, time_max, _TIMES)
        self.time_max = eqx.error_if(last, last > 1, _TIMES)

    def alpha(self, time: Float[Array, "*time"]) -> Float[Array, "*time"]:
        """Return the factor on the clean state, from 1 at time 0 to nearly 0 at 1."""
        return jnp.exp(-self._integral(time) / 2)

    def sigma(self, time: Float[Array, "*time"]) -> Float[Array, "*time"]:
        """Return the standard deviation of the noise, from 0 at time 0 to nearly 1."""
        return jnp.sqrt(-jnp.expm1(-self._integral(time)))

    def time_of(self, level: Float[Array, "*time"]) -> Float[Array, "*time"]:
        """Return the time at which `sigma / alpha` is `level`."""
        low, slope = self._rates(level)
        integral = jnp.log1p(level * level)
        # The root of a quadratic, in the form that does not cancel near time 0.
        return 2 * integral / (low + jnp.sqrt(low * low + 2 * slope * integral))

    def sigmas(self, steps: int) -> Float[Array, "levels"]:
        """Return `steps + 1` levels at equidistant times, the last of them 0.

        Raises:
            ValueError: `steps` is below 1.
        """
        return decreasing_levels(self, self.time_max, self.time_min, steps)

    def _rates(self, like):
        low = self.beta_min.astype(like.dtype)
        return low, self.beta_max.astype(like.dtype) - low

    def _integral(self, time):
        low, slope = self._rates(time)
        return time * (low + slope * time / 2)


class CosineVariancePreserving(eqx.Module):
    """The cosine schedule: `alpha^2 + sigma^2 = 1`, gentle at both ends.

    `alpha(t) = cos(a(t)) / cos(a(0))` with the angle `a(t) = (t + offset) / (1 +
    offset) pi / 2`. At time 1 no signal is left and the level is infinite; samplers
    begin a little before.

    Source: Nichol & Dhariwal (2021), ICML, arXiv:2102.09672, equation 17.
    """

    offset: Float[Array, ""]
    time_min: Float[Array, ""]
    time_max: Float[Array, ""]

    def __init__(
        self,
        offset: float | Float[Array, ""] = 0.008,
        time_min: float | Float[Array, ""] = 1e-3,
        time_max: float | Float[Array, ""] = 0.99,
    ):
        """Set the `offset`, dimensionless, and the times samplers begin and end at.

        Raises:
            EquinoxRuntimeError: `offset` is not positive and finite, or not
                0 < time_min < time_max < 1.
        """
        offset = jnp.asarray(offset, float)
        bad = ~((offset > 0) & jnp.isfinite(offset))
        self.offset = eqx.error_if(offset, bad, "`offset` must be positive and finite.")
        self.time_min, last = ordered(time_min, time_max, _OPEN)
        self.time_max = eqx.error_if(last, last >= 1, _OPEN)

    def alpha(self, time: Float[Array, "*time"]) -> Float[Array, "*time"]:
        """Return the factor on the clean state, from 1 at time 0 to 0 at time 1."""
        start, turned = self._angles(time)
        return jnp.cos(start + turned) / jnp.cos(start)

    def sigma(self, time: Float[Array, "*time"]) -> Float[Array, "*time"]:
        """Return the standard deviation of the noise, from 0 at time 0 to 1."""
        start, turned = self._angles(time)
        # 1 - cos(a)^2 / cos(a0)^2, as a product in which nothing cancels
        return jnp.sqrt(jnp.sin(turned) * jnp.sin(2 * start + turned)) / jnp.cos(start)

    def time_of(self, level: Float[Array, "*time"]) -> Float[Array, "*time"]:
        """Return the time at which `sigma / alpha` is `level`."""
        start, _ = self._angles(level)
        cos, sin = jnp.cos(start), jnp.sin(start)
        # The angle a has the tangent root / cos(a0); we need a - a0, uncancelled.
        root = jnp.sqrt(sin * sin + level * level)
        across = cos * level * level / (root + sin)
        turned = jnp.arctan2(across, cos * cos + root * sin)
        return turned * (1 + self.offset.astype(level.dtype)) * (2 / math.pi)

    def sigmas(self, steps: int) -> Float[Array, "levels"]:
        """Return `steps + 1` levels at equidistant times, the last of them 0.

        Raises:
            ValueError: `steps` is below 1.
        """
        return decreasing_levels(self, self.time_max, self.time_min, steps)

    def _angles(self, time):
        """Return the angle at time 0, and how far it has turned since."""
        offset = self.offset.astype(time.dtype)
        quarter = (math.pi / 2) / (1 + offset)
        return offset * quarter, time * quarter


class RectifiedFlow(eqx.Module):
    """Straight lines from the state to the noise: `alpha = 1 - t`, `sigma = t`.

    Also called flow matching with optimal transport, or stochastic interpolants. At
    time 1 the level is infinite; samplers begin a little before.

    Source: Liu, Gong & Liu (2023), ICLR, arXiv:2209.03003; Lipman et al. (2023),
    ICLR, arXiv:2210.02747.
    """

    time_min: Float[Array, ""]
    time_max: Float[Array, ""]

    def __init__(
        self,
        time_min: float | Float[Array, ""] = 1e-3,
        time_max: float | Float[Array, ""] = 0.999,
    ):
        """Set the times samplers begin and end at.

        Raises:
            EquinoxRuntimeError: not 0 < time_min < time_max < 1.
        """
        self.time_min, last = ordered(time_min, time_max, _OPEN)
        self.time_max = eqx.error_if(last, last >= 1, _OPEN)

    def alpha(self, time: Float[Array, "*time"]) -> Float[Array, "*time"]:
        """Return the factor on the clean state, from 1 at time 0 to 0 at time 1."""
        return 1 - time

    def sigma(self, time: Float[Array, "*time"]) -> Float[Array, "*time"]:
        """Return the standard deviation of the noise, from 0 at time 0 to 1."""
        return time

    def time_of(self, level: Float[Array, "*time"]) -> Float[Array, "*time"]:
        """Return the time at which `sigma / alpha` is `level`."""
        return level / (1 + level)

    def sigmas(self, steps: int) -> Float[Array, "levels"]:
        """Return `steps + 1` levels at equidistant times, the last of them 0.

        Raises:
            ValueError: `steps` is below 1.
        """
        return decreasing_levels(self, self.time_max, self.time_min, steps)
