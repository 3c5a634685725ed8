"""Laws of the noise level in training: which levels a network sees, and how often.

A law is its quantile function, so that the levels of a batch can be spread evenly over
it: `law(uniform)`, increasing, for numbers in (0, 1).
"""

from typing import Protocol, runtime_checkable

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.special import ndtri
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from skyens.diffusion._denoisers import Denoiser, Scalar
from skyens.diffusion._schedule import Schedule, level


@runtime_checkable
class Levels(Protocol):
    """The quantile function of a law of noise levels."""

    def __call__(self, uniform: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Return the level below which a share `uniform` lies, in the state's units."""
        ...


class LogNormalLevels(eqx.Module):
    """Levels whose logarithm is normal: most where denoising is neither easy nor vain.

    The default is that of EDM, for clean states of a standard deviation from 0.5 to 1;
    in other units the mean moves by the logarithm of theirs. Fields smooth
    against the noise need higher levels: a wave of variance v, in noise of variance n
    in that wave, is decided at the level `sqrt(v / n)`, far above 1 for the largest.

    Source: Karras et al. (2022), arXiv:2206.00364, table 1.
    """

    mean: Float[Array, ""]
    std: Float[Array, ""]

    def __init__(self, mean: Scalar = -1.2, std: Scalar = 1.2):
        """Set mean and standard deviation of `log(sigma)`.

        Raises:
            EquinoxRuntimeError: the mean is not finite, or `std` not positive and
                finite.
        """
        mean, std = jnp.asarray(mean, float), jnp.asarray(std, float)
        fine = jnp.isfinite(mean) & (std > 0) & jnp.isfinite(std)
        self.mean = eqx.error_if(
            mean, ~fine, "`mean` must be finite, and `std` positive and finite."
        )
        self.std = std

    def __call__(self, uniform: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Return the quantiles, in the dtype of `uniform`."""
        mean, std = self.mean.astype(uniform.dtype), self.std.astype(uniform.dtype)
        return jnp.exp(mean + std * ndtri(uniform))


class LogUniformLevels(eqx.Module):
    """Levels whose logarithm is uniform between two ends."""

    sigma_min: Float[Array, ""]
    sigma_max: Float[Array, ""]

    def __init__(self, sigma_min: Scalar = 0.002, sigma_max: Scalar = 80.0):
        """Set the ends, in the state's units.

        Raises:
            EquinoxRuntimeError: not 0 < sigma_min < sigma_max < inf.
        """
        low, high = jnp.asarray(sigma_min, float), jnp.asarray(sigma_max, float)
        self.sigma_min = eqx.error_if(
            low,
            ~((low > 0) & (high > low) & jnp.isfinite(high)),
            "Noise levels need 0 < `sigma_min` < `sigma_max` < inf.",
        )
        self.sigma_max = high

    def __call__(self, uniform: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Return the quantiles, in the dtype of `uniform`."""
        low, high = self.sigma_min, self.sigma_max
        low, high = low.astype(uniform.dtype), high.astype(uniform.dtype)
        return low * (high / low) ** uniform


class ScheduleLevels(eqx.Module):
    """Levels of a schedule at a time drawn evenly: as often as a sampler visits them.

    With `EDM(0.02, 88.0)` it is the law that GenCast trains with.

    Source: Price et al. (2025), Nature 637, 84-90, methods.
    """

    schedule: Schedule

    def __call__(self, uniform: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Return `sigma / alpha` at the time `uniform`, in its dtype."""
        return level(self.schedule, uniform)


def spread_uniform(
    size: int, dtype: DTypeLike, *, key: PRNGKeyArray
) -> Float[Array, "size"]:
    """Return one uniform number in each of `size` equal parts of (0, 1), increasing.

    Means over a batch vary far less with these than with independent ones. Neither 0
    nor 1 occurs, where quantiles may be infinite.
    """
    start = jnp.arange(size, dtype=dtype)
    uniform = (start + jr.uniform(key, (size,), dtype)) / size
    edge = float(jnp.finfo(dtype).eps)
    return jnp.clip(uniform, edge, 1 - edge)


def draw_levels(
    levels: Levels,
    denoiser: Denoiser,
    size: int,
    dtype: DTypeLike,
    *,
    key: PRNGKeyArray,
) -> Float[Array, "size"]:
    """Return `size` levels spread over the law, within the range of the denoiser.

    A denoiser may name the levels it is trained for, as `sigma_min` and `sigma_max`; a
    level beyond them counts as the nearer end.
    """
    sigma = levels(spread_uniform(size, dtype, key=key))
    low, high = (getattr(denoiser, name, None) for name in ("sigma_min", "sigma_max"))
    if low is not None:
        sigma = jnp.maximum(sigma, jnp.asarray(low, sigma.dtype))
    if high is not None:
        sigma = jnp.minimum(sigma, jnp.asarray(high, sigma.dtype))
    return sigma
