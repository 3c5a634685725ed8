"""Convolution over the eight neighbours of each point."""

import math

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key

from skyens.nn._correlation import correlate
from skyens.nn._domain import Domain, pad


class Convolution(eqx.Module):
    """Mix the channels of each point and its eight neighbours.

    The domain says what lies beyond the edges: on the sphere the filter reaches over
    the poles and around the globe.
    """

    weight: Float[Array, "out in row column"]
    bias: Float[Array, " out"]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        gain: float = 1.0,
        key: Key[Array, ""],
    ):
        """Draw weights that multiply the variance of white fields by `gain`."""
        scale = math.sqrt(gain / (9 * in_channels))
        self.weight = scale * jr.normal(key, (out_channels, in_channels, 3, 3))
        self.bias = jnp.zeros(out_channels)

    def __call__(
        self, x: Float[Array, "in latitude longitude"], domain: Domain
    ) -> Float[Array, "out latitude longitude"]:
        """Return the mixed channels, in the dtype of `x`."""
        wide = pad(domain, x, 1).transpose(1, 2, 0)[None]
        weight = self.weight.astype(x.dtype).transpose(2, 3, 1, 0)
        y = correlate(wide, weight)[0].transpose(2, 0, 1)
        return y + self.bias.astype(x.dtype)[:, None, None]
