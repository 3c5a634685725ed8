"""A transformer over patches, on a plane or on the sphere."""

from functools import partial

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key

from skyens.nn._attention import AttentionBlock, Rotary
from skyens.nn._blocks import Head, check_sizes, scan_over, stack
from skyens.nn._condition import Condition, Taken
from skyens.nn._domain import Domain, Plane, check_on, coordinates, pad_rows
from skyens.nn._embedding import Context, Scalar
from skyens.nn._pointwise import Pointwise


class Transformer(eqx.Module):
    """Attention between patches, which know where they are by rotary embedding.

    On a `Grid` the embedding is of true latitudes and of whole wavenumbers in
    longitude: the globe closes, and turning the input by whole patches turns the
    output. Rows that fill no patch are completed from beyond the pole.

    One sample; use `jax.vmap` for batches. The cost grows with the square of the
    number of patches.

    Source: Peebles & Xie (2023), ICCV, 4195-4205 (conditioning); the embedding is that
    of `Rotary`.
    """

    lift: Pointwise
    context: Context
    blocks: AttentionBlock  # stacked
    head: Head
    taken: Taken
    domain: Domain = eqx.field(static=True)
    in_channels: int = eqx.field(static=True)
    patch: int = eqx.field(static=True)

    def __init__(
        self,
        domain: Domain,
        in_channels: int,
        out_channels: int,
        *,
        patch: int = 4,
        width: int = 128,
        blocks: int = 4,
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
            domain: a `Plane` or a `Grid`.
            in_channels: channels of the input.
            out_channels: channels of the output.
            patch: rows and columns of a patch.
            width: channels inside, a multiple of 4 `heads`.
            blocks: how many layers, compiled once (a scan).
            heads: of the attention.
            noise_level: whether the network is told a level.
            field_channels: channels of `condition.fields`; 0 is none.
            vector_size: entries of `condition.vector`; 0 is none.
            token_size: features of `condition.tokens`; 0 is none.
            embedding: channels that carry level and vector.
            key: for the weights.

        Raises:
            ValueError: a size is not positive (or negative, where 0 is allowed), the
                columns, or a plane's rows, are no multiple of `patch`, or `width` is
                none of 4 `heads`.
        """
        sizes = dict(in_channels=in_channels, out_channels=out_channels, patch=patch)
        check_sizes(**sizes, width=width, blocks=blocks, embedding=embedding)
        rows, columns = domain.shape
        if columns % patch or (isinstance(domain, Plane) and rows % patch):
            raise ValueError(
                f"`patch` must divide the columns (and a plane's rows), got {patch} "
                f"for {domain.shape}."
            )
        self.taken = Taken(field_channels, vector_size, token_size)
        self.domain, self.in_channels, self.patch = domain, in_channels, patch
        lift, context, layers, head = jr.split(key, 4)
        self.context = Context(
            embedding, noise_level=noise_level, vector_size=vector_size, key=context
        )
        size, area = self.context.size, patch**2
        seen = in_channels + field_channels + len(coordinates(domain))
        self.lift = Pointwise(seen * area, width, key=lift)
        layer = partial(AttentionBlock, width, size, heads=heads, token_size=token_size)
        self.blocks = stack(layer, blocks, layers)
        self.head = Head(width, out_channels * area, size, key=head)

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
        h = self.lift(self._cut(jnp.concatenate([x, parts.fields, static])))
        rotate = Rotary(self.domain, self.patch)
        h = scan_over(self.blocks, h, context, parts.tokens, rotate)
        return self._paste(self.head(h, context))

    def _cut(self, x):
        """Return patches as channels, `(channel * row * column, ...)`."""
        size = self.patch
        x = pad_rows(self.domain, x, 0, -x.shape[1] % size)
        parts = x.reshape(len(x), x.shape[1] // size, size, x.shape[2] // size, size)
        patches = parts.transpose(0, 2, 4, 1, 3)
        return patches.reshape(-1, *patches.shape[3:])

    def _paste(self, patches):
        """Return the fields that patches are of."""
        size, (rows, columns) = self.patch, self.domain.shape
        parts = patches.reshape(-1, size, size, *patches.shape[1:])
        return parts.transpose(0, 3, 1, 4, 2).reshape(len(parts), -1, columns)[:, :rows]
