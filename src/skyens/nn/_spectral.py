"""Spectral convolution: one small matrix of channels for every degree."""

import math

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Complex, Float, Key


class SpectralConv(eqx.Module):
    """Mix channels in spectral space, `y_lm = W_l x_lm`: a convolution on the sphere.

    The weights are real and do not depend on the order m, so that the layer commutes
    with every rotation and reflection of the sphere. It acts on coefficients; the
    network that owns the transform goes there and back.

    Source: Bonev et al. (2023), ICML, PMLR 202, 2806-2823 (with real weights).
    """

    weight: Float[Array, "l out in"]

    def __init__(
        self,
        lmax: int,
        in_channels: int,
        out_channels: int,
        *,
        gain: float = 1.0,
        key: Key[Array, ""],
    ):
        """Draw weights that keep variance (times `gain`)."""
        shape = (lmax + 1, out_channels, in_channels)
        self.weight = math.sqrt(gain / in_channels) * jr.normal(key, shape)

    def __call__(
        self, coefficients: Complex[Array, "in l m"]
    ) -> Complex[Array, "out l m"]:
        """Return the mixed coefficients."""
        weight = self.weight.astype(coefficients.real.dtype)
        mix = lambda part: jnp.einsum("loi,ilm->olm", weight, part)
        return lax.complex(mix(coefficients.real), mix(coefficients.imag))
