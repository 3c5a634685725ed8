"""An autoencoder for fields: fewer, coarser channels that say nearly as much."""

from collections.abc import Sequence
from functools import partial

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key

from skyens.nn._blocks import ResidualBlock, check_sizes, scan_over, stack
from skyens.nn._convolution import Convolution
from skyens.nn._domain import Domain, check_on, coordinates
from skyens.nn._halving import Halving
from skyens.nn._pointwise import Pointwise


class Autoencoder(eqx.Module):
    """Fields to latents of half, a quarter, ... of the resolution, and back.

    On a `Grid` it is periodic in longitude, reaches over the poles and knows the
    latitude; latents lie on `latent_domain`, a coarser grid. Deterministic: train it
    with the error of `autoencoder(x)`, in any score. Latents have the scale that
    training gives them; bring them to order one with their own mean and spread before
    a diffusion.

    `decode` is what `Observation.pullback` takes to observe latents.
    """

    lift: Convolution
    down: tuple[ResidualBlock, ...]  # stacked blocks, one entry a resolution
    widen: tuple[Pointwise, ...]
    squeeze: Pointwise
    expand: Convolution
    up: tuple[ResidualBlock, ...]  # coarsest first
    narrow: tuple[Pointwise, ...]
    project: Convolution
    halvings: tuple[Halving, ...]
    domain: Domain = eqx.field(static=True)
    channels: int = eqx.field(static=True)
    latent_channels: int = eqx.field(static=True)

    def __init__(
        self,
        domain: Domain,
        channels: int,
        latent_channels: int,
        *,
        widths: Sequence[int] = (32, 64, 64),
        blocks: int = 2,
        key: Key[Array, ""],
    ):
        """Draw the weights.

        Args:
            domain: a `Plane` or a `Grid`, halved `len(widths) - 1` times.
            channels: of the fields.
            latent_channels: of the latents.
            widths: channels inside at each resolution, finest first.
            blocks: at each resolution, in both halves; compiled once (a scan).
            key: for the weights.

        Raises:
            ValueError: a size is not positive, or the domain cannot be halved.
        """
        widths = tuple(widths)
        if not widths:
            raise ValueError("`widths` must name at least one resolution, got none.")
        check_sizes(channels=channels, latent_channels=latent_channels, blocks=blocks)
        check_sizes(width=min(widths))
        self.domain, self.channels = domain, channels
        self.latent_channels = latent_channels
        halvings = []
        for _ in widths[1:]:
            halvings.append(Halving(domain))
            domain = halvings[-1].coarse
        self.halvings = tuple(halvings)
        keys = jr.split(key, 8)
        static = len(coordinates(domain))
        block = lambda width, key: stack(partial(ResidualBlock, width, 0), blocks, key)
        each = lambda key: jr.split(key, len(widths))
        self.lift = Convolution(channels + static, widths[0], key=keys[0])
        self.down = tuple(map(block, widths, each(keys[1])))
        steps = list(zip(widths[:-1], widths[1:], each(keys[2])[1:], strict=True))
        self.widen = tuple(Pointwise(n, w, key=k) for n, w, k in steps)
        self.squeeze = Pointwise(widths[-1], latent_channels, key=keys[3])
        self.expand = Convolution(latent_channels + static, widths[-1], key=keys[4])
        self.up = tuple(map(block, widths[::-1], each(keys[5])))
        back = list(zip(widths[:0:-1], widths[-2::-1], each(keys[6])[1:], strict=True))
        self.narrow = tuple(Pointwise(w, n, key=k) for w, n, k in back)
        self.project = Convolution(widths[0], channels, key=keys[7])

    @property
    def latent_domain(self) -> Domain:
        """Where latents lie."""
        return self.halvings[-1].coarse if self.halvings else self.domain

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The shape of a latent."""
        return (self.latent_channels, *self.latent_domain.shape)

    def encode(
        self, field: Float[Array, "channel latitude longitude"]
    ) -> Float[Array, "latent row column"]:
        """Return the latent of one field, of order one, in its dtype.

        Raises:
            ValueError: `field` has another shape than the autoencoder was made for.
        """
        check_on(self.domain, field, self.channels, "field")
        h = self._joined(field, self.domain)
        h = self.lift(h, self.domain)
        for blocks, halving, widen in zip(
            self.down, self.halvings, self.widen, strict=False
        ):
            h = widen(halving.down(self._through(blocks, h, halving.fine)))
        return self.squeeze(self._through(self.down[-1], h, self.latent_domain))

    def decode(
        self, latent: Float[Array, "latent row column"]
    ) -> Float[Array, "channel latitude longitude"]:
        """Return the field of one latent, in its dtype.

        Raises:
            ValueError: `latent` has another shape than the autoencoder was made for.
        """
        domain = self.latent_domain
        check_on(domain, latent, self.latent_channels, "latent")
        h = self.expand(self._joined(latent, domain), domain)
        h = self._through(self.up[0], h, domain)
        for blocks, halving, narrow in zip(
            self.up[1:], self.halvings[::-1], self.narrow, strict=True
        ):
            h = self._through(blocks, halving.up(narrow(h)), halving.fine)
        return self.project(h, self.domain)

    def __call__(
        self, field: Float[Array, "channel latitude longitude"]
    ) -> Float[Array, "channel latitude longitude"]:
        """Return what the latent of `field` keeps of it.

        Raises:
            ValueError: `field` has another shape than the autoencoder was made for.
        """
        return self.decode(self.encode(field))

    def _joined(self, field, domain):
        static = jnp.asarray(coordinates(domain), field.dtype)
        return jnp.concatenate([field, static])

    def _through(self, blocks, h, domain):
        return scan_over(blocks, h, jnp.zeros((0, 1, 1), h.dtype), domain)
