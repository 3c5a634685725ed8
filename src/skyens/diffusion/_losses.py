"""Denoising score matching: what trains a network to be a denoiser."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from skyens.diffusion._broadcast import aligned, wide
from skyens.diffusion._denoisers import Denoiser, Scalar
from skyens.diffusion._levels import Levels, LogNormalLevels, draw_levels
from skyens.diffusion._noise import Noise, White

_WHITE = White()


class DenoisingLoss(eqx.Module):
    """The weighted squared error of a denoiser, over random noise and noise levels.

    It is a loss of `training.make_step`: `loss(denoiser, batch, *, key)`, the mean over
    a batch whose levels are spread evenly over their law. Its minimum over all
    functions is the expected clean state, whatever the weights and the noise law; the
    denoiser then belongs to that law, and samples start from it too.

    A batch is an array of clean states, or the pair `(clean, condition)` of such an
    array and a tree of conditions, all with one leading axis.

    Source: Vincent (2011), Neural Comput. 23, 1661-1674; Karras et al. (2022),
    arXiv:2206.00364, equation 8; Ho & Salimans (2022), arXiv:2207.12598, for the
    conditions that are dropped.
    """

    noise: Noise
    levels: Levels
    weight: Callable | None
    entries: Float[Array, "*weights"] | None
    drop: float = eqx.field(static=True)

    def __init__(
        self,
        noise: Noise = _WHITE,
        levels: Levels | None = None,
        *,
        weight: Callable | None = None,
        entries: Float[Array, "*weights"] | None = None,
        drop: float = 0.0,
    ):
        """Set what is drawn and what counts.

        Args:
            noise: the noise law, of unit variance.
            levels: the law of the noise level, `LogNormalLevels()` when not given;
                levels beyond the range that a denoiser names count as its ends.
            weight: from the noise level to the weight of squared errors, a number or
                an array that broadcasts to the state; the denoiser's own `weight` when
                not given, as `Preconditioned` has it.
            entries: weights of the state's entries, such as areas
                (`grid.weights[None, :, None]`), with as many axes as the state; only
                their ratios count. All equal when not given.
            drop: the share of conditions that are set to zeros, which is what the
                networks of `nn` take for none: such a denoiser is the prior as well,
                and `ClassifierFree` can guide it. 0.1 to 0.2 is usual.

        Raises:
            ValueError: `drop` lies outside [0, 1).
            EquinoxRuntimeError: `entries` are negative, not finite, or all 0.
        """
        if not 0 <= drop < 1:
            raise ValueError(f"`drop` must lie in [0, 1), got {drop}.")
        self.noise, self.weight = noise, weight
        self.levels = LogNormalLevels() if levels is None else levels
        self.entries, self.drop = check_entries(entries), drop

    def __call__(
        self, denoiser: Denoiser, batch: PyTree[Array], *, key: PRNGKeyArray | None
    ) -> Float[Array, ""]:
        """Return the mean loss over a batch, in its dtype, float32 at least.

        Raises:
            ValueError: there is no `key`, no condition to drop, no weight, or shapes do
                not fit each other.
        """
        clean, condition = split_batch(batch)
        key, size = check_key(key), clean.shape[0]
        level_key, drop_key, noise_key = jr.split(key, 3)
        dtype = wide(clean.dtype)
        sigma = draw_levels(self.levels, denoiser, size, dtype, key=level_key)
        condition = self._dropped(condition, size, drop_key)
        one = lambda clean, sigma, condition, key: self.at(
            denoiser, clean, sigma, condition=condition, key=key
        )
        keys = jr.split(noise_key, size)
        return jnp.mean(jax.vmap(one)(clean, sigma, condition, keys))

    def at(
        self,
        denoiser: Denoiser,
        clean: Float[Array, "*state"],
        sigma: Scalar,
        *,
        condition: Any = None,
        key: PRNGKeyArray | None,
    ) -> Float[Array, ""]:
        """Return the loss of one sample at one noise level, nothing dropped.

        Raises:
            ValueError: there is no `key`, no weight, or shapes do not fit each other.
        """
        noise = self.noise(clean.shape, clean.dtype, key=check_key(key))
        level = jnp.asarray(sigma)
        noisy = clean + level.astype(clean.dtype) * noise
        guess = denoiser(noisy, level.astype(clean.dtype), condition=condition)
        weight = self._weight(denoiser, level)
        error = (guess - clean).astype(wide(clean.dtype))
        squares = aligned("weight", weight, error.shape, error.dtype) * error**2
        return mean_over(squares, self.entries)

    def _weight(self, denoiser, sigma):
        weight = self.weight or getattr(denoiser, "weight", None)
        if weight is None:
            raise ValueError(
                f"{type(denoiser).__name__} has no `weight` of its own: give the loss "
                "one, `weight=lambda sigma: 1 / sigma**2` say."
            )
        return jnp.asarray(weight(sigma))

    def _dropped(self, condition, size, key):
        if not self.drop:
            return condition
        if condition is None:
            raise ValueError(
                f"`drop` is {self.drop}, but the batch has no condition to drop: give "
                "it as (clean, condition)."
            )
        dropped = jr.bernoulli(key, self.drop, (size,))
        column = lambda leaf: dropped.reshape((size,) + (1,) * (leaf.ndim - 1))
        zero = lambda leaf: jnp.where(column(leaf), jnp.zeros_like(leaf), leaf)
        return jax.tree.map(zero, condition)


def split_batch(batch: PyTree[Array]) -> tuple[Array, Any]:
    """Return the clean states and the conditions of a batch, None if it has none.

    Raises:
        ValueError: it is empty, or leading axes differ.
    """
    clean, condition = batch if isinstance(batch, tuple) else (batch, None)
    sizes = {leaf.shape[:1] for leaf in jax.tree.leaves((clean, condition))}
    if len(sizes) != 1 or sizes == {()} or sizes == {(0,)}:
        shapes = [leaf.shape for leaf in jax.tree.leaves((clean, condition))]
        raise ValueError(
            "`batch` must be clean states, or (clean states, conditions), with one "
            f"leading axis of at least 1, got the shapes {shapes}."
        )
    return clean, condition


def check_key(key: PRNGKeyArray | None) -> PRNGKeyArray:
    """Return the key, or raise ValueError where there is none."""
    if key is None:
        raise ValueError("`key` must be a key: the loss draws noise and noise levels.")
    return key


def check_entries(entries: Array | None) -> Array | None:
    """Return weights of entries, or fail where they make no mean."""
    if entries is None:
        return None
    good = jnp.all((entries >= 0) & jnp.isfinite(entries)) & jnp.any(entries > 0)
    return eqx.error_if(
        entries, ~good, "`entries` must be finite and >= 0, and some above 0."
    )


def mean_over(values: Array, entries: Array | None) -> Float[Array, ""]:
    """Return the mean of `values`, weighted by `entries` where these are given."""
    if entries is None:
        return jnp.mean(values)
    weights = aligned("entries", entries, values.shape, values.dtype)
    weights = jnp.broadcast_to(weights, values.shape)
    return jnp.sum(weights * values) / jnp.sum(weights)
