"""Noise laws: what is added to a clean state, at unit level."""

from typing import Protocol, runtime_checkable

import equinox as eqx
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray


@runtime_checkable
class Noise(Protocol):
    """Draw one sample of noise with unit variance; a denoiser belongs to one law."""

    def __call__(
        self, shape: tuple[int, ...], dtype: DTypeLike, *, key: PRNGKeyArray
    ) -> Float[Array, "*state"]:
        """Return noise of `shape` and `dtype`."""
        ...


class White(eqx.Module):
    """Independent standard normal noise in every entry of the state."""

    def __call__(
        self, shape: tuple[int, ...], dtype: DTypeLike = float, *, key: PRNGKeyArray
    ) -> Float[Array, "*state"]:
        """Return noise of `shape` and `dtype`, dimensionless."""
        return jr.normal(key, shape, dtype)
