"""The weighted ensemble: members, and how much each of them counts."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, Key, PyTree, Scalar

from skyens.assimilation._ensemble import count_members


class Weighted(eqx.Module):
    """Members and the logarithms of their weights, which are normalised.

    `members` is any pytree with a leading member axis. A member of weight 0 changes
    nothing, not even if it is NaN. Particle filters take and return it, and
    `assimilation.cycle` carries it: a step moves the members and keeps the weights.
    """

    members: PyTree[Array]
    log_weights: Float[Array, "member"]

    def __init__(
        self,
        members: PyTree[Array | np.ndarray],
        log_weights: Float[Array | np.ndarray, "member"] | None = None,
    ):
        """Set the members and their log-weights, up to a constant; all equal if None.

        A log-weight of -inf or NaN is a weight of 0. If all are, nothing tells one
        member from another, and they get equal weights.

        Raises:
            ValueError: there are fewer than two members, leaves disagree on their
                number, or there is another number of weights.
        """
        self.members = jax.tree.map(jnp.asarray, members)
        count = count_members(self.members)
        if log_weights is None:
            log_weights = jnp.zeros(count, real_dtype(self.members))
        if log_weights.shape != (count,):
            raise ValueError(
                f"`log_weights` of shape {log_weights.shape} does not fit {count} "
                "members."
            )
        self.log_weights = normalise(jnp.asarray(log_weights))[0]

    @property
    def weights(self) -> Float[Array, "member"]:
        """The weights, which add up to 1."""
        return jnp.exp(self.log_weights)

    @property
    def effective_size(self) -> Scalar:
        """`1 / sum(weights**2)`, from 1 to the number of members.

        Source: Kong, Liu & Wong (1994), J. Amer. Stat. Assoc. 89, 278-288.
        """
        return effective_size(self.log_weights)

    def mean(self) -> PyTree[Array]:
        """Return the weighted mean of every leaf, in the leaf's dtype and units.

        A leaf of integers gives the mean of real numbers.
        """
        return jax.tree.map(
            lambda leaf: weighted_mean(leaf, self.weights), self.members
        )

    def spread(self) -> PyTree[Array]:
        """Return the standard deviation about the mean at every point of every leaf.

        It is unbiased for equal weights: the weighted mean of squares is divided by
        `1 - sum(weights**2)`. It is 0 where one member has all the weight, and its
        gradient is 0 where it is 0.
        """
        return jax.tree.map(self._spread, self.members)

    def covariance(self) -> Float[Array, "state state"]:
        """Return the covariance of the flattened members, unbiased as `spread`.

        Rows are in C order, leaf after leaf; leaves of integers are left out.

        Raises:
            ValueError: a leaf is complex, or there is none of real numbers.
        """
        leaves = [x for x in jax.tree.leaves(self.members) if eqx.is_inexact_array(x)]
        if not leaves or any(jnp.iscomplexobj(leaf) for leaf in leaves):
            raise ValueError(
                "`members` must have leaves of real numbers, and no complex."
            )
        dtype = self.log_weights.dtype
        flat = [leaf.reshape(len(leaf), -1).astype(dtype) for leaf in leaves]
        anomalies = weighted_anomalies(jnp.concatenate(flat, axis=1), self.weights)
        scaled = anomalies * self.weights[:, None]
        product = jnp.matmul(scaled.T, anomalies, precision="highest")
        return product * unbias(self.weights)

    def resample(
        self, resampling: Callable[..., Any], *, key: Key[Array, ""] | None = None
    ) -> PyTree[Array]:
        """Return equally weighted members, a plain ensemble for other methods.

        `resampling` is `Systematic()`, say, or any `(weighted, *, key) -> members`.
        """
        return resampling(self, key=key)

    def _spread(self, leaf):
        anomalies = weighted_anomalies(
            as_real(leaf, self.log_weights.dtype), self.weights
        )
        square = jnp.real(anomalies * jnp.conj(anomalies))
        variance = weighted_mean(square, self.weights)
        variance = variance * unbias(self.weights).astype(square.dtype)
        # Double where: the square root must never see the 0 it would differentiate.
        return jnp.where(
            variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0
        )


def as_weighted(ensemble: PyTree[Array] | Weighted) -> Weighted:
    """Return a weighted ensemble as it is, a plain one with equal weights."""
    return ensemble if isinstance(ensemble, Weighted) else Weighted(ensemble)


def normalise(
    log_weights: Float[Array, "member"],
) -> tuple[Float[Array, "member"], Scalar]:
    """Return log-weights whose weights add up to 1, and the logarithm of their sum.

    NaN counts as -inf. If all are -inf the weights are equal and the sum is -inf;
    their gradient is 0.
    """
    present = log_weights > -jnp.inf
    some = jnp.any(present)
    # Double where: neither NaN nor a sum of nothing may reach a derivative.
    inside = jnp.where(present, log_weights, 0)
    inside = jnp.where(present, inside, -jnp.inf)
    total = jax.nn.logsumexp(jnp.where(some, inside, 0))
    equal = jnp.full_like(log_weights, -np.log(len(log_weights)))
    return jnp.where(some, inside - total, equal), jnp.where(some, total, -jnp.inf)


def effective_size(log_weights: Float[Array, "member"]) -> Scalar:
    """Return `1 / sum(weights**2)` of normalised log-weights."""
    return jnp.exp(-jax.nn.logsumexp(2 * log_weights))


def weighted_mean(
    leaf: Array, weights: Float[Array, "member"]
) -> Inexact[Array, "*state"]:
    """Return the mean over members; one without weight may be NaN."""
    leaf = as_real(leaf, weights.dtype)
    counted = _along(weights > 0, leaf)
    # Accurate for small spreads about large values: the first that counts is taken off.
    first = leaf[jnp.argmax(weights > 0)]
    shifted = jnp.where(counted, leaf - first[None], 0)
    return first + jnp.sum(_along(weights.astype(shifted.dtype), leaf) * shifted, 0)


def weighted_anomalies(
    leaf: Inexact[Array, "member *state"], weights: Float[Array, "member"]
) -> Inexact[Array, "member *state"]:
    """Return members minus their weighted mean, 0 for those without weight."""
    mean = weighted_mean(leaf, weights)
    return jnp.where(_along(weights > 0, leaf), leaf - mean[None], 0)


def unbias(weights: Float[Array, "member"]) -> Scalar:
    """Return `1 / (1 - sum(weights**2))`, 0 where one member has all the weight."""
    rest = 1 - jnp.sum(weights**2)
    some = rest > len(weights) * jnp.finfo(weights.dtype).eps
    return jnp.where(some, 1 / jnp.where(some, rest, 1), 0)


def real_dtype(members: PyTree[Array]) -> np.dtype:
    """Return the widest real dtype of the leaves, at least float32, for weights."""
    kinds = [x.real.dtype for x in jax.tree.leaves(members) if eqx.is_inexact_array(x)]
    kinds = [kind for kind in kinds if jnp.finfo(kind).bits >= 32]
    return max(
        kinds, key=lambda kind: jnp.finfo(kind).bits, default=np.dtype("float32")
    )


def as_real(leaf: Array, dtype: np.dtype) -> Inexact[Array, "..."]:
    """Return the leaf, integers as real numbers of `dtype`."""
    return leaf if eqx.is_inexact_array(leaf) else leaf.astype(dtype)


def _along(values, leaf):
    return values.reshape(-1, *(1,) * (leaf.ndim - 1))
