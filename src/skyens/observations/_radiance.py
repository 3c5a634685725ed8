"""Satellites that see a column through weighting functions, as sounders do."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from skyens.observations._checks import check_values
from skyens.observations._places import check_levels
from skyens.sphere._precision import as_float


def weighting_functions(
    levels: Float[Array | np.ndarray, "level"],
    peak: Float[Array | np.ndarray, "channel"],
    sharpness: float | int | Float[Array, ""] = 2.0,
) -> Float[Array, "channel level"]:
    """Return how much each level counts in each channel; rows sum to 1.

    The optical depth of the atmosphere above pressure p is `(p / peak)^sharpness`, as
    of a well mixed gas. So `exp(-depth)` of what a layer emits reaches space, and its
    slope by log pressure, the weighting function, has its maximum at `peak`. A level
    stands for the layer half way to its neighbours in log pressure; the uppermost for
    all above it, the lowest for the ground too. Differentiable in `peak` and
    `sharpness`.

    Args:
        levels: pressures in Pa, in either order.
        peak: pressures in Pa, one for each channel.
        sharpness: exponent, 1 for absorption that does not depend on pressure, 2 for
            lines that pressure broadens.

    Source: the model of Rodgers (2000), Inverse Methods for Atmospheric Sounding,
    section 1.3.

    Raises:
        ValueError: there are fewer than two levels.
        EquinoxRuntimeError: levels are not finite, above 0 and in order, or peaks not
            finite and above 0.
    """
    height = jnp.log(check_levels(levels))
    fine = lambda values: (values > 0) & (values < np.inf)
    peak = check_values("peak", "finite and above 0", peak, fine)
    sharpness = jnp.asarray(sharpness, peak.dtype)
    middle = ((height[1:] + height[:-1]) / 2).astype(peak.dtype)
    depth = jnp.exp(sharpness * (middle[None, :] - jnp.log(peak)[:, None]))
    transmitted = jnp.exp(-depth)  # to space, from between the levels
    downwards = height[-1] > height[0]
    top, ground = jnp.ones_like(peak)[:, None], jnp.zeros_like(peak)[:, None]
    first, last = jnp.where(downwards, top, ground), jnp.where(downwards, ground, top)
    return jnp.abs(jnp.diff(jnp.concatenate([first, transmitted, last], axis=1)))


class BrightnessTemperature(eqx.Module):
    """See columns of temperature as mean temperatures, one for each channel.

    A linear stand-in for a radiance: `sum(weights * temperature)` over levels, with
    `weighting_functions` or others. The weights are parameters.
    """

    weights: Float[Array, "channel level"]

    def __init__(self, weights: Float[Array | np.ndarray, "channel level"]):
        """Set weights in any scale: each channel's are divided by their sum.

        Raises:
            EquinoxRuntimeError: a weight is negative or not finite, or all weights of a
                channel are 0.
        """
        fine = lambda w: (w >= 0) & (w < np.inf) & (w.sum(-1, keepdims=True) > 0)
        wish = "finite, not negative, and not 0 in all of a channel"
        weights = check_values("weights", wish, weights, fine)
        self.weights = weights / jnp.sum(weights, axis=-1, keepdims=True)

    def __call__(
        self, temperature: Float[Array, "level *columns"]
    ) -> Float[Array, "channel *columns"]:
        """Return the brightness temperatures, in K and the dtype of the column.

        Raises:
            ValueError: `temperature` has other levels than the weights.
        """
        count = self.weights.shape[1]
        if temperature.shape[:1] != (count,):
            raise ValueError(
                f"`temperature` must have {count} levels on its first axis, as the "
                f"weights, got the shape {temperature.shape}."
            )
        temperature = as_float(temperature)
        weights = self.weights.astype(temperature.dtype)
        return jnp.tensordot(weights, temperature, 1, precision="highest")
