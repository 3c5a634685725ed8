"""Noise laws: what is added to a clean state, at unit level."""

import math
from typing import Protocol, runtime_checkable

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from skyens.diffusion._broadcast import wide
from skyens.sphere import GaussianRandomField, SphericalHarmonics


@runtime_checkable
class Noise(Protocol):
    """Draw one sample of noise with unit variance; a denoiser belongs to one law."""

    def __call__(
        self, shape: tuple[int, ...], dtype: DTypeLike, *, key: PRNGKeyArray
    ) -> Float[Array, "*state"]:
        """Return noise of `shape` and `dtype`."""
        ...


class White(eqx.Module):
    """Independent standard normal noise in every entry of the state."""

    def __call__(
        self, shape: tuple[int, ...], dtype: DTypeLike = float, *, key: PRNGKeyArray
    ) -> Float[Array, "*state"]:
        """Return noise of `shape` and `dtype`, dimensionless."""
        return jr.normal(key, shape, dtype)


class Spherical(eqx.Module):
    """Isotropic Gaussian noise on a grid of the sphere: no rotation changes its law.

    White noise on a grid is crowded at the poles. This has variance 1 at every point,
    and a band limit: what lies above `sht.lmax` is neither added nor, by a denoiser
    that belongs to it, taken away. Clean states should therefore have the same limit.
    States end in the axes (latitude, longitude) of the grid; those before them, such
    as channels, are independent.

    Source: Price et al. (2025), GenCast, Nature 637, 84-90, supplement; Lang & Schwab
    (2015), Ann. Appl. Probab. 25, 3047-3094.
    """

    field: GaussianRandomField = eqx.field(metadata={"trainable": False})

    def __init__(
        self,
        sht: SphericalHarmonics,
        power: Float[Array | np.ndarray, "l"] | None = None,
    ):
        """Set the transform of the grid, and the spectrum of the noise by degree.

        `power`, in any units, is scaled to the variance 1. Without it the noise is
        white up to `sht.lmax`: every coefficient has the same variance.

        Raises:
            ValueError: `power` does not have one entry per degree.
            EquinoxRuntimeError: `power` is not finite, has a negative entry, or only
                zeros.
        """
        white = 2.0 * np.arange(sht.lmax + 1) + 1
        spectrum = jnp.asarray(white if power is None else power, float)
        total = jnp.sum(spectrum)
        spectrum = eqx.error_if(
            spectrum,
            ~(jnp.all(spectrum >= 0) & (total > 0) & jnp.isfinite(total)),
            "`power` must be finite and not negative, and not 0 at every degree.",
        )
        self.field = GaussianRandomField(sht, spectrum * (4 * math.pi / total))

    def __call__(
        self, shape: tuple[int, ...], dtype: DTypeLike = float, *, key: PRNGKeyArray
    ) -> Float[Array, "*state"]:
        """Return noise of `shape` and `dtype`, dimensionless.

        Raises:
            ValueError: `shape` does not end in that of the grid.
        """
        grid = self.field.sht.grid.shape
        if tuple(shape[-2:]) != grid:
            raise ValueError(f"`shape` must end in the grid's {grid}, got {shape}.")
        # Transforms are made for single and double precision.
        power = self.field.power.astype(wide(dtype))
        field = eqx.tree_at(lambda field: field.power, self.field, power)
        return field.sample(key, tuple(shape[:-2])).astype(dtype)
