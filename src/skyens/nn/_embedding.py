"""How a network is told numbers: the noise level, and a vector beside it."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key

from skyens.nn._pointwise import Pointwise
from skyens.nn._precision import at_least_single

Scalar = float | Float[Array, ""]


class FourierEmbedding(eqx.Module):
    """Waves of one number: near numbers look alike, far ones do not.

    `(cos(f_i v), sin(f_i v))` for frequencies `f_i` in geometric steps. The defaults
    suit numbers of order one, such as `log(sigma) / 4` over the noise levels of a
    diffusion.

    Source: Tancik et al. (2020), NeurIPS 33, 7537-7547.
    """

    frequencies: Float[Array, " wave"] = eqx.field(metadata={"trainable": False})

    def __init__(self, size: int, lowest: float = 0.5, highest: float = 32.0):
        """Take the `size` of the result and the frequencies, in radians per unit.

        Raises:
            ValueError: `size` is not even and positive, or the frequencies are not
                positive and rising.
        """
        if size < 2 or size % 2:
            raise ValueError(f"`size` must be even and at least 2, got {size}.")
        if not 0 < lowest <= highest:
            raise ValueError(
                f"frequencies must satisfy 0 < lowest <= highest, got {lowest} and "
                f"{highest}."
            )
        self.frequencies = jnp.asarray(np.geomspace(lowest, highest, size // 2))

    def __call__(self, value: Float[Array, ""]) -> Float[Array, " size"]:
        """Return the waves at `value`, in its dtype."""
        phase = self.frequencies.astype(value.dtype) * value
        return math.sqrt(2) * jnp.concatenate([jnp.cos(phase), jnp.sin(phase)])


class Context(eqx.Module):
    """Noise level and vector as channels that are the same at every point.

    They go where `ConditionalLayerNorm` takes its noise.
    """

    waves: FourierEmbedding | None
    level: Pointwise | None
    vector: Pointwise | None
    mix: Pointwise | None
    size: int = eqx.field(static=True)

    def __init__(
        self, size: int, *, noise_level: bool, vector_size: int, key: Key[Array, ""]
    ):
        """Draw the weights for a result of `size` channels.

        With neither `noise_level` nor vector it has no channel, whatever the `size`.
        """
        level_key, vector_key, mix_key = jr.split(key, 3)
        self.waves = self.level = self.vector = self.mix = None
        self.size = size if noise_level or vector_size else 0
        if noise_level:
            self.waves = FourierEmbedding(32)
            self.level = Pointwise(32, size, key=level_key)
        if vector_size:
            self.vector = Pointwise(vector_size, size, key=vector_key)
        if self.size:
            self.mix = Pointwise(size, size, key=mix_key)

    def __call__(
        self, level: Scalar | None, vector: Float[Array, " entry"]
    ) -> Float[Array, "size 1 1"]:
        """Return the channels, in the dtype of `vector`.

        Raises:
            ValueError: `level` is missing, or given to a network without noise level.
        """
        if (level is None) != (self.level is None):
            wish = "needs" if self.level is not None else "takes no"
            raise ValueError(
                f"this network {wish} `level`: it was made with "
                f"`noise_level={self.level is not None}`."
            )
        total = jnp.zeros((self.size, 1, 1), vector.dtype)
        if self.waves is not None and self.level is not None and level is not None:
            # The phase in single precision at least: half has three digits.
            wide = jnp.asarray(level, at_least_single(vector.dtype))
            waves = self.waves(wide).astype(vector.dtype)
            total = total + self.level(waves[:, None, None])
        if self.vector is not None:
            total = total + self.vector(vector[:, None, None])
        if self.mix is None:
            return total
        return jax.nn.silu(self.mix(jax.nn.silu(total)))
