"""What convolutional networks are made of."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key

from skyens.nn._convolution import Convolution
from skyens.nn._domain import Domain
from skyens.nn._pointwise import ConditionalLayerNorm, Pointwise


class ResidualBlock(eqx.Module):
    """Two convolutions beside the identity; the context scales and shifts channels."""

    norm: ConditionalLayerNorm
    first: Convolution
    second: Convolution

    def __init__(self, width: int, context: int, *, key: Key[Array, ""]):
        """Draw the weights for `width` channels and a context of so many channels."""
        first_key, second_key = jr.split(key)
        self.norm = ConditionalLayerNorm(width, context)
        self.first = Convolution(width, width, gain=2.0, key=first_key)
        # A small start: at first a deep network is close to its linear part.
        self.second = Convolution(width, width, gain=0.2, key=second_key)

    def __call__(
        self,
        x: Float[Array, "channel latitude longitude"],
        context: Float[Array, "context 1 1"],
        domain: Domain,
    ) -> Float[Array, "channel latitude longitude"]:
        """Return the changed channels."""
        y = self.first(jax.nn.silu(self.norm(x, context)), domain)
        return x + self.second(jax.nn.silu(y), domain)


class Gain(eqx.Module):
    """Scale each channel by what the context says; it starts as the identity.

    The only way in which noise levels reach the linear part of a network, which must
    shrink fine scales more than coarse ones as noise grows.
    """

    weight: Float[Array, "channel context"]

    def __init__(self, channels: int, context: int):
        """Set the number of channels, and of channels of the context."""
        self.weight = jnp.zeros((channels, context))

    def __call__(
        self,
        x: Float[Array, "channel latitude longitude"],
        context: Float[Array, "context 1 1"],
    ) -> Float[Array, "channel latitude longitude"]:
        """Return the scaled channels, in the dtype of `x`."""
        gain = self.weight.astype(x.dtype) @ context.astype(x.dtype)[:, 0, 0]
        return x * (1 + gain)[:, None, None]


class Head(eqx.Module):
    """The last layer: channels scaled by the context, and mixed to the output."""

    gain: Gain
    project: Pointwise

    def __init__(self, width: int, channels: int, context: int, *, key: Key[Array, ""]):
        """Draw small weights: an untrained network returns little."""
        self.gain = Gain(width, context)
        self.project = Pointwise(width, channels, gain=0.01, key=key)

    def __call__(
        self,
        x: Float[Array, "channel latitude longitude"],
        context: Float[Array, "context 1 1"],
    ) -> Float[Array, "out latitude longitude"]:
        """Return the output."""
        return self.project(self.gain(x, context))


def stack(make: Callable, count: int, key: Key[Array, ""]):
    """Return `count` modules `make(key=...)` as one, for `scan_over`."""
    return eqx.filter_vmap(lambda key: make(key=key))(jr.split(key, count))


def scan_over(blocks, x: Float[Array, "..."], *more) -> Float[Array, "..."]:
    """Return `x` after all the stacked `blocks`, `block(x, *more)` each."""
    return jax.lax.scan(lambda x, block: (block(x, *more), None), x, blocks)[0]


def check_sizes(**sizes: int) -> None:
    """Check that all sizes are positive.

    Raises:
        ValueError: one is not.
    """
    if bad := {name: size for name, size in sizes.items() if size < 1}:
        raise ValueError(f"sizes must be at least 1, got {bad}.")
