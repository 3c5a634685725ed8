"""A small network for vectors."""

from functools import partial

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key

from skyens.nn._blocks import Head, check_sizes, scan_over, stack
from skyens.nn._condition import Condition, Taken
from skyens.nn._embedding import Context, Scalar
from skyens.nn._pointwise import ConditionalLayerNorm, GatedMLP, Pointwise


class MLP(eqx.Module):
    """Residual gated layers for a state that is one vector.

    For states of few numbers: low-dimensional systems, coefficients, latents.
    """

    lift: Pointwise
    context: Context
    blocks: "_Block"  # stacked
    head: Head
    taken: Taken
    size: int = eqx.field(static=True)

    def __init__(
        self,
        size: int,
        out_size: int | None = None,
        *,
        width: int = 128,
        blocks: int = 4,
        noise_level: bool = True,
        field_channels: int = 0,
        vector_size: int = 0,
        embedding: int = 64,
        key: Key[Array, ""],
    ):
        """Draw the weights.

        Args:
            size: entries of the input.
            out_size: entries of the output; None is `size`.
            width: numbers inside.
            blocks: how many layers, compiled once (a scan).
            noise_level: whether the network is told a level.
            field_channels: entries of `condition.fields`, here a vector, which is
                joined to the input; 0 is none.
            vector_size: entries of `condition.vector`, which scales and shifts what is
                inside; 0 is none.
            embedding: numbers that carry level and vector.
            key: for the weights.

        Raises:
            ValueError: a size is not positive (or negative, where 0 is allowed).
        """
        out_size = size if out_size is None else out_size
        sizes = dict(size=size, out_size=out_size, width=width, blocks=blocks)
        check_sizes(**sizes, embedding=embedding)
        self.taken = Taken(field_channels, vector_size, 0)
        self.size = size
        lift, context, layers, head = jr.split(key, 4)
        self.lift = Pointwise(size + field_channels, width, key=lift)
        self.context = Context(
            embedding, noise_level=noise_level, vector_size=vector_size, key=context
        )
        self.blocks = stack(partial(_Block, width, self.context.size), blocks, layers)
        self.head = Head(width, out_size, self.context.size, key=head)

    def __call__(
        self,
        x: Float[Array, " entry"],
        level: Scalar | None = None,
        *,
        condition: Condition | None = None,
    ) -> Float[Array, " out"]:
        """Return the output for one input, in its dtype.

        Args:
            x: the state, of order one.
            level: the noise level as a number of order one, such as `log(sigma) / 4`;
                None for a network made with `noise_level=False`.
            condition: what else the network is told; None is all zeros.

        Raises:
            ValueError: `x` or a part of the condition has another shape than the
                network was made for, or `level` is missing or not taken.
        """
        if x.shape != (self.size,):
            raise ValueError(f"`x` must be ({self.size},), got {x.shape}.")
        parts = self.taken(condition, x)
        context = self.context(level, parts.vector)
        h = self.lift(jnp.concatenate([x, parts.fields])[:, None, None])
        return self.head(scan_over(self.blocks, h, context), context)[:, 0, 0]


class _Block(eqx.Module):
    norm: ConditionalLayerNorm
    mlp: GatedMLP

    def __init__(self, width: int, context: int, *, key):
        self.norm = ConditionalLayerNorm(width, context)
        self.mlp = GatedMLP(width, width, width, gain=0.3, key=key)

    def __call__(self, x, context):
        return x + self.mlp(self.norm(x, context))
