"""The stochastic spherical Fourier neural operator."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Complex, Float, Key

from skyens.nn._pointwise import ConditionalLayerNorm, GatedMLP, Pointwise
from skyens.nn._spectral import SpectralConv
from skyens.sphere import Grid, SphericalHarmonics, gauss_legendre


class SFNO(eqx.Module):
    """A neural operator on the sphere, stochastic through its layer norms.

    The input is analysed once up to `lmax`; the blocks work on a Gaussian grid that
    resolves products of two such fields, and the output is band-limited to `lmax` on
    the input's grid. Each block is a residual

        x + MLP(F y, grad F y, x, latitude),   y = norm(x, noise),

    with `F` a spectral convolution. The gradient gives each point the direction that
    an isotropic filter cannot see; the gate of the MLP multiplies, as advection does.
    The lift sees the input, its Laplacian and the gradients of both. One sample; use
    `jax.vmap` for batches and members.

    Source: Bonev et al. (2023), ICML, PMLR 202, 2806-2823 (SFNO); Lang et al. (2024),
    arXiv:2412.15832 (noise through conditional layer norms); the gradients stand in
    for the local filters of Bonev et al. (2025), arXiv:2507.12144.
    """

    sht: SphericalHarmonics
    inner: SphericalHarmonics
    lift: GatedMLP
    blocks: "_Block"
    project: Pointwise
    in_channels: int = eqx.field(static=True)
    noise_channels: int = eqx.field(static=True)

    def __init__(
        self,
        grid: Grid,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 32,
        blocks: int = 4,
        lmax: int = 31,
        noise_channels: int = 4,
        key: Key[Array, ""],
    ):
        """Build the transforms and draw the weights.

        Args:
            grid: the grid of inputs and outputs.
            in_channels: channels of the input.
            out_channels: channels of the output.
            width: channels inside.
            blocks: how many blocks, compiled once (a scan).
            lmax: largest degree inside.
            noise_channels: channels of noise; 0 makes the network deterministic.
            key: for the weights.

        Raises:
            ValueError: a size is not positive (`noise_channels`: negative), or `lmax`
                is above what `grid` resolves.
        """
        sizes = dict(in_channels=in_channels, out_channels=out_channels)
        sizes |= dict(width=width, blocks=blocks, lmax=lmax)
        if bad := {name: size for name, size in sizes.items() if size < 1}:
            raise ValueError(f"sizes must be at least 1, got {bad}.")
        if noise_channels < 0:
            raise ValueError(
                f"`noise_channels` must not be negative, got {noise_channels}."
            )
        self.sht = SphericalHarmonics(grid, lmax)
        rows = (3 * lmax + 3) // 2  # products of two fields, free of aliasing
        rows += rows % 2
        self.inner = SphericalHarmonics(gauss_legendre(rows, 2 * rows), lmax)
        self.in_channels, self.noise_channels = in_channels, noise_channels
        lift_key, block_key, project_key = jr.split(key, 3)
        features = 6 * in_channels + 2
        self.lift = GatedMLP(features, 2 * width, width, key=lift_key)
        make = lambda key: _Block(lmax, width, noise_channels, key=key)
        self.blocks = eqx.filter_vmap(make)(jr.split(block_key, blocks))
        # A small start: an untrained step changes its state little.
        self.project = Pointwise(width, out_channels, gain=0.01, key=project_key)

    @property
    def lmax(self) -> int:
        """The largest degree inside, and of the noise."""
        return self.inner.lmax

    def __call__(
        self,
        x: Float[Array, "in latitude longitude"],
        noise: Complex[Array, "noise l m"] | None = None,
    ) -> Float[Array, "out latitude longitude"]:
        """Return the output fields for one input and one draw of the noise.

        Args:
            x: fields of order one on the grid.
            noise: spectral coefficients of fields of order one up to `lmax`, one set
                for each noise channel; None is no noise.

        Raises:
            ValueError: `x` or the noise has another number of channels.
        """
        if x.shape[0] != self.in_channels:
            raise ValueError(
                f"`x` must have {self.in_channels} channels, got {x.shape[0]}."
            )
        if noise is not None and noise.shape[0] != self.noise_channels:
            raise ValueError(
                f"`noise` must have {self.noise_channels} channels, got "
                f"{noise.shape[0]}."
            )
        if noise is None or not self.noise_channels:
            shape = (self.noise_channels, *self.inner.grid.shape)
            noise_field = jnp.zeros(shape, x.dtype)
        else:
            noise_field = self.inner.synthesis(noise).astype(x.dtype)
        coefficients = self.sht.analysis(x)
        degree = np.arange(self.lmax + 1)
        scaled = degree * (degree + 1) / self._typical**2
        scaled = jnp.asarray(scaled, coefficients.dtype)
        both = jnp.concatenate([coefficients, coefficients * scaled[None, :, None]])
        seen = [*self._see(both, x.dtype), self._latitude(x.dtype)]
        h = self.lift(jnp.concatenate(seen))
        carry = lambda h, block: (self._block(block, h, noise_field), None)
        h = jax.lax.scan(carry, h, self.blocks)[0]
        return self.sht.synthesis(self.inner.analysis(self.project(h))).astype(x.dtype)

    def _block(self, block, h, noise):
        y = block.filter(self.inner.analysis(block.norm(h, noise)))
        seen = [*self._see(y, h.dtype), h, self._latitude(h.dtype)]
        return h + block.mlp(jnp.concatenate(seen))

    def _see(self, coefficients, dtype) -> list[Array]:
        """Values and gradients on the inner grid, of comparable size."""
        east, north = self.inner.gradient_synthesis(coefficients)
        field = self.inner.synthesis(coefficients)
        parts = field, east / self._typical, north / self._typical
        # Half-precision fields are transformed in float32.
        return [part.astype(dtype) for part in parts]

    @property
    def _typical(self) -> float:
        """The degree at which fields and their scaled derivatives are equally large."""
        return max(self.lmax / 4, 1.0)

    def _latitude(self, dtype) -> Float[Array, "two latitude longitude"]:
        """`sin(latitude)` and its square: what the isotropic parts cannot know."""
        sine = np.cos(self.inner.grid.colatitude)
        static = jnp.asarray(np.stack([sine, 3 * sine**2 - 1]), dtype)
        return jnp.broadcast_to(static[..., None], (2, *self.inner.grid.shape))


class _Block(eqx.Module):
    norm: ConditionalLayerNorm
    filter: SpectralConv
    mlp: GatedMLP

    def __init__(self, lmax: int, width: int, noise_channels: int, *, key):
        filter_key, mlp_key = jr.split(key)
        self.norm = ConditionalLayerNorm(width, noise_channels)
        self.filter = SpectralConv(lmax, width, width, key=filter_key)
        self.mlp = GatedMLP(4 * width + 2, width, width, gain=0.1, key=mlp_key)
