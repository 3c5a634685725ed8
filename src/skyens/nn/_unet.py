"""A U-Net: convolutions at several resolutions, on a plane or on the sphere."""

from collections.abc import Sequence
from functools import partial

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key

from skyens.nn._attention import AttentionBlock, Rotary
from skyens.nn._blocks import Gain, Head, ResidualBlock, check_sizes, scan_over, stack
from skyens.nn._condition import Condition, Taken
from skyens.nn._convolution import Convolution
from skyens.nn._domain import Domain, check_on, coordinates
from skyens.nn._embedding import Context, Scalar
from skyens.nn._halving import Halving
from skyens.nn._pointwise import Pointwise


class UNet(eqx.Module):
    """Convolutions at resolutions that halve, then double again, with attention midway.

    On a `Grid`, filters reach around the globe and over the poles, coarse fields are
    means by area, and the network knows the latitude; turning the input by whole
    coarsest columns turns the output. On a `Plane` with periodic axes it commutes with
    shifts likewise.

    All sizes but the domain's are free. One sample; use `jax.vmap` for batches. Fields
    of half precision stay so inside, except in norms and softmax.

    Source: Ronneberger et al. (2015), MICCAI, arXiv:1505.04597; as a score network Ho
    et al. (2020), NeurIPS 33, arXiv:2006.11239. The main path from input to output is
    linear for a given context.
    """

    lift: Convolution
    context: Context
    halvings: tuple[Halving, ...]
    down: tuple[ResidualBlock, ...]  # stacked blocks, one entry a resolution
    widen: tuple[Pointwise, ...]
    middle: AttentionBlock | None  # stacked
    narrow: tuple[Pointwise, ...]
    gains: tuple[Gain, ...]
    up: tuple[ResidualBlock, ...]  # stacked, coarsest first
    head: Head
    taken: Taken
    domain: Domain = eqx.field(static=True)
    in_channels: int = eqx.field(static=True)

    def __init__(
        self,
        domain: Domain,
        in_channels: int,
        out_channels: int,
        *,
        widths: Sequence[int] = (32, 64, 64),
        blocks: int = 2,
        attention: int = 1,
        heads: int = 4,
        noise_level: bool = True,
        field_channels: int = 0,
        vector_size: int = 0,
        token_size: int = 0,
        embedding: int = 64,
        key: Key[Array, ""],
    ):
        """Draw the weights.

        Args:
            domain: a `Plane` or a `Grid`. It is halved `len(widths) - 1` times.
            in_channels: channels of the input.
            out_channels: channels of the output.
            widths: channels inside at each resolution, finest first.
            blocks: at each resolution, on the way down and up; compiled once (a scan).
            attention: layers of a transformer at the coarsest resolution; 0 is none.
                Their cost grows with the square of the number of places there.
            heads: of the attention.
            noise_level: whether the network is told a level.
            field_channels: channels of `condition.fields`; 0 is none.
            vector_size: entries of `condition.vector`; 0 is none.
            token_size: features of `condition.tokens`; 0 is none.
            embedding: channels that carry level and vector.
            key: for the weights.

        Raises:
            ValueError: a size is not positive (or negative, where 0 is allowed), the
                domain cannot be halved, there are tokens but no attention, or the last
                width is no multiple of 4 `heads`.
        """
        widths = tuple(widths)
        if not widths:
            raise ValueError("`widths` must name at least one resolution, got none.")
        check_sizes(in_channels=in_channels, out_channels=out_channels, blocks=blocks)
        check_sizes(width=min(widths), embedding=embedding)
        if attention < 0 or (token_size and not attention):
            raise ValueError(
                f"`attention` must be at least {int(token_size > 0)} (tokens are "
                f"attended to), got {attention}."
            )
        keys = jr.split(key, 7)
        self.taken = Taken(field_channels, vector_size, token_size)
        self.domain, self.in_channels = domain, in_channels
        self.context = Context(
            embedding, noise_level=noise_level, vector_size=vector_size, key=keys[0]
        )
        size, seen = self.context.size, len(coordinates(domain))
        seen += in_channels + field_channels
        self.lift = Convolution(seen, widths[0], key=keys[1])
        halvings = []
        for _ in widths[1:]:
            halvings.append(Halving(domain))
            domain = halvings[-1].coarse
        self.halvings = tuple(halvings)
        block = lambda width, key: stack(
            partial(ResidualBlock, width, size), blocks, key
        )
        each = lambda key: jr.split(key, len(widths))
        self.down = tuple(map(block, widths, each(keys[2])))
        steps = list(zip(widths[:-1], widths[1:], each(keys[3])[1:], strict=True))
        self.widen = tuple(Pointwise(n, w, key=k) for n, w, k in steps)
        self.middle = None
        if attention:
            layer = partial(
                AttentionBlock, widths[-1], size, heads=heads, token_size=token_size
            )
            self.middle = stack(layer, attention, keys[4])
        coarsest_first = list(zip(steps, each(keys[5])[1:], strict=True))[::-1]
        self.narrow = tuple(
            Pointwise(n + w, n, key=jr.fold_in(k, 0)) for (n, w, _), k in coarsest_first
        )
        self.gains = tuple(Gain(n + w, size) for (n, w, _), _ in coarsest_first)
        self.up = tuple(block(n, jr.fold_in(k, 1)) for (n, _, _), k in coarsest_first)
        self.head = Head(widths[0], out_channels, size, key=keys[6])

    def __call__(
        self,
        x: Float[Array, "in latitude longitude"],
        level: Scalar | None = None,
        *,
        condition: Condition | None = None,
    ) -> Float[Array, "out latitude longitude"]:
        """Return the output for one input, in its dtype.

        Args:
            x: fields of order one on the domain.
            level: the noise level as a number of order one, such as `log(sigma) / 4`;
                None for a network made with `noise_level=False`.
            condition: what else the network is told; None is all zeros.

        Raises:
            ValueError: `x` or a part of the condition has another shape than the
                network was made for, or `level` is missing or not taken.
        """
        check_on(self.domain, x, self.in_channels, "x")
        parts = self.taken(condition, x)
        context = self.context(level, parts.vector)
        static = jnp.asarray(coordinates(self.domain), x.dtype)
        h = self.lift(jnp.concatenate([x, parts.fields, static]), self.domain)
        skips = []
        for blocks, halving, widen in zip(
            self.down, self.halvings, self.widen, strict=False
        ):
            skips.append(scan_over(blocks, h, context, halving.fine))
            h = widen(halving.down(skips[-1]))
        coarsest = self.halvings[-1].coarse if self.halvings else self.domain
        h = scan_over(self.down[-1], h, context, coarsest)
        if self.middle is not None:
            h = scan_over(self.middle, h, context, parts.tokens, Rotary(coarsest))
        way_up = zip(self.halvings[::-1], self.narrow, self.gains, self.up, strict=True)
        for halving, narrow, gain, blocks in way_up:
            both = jnp.concatenate([skips.pop(), halving.up(h)])
            h = scan_over(blocks, narrow(gain(both, context)), context, halving.fine)
        return self.head(h, context)
