"""Noise for particles: of a model, and of kernels that smooth an ensemble.

A noise has `root(weighted)`, rows whose random combinations `z @ root`, z white, have
its covariance, over the flattened leaves to update; and `of_the_model`, whether it is a
part of the forecast, to be drawn even where nothing is observed.
"""

from typing import Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from skyens.assimilation._ensemble import count_members, matmul
from skyens.assimilation._weighted import (
    Weighted,
    real_dtype,
    unbias,
    weighted_anomalies,
)


@runtime_checkable
class Noise(Protocol):
    """The contract of a Gaussian noise that a proposal conditions on observations."""

    @property
    def of_the_model(self) -> bool:
        """Whether it belongs to the forecast, and is drawn whatever is observed."""
        ...

    def root(self, weighted: Weighted) -> Float[Array, "rank state"]:
        """Return rows of which random combinations have the noise's covariance."""
        ...


class AdditiveNoise(eqx.Module):
    """Gaussian noise of a model, the same for every state: `x = f(x_before) + noise`.

    It is a callable `noise(state, *, key) -> state` as well.
    """

    factor: Float[Array, "*shape"]

    def __init__(self, covariance: float | Float[Array | np.ndarray, "..."]):
        """Set the covariance, in the state's units squared.

        Args:
            covariance: a variance, an array of one for each entry of the flattened
                state, or the matrix. Entries of variance 0 have no noise; the matrix
                of the others must be positive definite.

        Raises:
            ValueError: it has more than two axes, or two of unequal length.
            EquinoxRuntimeError: a variance is negative or not finite, or the matrix is
                not symmetric and positive definite.
        """
        covariance = (
            jnp.asarray(covariance, float)
            if isinstance(covariance, int | float)
            else jnp.asarray(covariance)
        )
        if covariance.ndim > 2 or len(set(covariance.shape)) > 1:
            raise ValueError(
                "`covariance` must be a number, a vector or a square matrix, got the "
                f"shape {covariance.shape}."
            )
        matrix = covariance.ndim == 2
        variance = jnp.diagonal(covariance) if matrix else covariance
        wrong = ~((variance >= 0) & (variance < jnp.inf))
        message = "variances of `covariance` must be finite and not negative."
        variance = eqx.error_if(variance, wrong, message)
        noisy = variance > 0
        # Double where: the square root must never see the 0 it would differentiate.
        std = jnp.where(noisy, jnp.sqrt(jnp.where(noisy, variance, 1)), 0)
        if not matrix:
            self.factor = std
            return
        both = noisy[:, None] & noisy[None, :]
        identity = jnp.eye(len(std), dtype=std.dtype)
        lower = jnp.linalg.cholesky(
            jnp.where(both, covariance, identity), symmetrize_input=False
        )
        slack = 64 * jnp.finfo(std.dtype).eps * std[:, None] * std[None, :]
        crooked = jnp.abs(covariance - covariance.T) > slack
        wrong = jnp.any(crooked) | ~jnp.all(jnp.isfinite(lower))
        message = "`covariance` must be symmetric and positive definite."
        self.factor = eqx.error_if(jnp.where(both, lower, 0), wrong, message).T

    @property
    def of_the_model(self) -> bool:
        """True: it is drawn whatever is observed."""
        return True

    def root(self, weighted: Weighted) -> Float[Array, "rank state"]:
        """Return the transposed Cholesky factor of the covariance.

        Raises:
            ValueError: the covariance does not fit the flattened state.
        """
        flat = jax.eval_shape(flatten, weighted.members)
        size = flat.shape[1]
        if self.factor.ndim and self.factor.shape[0] != size:
            raise ValueError(
                f"`covariance` is for {self.factor.shape[0]} entries, the state has "
                f"{size}."
            )
        factor = self.factor.astype(flat.dtype)
        if factor.ndim == 2:
            return factor
        return jnp.diag(jnp.broadcast_to(factor, (size,)))

    def __call__(self, state: PyTree[Array], *, key: Key[Array, ""]) -> PyTree[Array]:
        """Return the state, one member, with a draw of the noise."""
        pair = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
        root = self.root(Weighted(pair))
        noise = matmul(jr.normal(key, (len(root),), root.dtype), root)
        one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], state)
        return jax.tree.map(lambda leaf: leaf[0], shift(one, noise[None]))


class Kernel(eqx.Module):
    """Gaussian kernels about the members, with the shape of the ensemble's covariance.

    Their standard deviation is `bandwidth * N**(-1 / (n + 4))` of the ensemble's, for N
    members of n entries (Scott's rule; `(4 / (n + 2))**(1 / (n + 4))` is the bandwidth
    that is optimal for a Gaussian). As a regularisation it moves members after a
    resampling, which is what keeps them apart where the model has no noise; the bias
    vanishes as the ensemble grows. In large states the noise ignores all distances, so
    that localisation has to come from elsewhere. As the noise of a proposal only the
    bandwidth matters.

    Sources: Musso, Oudjane & Le Gland (2001), in: Doucet et al., Sequential Monte Carlo
    Methods in Practice, chapter 12; Liu & West (2001), there chapter 10, for shrinking.
    """

    bandwidth: Float[Array, ""]
    only_copies: bool = eqx.field(static=True)
    shrink: bool = eqx.field(static=True)

    def __init__(
        self,
        bandwidth: float | Float[Array, ""] = 1.0,
        *,
        only_copies: bool = False,
        shrink: bool = False,
    ):
        """Set the kernels.

        Args:
            bandwidth: factor of Scott's rule, dimensionless, 0 or above.
            only_copies: whether to spare the members that are there once.
            shrink: whether to draw members towards their mean first, so that the noise
                does not widen the ensemble.

        Raises:
            ValueError: `shrink` is asked for together with `only_copies`.
            EquinoxRuntimeError: `bandwidth` is negative.
        """
        if only_copies and shrink:
            raise ValueError("`shrink` needs noise on all members: only_copies=False.")
        bandwidth = jnp.asarray(bandwidth, float)
        message = "`bandwidth` must not be negative."
        self.bandwidth = eqx.error_if(bandwidth, ~(bandwidth >= 0), message)
        self.only_copies = only_copies
        self.shrink = shrink

    @property
    def of_the_model(self) -> bool:
        """False: where nothing is observed nothing is smoothed."""
        return False

    def root(self, weighted: Weighted) -> Float[Array, "rank state"]:
        """Return rows of which random combinations have the kernel's covariance.

        Where one member has all the weight, it is the covariance of equal weights.
        """
        flat = flatten(weighted.members)
        members, size = flat.shape
        weights = weighted.weights.astype(flat.dtype)
        fine = jnp.all(jnp.isfinite(flat), axis=1).astype(flat.dtype)
        alike = fine / jnp.maximum(jnp.sum(fine), 1)
        # Weights this near to (1, 0, 0, ...) tell nothing of a spread.
        alone = 1 - jnp.sum(weights**2) < 64 * members * jnp.finfo(flat.dtype).eps
        weights = jnp.where(alone, alike, weights)
        anomalies = weighted_anomalies(flat, weights)
        scale = weights * unbias(weights)
        some = scale > 0
        scale = jnp.where(some, jnp.sqrt(jnp.where(some, scale, 1)), 0)
        rows = scale[:, None] * anomalies
        return self._width(members, size, flat.dtype) * (
            _triangle(rows) if members > size else rows
        )

    def __call__(
        self,
        members: PyTree[Array],
        ancestors: Int[Array, "member"],
        before: Weighted,
        *,
        key: Key[Array, ""] | None = None,
    ) -> PyTree[Array]:
        """Return resampled members, moved at random.

        Args:
            members: what was resampled.
            ancestors: the index that each had before.
            before: the weighted ensemble before, of the structure of `members`.
            key: for the noise.

        Raises:
            ValueError: there is no key.
        """
        if key is None:
            raise ValueError("`key` is needed to draw from kernels; give one.")
        root, count = self.root(before), len(ancestors)
        noise = matmul(jr.normal(key, (count, len(root)), root.dtype), root)
        if self.only_copies:
            copies = jnp.zeros(count, jnp.int32).at[ancestors].add(1)
            noise = jnp.where(copies[ancestors][:, None] > 1, noise, 0)
        if self.shrink:
            flat = flatten(members)
            anomalies = weighted_anomalies(flat, jnp.full(count, 1 / count, flat.dtype))
            width = self._width(count, flat.shape[1], flat.dtype)
            # Wider kernels than the ensemble leave nothing to keep.
            kept = jnp.maximum(1 - width**2, 0)
            kept = jnp.where(kept > 0, jnp.sqrt(jnp.where(kept > 0, kept, 1)), 0)
            noise = noise + (kept - 1) * anomalies
        return shift(members, noise)

    def _width(self, members, size, dtype):
        return self.bandwidth.astype(dtype) * members ** (-1 / (size + 4))


def flatten(members: PyTree[Array]) -> Float[Array, "member state"]:
    """Return the real numbers of the inexact leaves, one row for each member.

    A complex leaf gives its real, then its imaginary parts.
    """
    dtype = real_dtype(members)
    return jnp.concatenate(
        [
            part.reshape(len(part), -1).astype(dtype)
            for leaf in jax.tree.leaves(members)
            if eqx.is_inexact_array(leaf)
            for part in _parts(leaf)
        ],
        axis=1,
    )


def shift(
    members: PyTree[Array], change: Float[Array, "member state"]
) -> PyTree[Array]:
    """Return members plus a change in the order of `flatten`, in their dtypes."""
    leaves, structure = jax.tree.flatten(members)
    start, moved = 0, []
    for leaf in leaves:
        if not eqx.is_inexact_array(leaf):
            moved.append(leaf)
            continue
        parts = []
        for part in _parts(leaf):
            size = part[0].size
            piece = change[:, start : start + size].reshape(part.shape)
            parts.append(piece.astype(part.dtype))
            start += size
        moved.append(leaf + (jax.lax.complex(*parts) if len(parts) == 2 else parts[0]))
    return jax.tree.unflatten(structure, moved)


def healthy(members: PyTree[Array]) -> Bool[Array, "member"]:
    """Return which members are finite in all leaves of real or complex numbers."""
    fine = jnp.ones(count_members(members), bool)
    for leaf in jax.tree.leaves(members):
        if eqx.is_inexact_array(leaf):
            fine = fine & jnp.all(jnp.isfinite(leaf).reshape(len(leaf), -1), axis=1)
    return fine


def _parts(leaf):
    return (leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,)


def _triangle(rows: Float[Array, "member state"]) -> Float[Array, "state state"]:
    """Return a triangular root of `rows' rows`, which has a derivative.

    The factorisation sees correlations, and a hair more than 1 on their diagonal, so
    that entries without spread, or equal ones, do no harm.
    """
    variance = jnp.sum(rows**2, axis=0)
    some = variance > 0
    std = jnp.where(some, jnp.sqrt(jnp.where(some, variance, 1)), 0)
    unit = rows / jnp.where(some, std, 1)[None, :]
    hair = 8 * (1 + rows.shape[1]) * jnp.finfo(rows.dtype).eps
    identity = jnp.diag(jnp.where(some, hair, 1).astype(rows.dtype))
    lower = jnp.linalg.cholesky(matmul(unit.T, unit) + identity)
    return lower.T * std[None, :]
