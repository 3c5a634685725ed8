"""Layers that act on the channels of each grid point alone."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key

from skyens.nn._precision import at_least_single


class Pointwise(eqx.Module):
    """A linear map of channels, the same at every point."""

    weight: Float[Array, "out in"]
    bias: Float[Array, " out"]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        gain: float = 1.0,
        key: Key[Array, ""],
    ):
        """Draw weights that multiply variance by `gain`; the bias starts at 0."""
        scale = math.sqrt(gain / in_channels)
        self.weight = scale * jr.normal(key, (out_channels, in_channels))
        self.bias = jnp.zeros(out_channels)

    def __call__(
        self, x: Float[Array, "in latitude longitude"]
    ) -> Float[Array, "out latitude longitude"]:
        """Return the mapped channels."""
        y = jnp.einsum("oi,ijk->ojk", self.weight.astype(x.dtype), x)
        return y + self.bias.astype(x.dtype)[:, None, None]


class GatedMLP(eqx.Module):
    """Two pointwise maps around a gated linear unit.

    The gate multiplies channels with channels, as advection multiplies wind with
    gradients.

    Source: Dauphin et al. (2017), ICML, PMLR 70, 933-941.
    """

    into: Pointwise
    out: Pointwise

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        out_channels: int,
        *,
        gain: float = 1.0,
        key: Key[Array, ""],
    ):
        """Draw the weights; the output's variance is about `gain` times the input's."""
        into_key, out_key = jr.split(key)
        self.into = Pointwise(in_channels, 2 * hidden, key=into_key)
        # Gating leaves about 0.3 of the variance.
        self.out = Pointwise(hidden, out_channels, gain=gain / 0.3, key=out_key)

    def __call__(
        self, x: Float[Array, "in latitude longitude"]
    ) -> Float[Array, "out latitude longitude"]:
        """Return the mapped channels."""
        value, gate = jnp.split(self.into(x), 2)
        return self.out(value * jax.nn.sigmoid(gate))


class ConditionalLayerNorm(eqx.Module):
    """Normalise the channels of each point, then scale and shift them by the noise.

    It starts as a plain layer norm: the noise's weights are 0.

    Source: Chen et al. (2021), ICLR, arXiv:2103.00993; for ensembles Lang et al.
    (2024), AIFS-CRPS, arXiv:2412.15832.
    """

    scale: Float[Array, " channel"]
    shift: Float[Array, " channel"]
    noise_scale: Float[Array, "channel noise"]
    noise_shift: Float[Array, "channel noise"]

    def __init__(self, channels: int, noise_channels: int):
        """Set the number of channels and of noise channels (0: a plain layer norm)."""
        self.scale, self.shift = jnp.ones(channels), jnp.zeros(channels)
        self.noise_scale = jnp.zeros((channels, noise_channels))
        self.noise_shift = jnp.zeros((channels, noise_channels))

    def __call__(
        self,
        x: Float[Array, "channel latitude longitude"],
        noise: Float[Array, "noise #latitude #longitude"],
    ) -> Float[Array, "channel latitude longitude"]:
        """Return the conditioned channels, in the dtype of `x`.

        Noise with one latitude and longitude is the same at every point.
        """
        # Means and variances of half-precision channels are taken in float32.
        wide = x.astype(at_least_single(x.dtype))
        centred = wide - wide.mean(0, keepdims=True)
        variance = (centred**2).mean(0, keepdims=True)
        normal = (centred * jax.lax.rsqrt(variance + 1e-5)).astype(x.dtype)
        noise = noise.astype(x.dtype)
        scale = self._condition(self.scale, self.noise_scale, noise)
        shift = self._condition(self.shift, self.noise_shift, noise)
        return normal * scale + shift

    def _condition(self, constant, weight, noise):
        varying = jnp.einsum("cn,njk->cjk", weight.astype(noise.dtype), noise)
        return constant.astype(noise.dtype)[:, None, None] + varying
