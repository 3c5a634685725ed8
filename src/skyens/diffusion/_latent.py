"""Latent diffusion: states of order one that an autoencoder makes of fields.

A prior lives in the latents. Observations of fields come to it by
`observation.pullback(space.decode)`, so every posterior method works there as it is.
"""

from typing import Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from skyens.diffusion._broadcast import aligned


@runtime_checkable
class Coder(Protocol):
    """The contract of an autoencoder: one field to one latent, and back."""

    def encode(self, field: Float[Array, "*field"]) -> Float[Array, "*latent"]:
        """Return the latent of a field."""
        ...

    def decode(self, latent: Float[Array, "*latent"]) -> Float[Array, "*field"]:
        """Return the field of a latent."""
        ...


class LatentSpace(eqx.Module):
    """Latents of an autoencoder, centred and scaled to order one, channel by channel.

    Noise levels, preconditioning and samplers suppose states of zero mean and unit
    variance; what an autoencoder gives has neither. Nothing in here is trained: fit
    the autoencoder first, then the space to what it encodes, then a denoiser.

    What the decoder cannot show is no error of an observation, but it is one of
    `observation.pullback(space.decode)`: its error must hold both.
    """

    coder: Coder = eqx.field(metadata={"trainable": False})
    mean: Float[Array, "*tables"] = eqx.field(metadata={"trainable": False})
    std: Float[Array, "*tables"] = eqx.field(metadata={"trainable": False})

    def __init__(
        self, coder: Coder, mean: Float[Array, "*tables"], std: Float[Array, "*same"]
    ):
        """Set the autoencoder, and mean and standard deviation of what it encodes.

        Both tables have as many axes as a latent, and broadcast to it.

        Raises:
            ValueError: the tables differ in shape.
            EquinoxRuntimeError: a mean is not finite, or a `std` not positive and
                finite.
        """
        if mean.shape != std.shape:
            raise ValueError(
                f"`std` must have the shape of `mean`, {mean.shape}, got {std.shape}."
            )
        self.coder = coder
        self.mean = eqx.error_if(mean, ~jnp.isfinite(mean), "`mean` must be finite.")
        self.std = eqx.error_if(
            std,
            ~((std > 0) & jnp.isfinite(std)),
            "`std` must be positive and finite: a latent channel that never changes "
            "carries nothing.",
        )

    @classmethod
    def fit(cls, coder: Coder, fields: Float[Array, "sample *field"]) -> "LatentSpace":
        """Return the space whose latents of these `fields` have mean 0 and variance 1.

        Moments are taken over samples and all axes of a latent but its first, the
        channels. Fields are encoded one after the other.

        Raises:
            ValueError: there are fewer than two fields.
            EquinoxRuntimeError: a latent is not finite, or a channel of them never
                changes.
        """
        if (size := fields.shape[0]) < 2:
            raise ValueError(f"`fields` must hold at least 2 samples, got {size}.")
        latents = jax.lax.map(coder.encode, fields)
        if latents.ndim < 2:
            raise ValueError("`coder` must encode to arrays, it encodes to a number.")
        axes = (0, *range(2, latents.ndim))
        mean = jnp.mean(latents, axis=axes, keepdims=True)
        std = jnp.std(latents, axis=axes, keepdims=True)
        return cls(coder, mean[0], std[0])

    def encode(self, field: Float[Array, "*field"]) -> Float[Array, "*latent"]:
        """Return the latent of one field, of order one, in the coder's dtype."""
        latent = self.coder.encode(field)
        mean, std = self._tables(latent)
        return (latent - mean) / std

    def decode(self, latent: Float[Array, "*latent"]) -> Float[Array, "*field"]:
        """Return the field of one latent, in the units of what was encoded."""
        mean, std = self._tables(latent)
        return self.coder.decode(latent * std + mean)

    def _tables(self, latent):
        shape, dtype = latent.shape, latent.dtype
        return (
            aligned("mean", self.mean, shape, dtype),
            aligned("std", self.std, shape, dtype),
        )
