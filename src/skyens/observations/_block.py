"""Errors that are correlated within groups of entries, and not between them."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Key, Scalar

from skyens.observations._covariance import (
    check_covariance,
    masked_factor,
    whiten_by,
)
from skyens.observations._errors import gaussian_log_prob


class Block(eqx.Module):
    """Gaussian errors with a block-diagonal covariance of equal blocks.

    The channels of one sounding, say, or the levels of one ascent. Entries follow each
    other in C order: with `(sounding, channel)` values, a block is a sounding. Masked
    entries are as good as taken away. All blocks are factorised at once, at the cost of
    `block * size^3 / 3` operations.
    """

    blocks: Float[Array, "block size size"]

    def __init__(self, blocks: Float[Array | np.ndarray, "block size size"]):
        """Set covariance `blocks`, `(block, size, size)`, in the value's units squared.

        For soundings that are all alike, repeat their matrix by `jnp.broadcast_to`.

        Raises:
            EquinoxRuntimeError: one is not finite, symmetric and positive definite.
        """
        self.blocks = check_covariance("blocks", blocks)

    @property
    def independent(self) -> bool:
        """Whether the blocks are of one entry each; otherwise whitening mixes them."""
        return self.blocks.shape[-1] == 1

    @property
    def covariance(self) -> Float[Array, "entry entry"]:
        """The whole matrix, of the square of all entries: for few of them."""
        count, size, _ = self.blocks.shape
        block = np.arange(count)
        whole = jnp.zeros((count, size, count, size), self.blocks.dtype)
        whole = whole.at[block, :, block, :].set(self.blocks)
        return whole.reshape(count * size, count * size)

    def whiten(
        self, residual: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        """Return `L^-1 residual`, 0 where `mask` is False; L are Cholesky factors.

        Raises:
            ValueError: the blocks have not one row for each entry of the residual.
        """
        return self._whiten(residual, mask)[0]

    def log_prob(
        self, residual: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
    ) -> Scalar:
        """Return the Gaussian log-density of the residuals that `mask` keeps."""
        return gaussian_log_prob(*self._whiten(residual, mask), mask)

    def sample(
        self, prediction: Float[Array, "*shape"], *, key: Key[Array, ""]
    ) -> Float[Array, "*shape"]:
        """Return `L` times white noise, in the prediction's shape and dtype."""
        factor = self._factor(prediction, jnp.ones(prediction.shape, bool))
        noise = jr.normal(key, (*factor.shape[:2], 1), factor.dtype)
        error = jnp.matmul(factor, noise, precision="highest")
        return error.reshape(prediction.shape).astype(prediction.dtype)

    def _whiten(self, residual, mask):
        factor = self._factor(residual, mask)
        rows = jnp.where(mask, residual, 0).reshape(factor.shape[:2])
        return whiten_by(factor, rows).reshape(residual.shape), factor

    def _factor(self, residual, mask):
        count, size, _ = self.blocks.shape
        if residual.size != count * size:
            raise ValueError(
                f"`blocks` of shape {self.blocks.shape} do not fit an observation of "
                f"shape {residual.shape}, {residual.size} entries."
            )
        return masked_factor(self.blocks, mask.reshape(count, size), residual.dtype)
