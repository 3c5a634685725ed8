"""Resampling: from weighted members to as many that count the same.

The contract is `resampling(weighted, *, key=None) -> members`: any such callable fits
every particle filter, and `Weighted.resample`. Most draw indices, so that a member of
weight w is there N w times in the mean, and copy whole members, leaves of integers
included; they also offer these `indices(log_weights, *, key)`. No derivative goes
through the choice of an index: gradients flow through the members that were chosen, and
what they say of the weights (of the evidence, say) is biased. `OptimalTransport` mixes
members instead, and has a derivative.

A member of weight 0 is never chosen. If all weights are 0 they count as equal.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, Key, PyTree

from skyens.assimilation._weighted import Weighted, normalise

LogWeights = Float[Array, "member"]
Indices = Int[Array, "member"]


class Resampling(eqx.Module):
    """What resampling by indices has in common: it copies whole members."""

    @abc.abstractmethod
    def indices(
        self, log_weights: LogWeights, *, key: Key[Array, ""] | None = None
    ) -> Indices:
        """Return the index of each new member among the old ones, in their order."""

    def __call__(
        self, weighted: Weighted, *, key: Key[Array, ""] | None = None
    ) -> PyTree[Array]:
        """Return equally weighted members, copies of the old ones.

        Raises:
            ValueError: there is no key.
        """
        index = self.indices(weighted.log_weights, key=key)
        return jax.tree.map(lambda leaf: leaf[index], weighted.members)


class Systematic(Resampling):
    """N points at equal distances, moved together by one uniform number.

    A member of weight w is there floor(N w) or ceil(N w) times. Cheapest, and usually
    of lowest variance, which however depends on the order of the members.

    Source: Carpenter, Clifford & Fearnhead (1999), IEE Proc. F 146, 2-7.
    """

    def indices(
        self, log_weights: LogWeights, *, key: Key[Array, ""] | None = None
    ) -> Indices:
        """Return the index of each new member, increasing."""
        shift = jr.uniform(_given(key), (), log_weights.dtype)
        return _invert(_probabilities(log_weights), _grid(log_weights) + shift)


class Stratified(Resampling):
    """One point, uniform in each of N intervals of equal length.

    Source: Kitagawa (1996), J. Comput. Graph. Stat. 5, 1-25.
    """

    def indices(
        self, log_weights: LogWeights, *, key: Key[Array, ""] | None = None
    ) -> Indices:
        """Return the index of each new member, increasing."""
        shift = jr.uniform(_given(key), log_weights.shape, log_weights.dtype)
        return _invert(_probabilities(log_weights), _grid(log_weights) + shift)


class Multinomial(Resampling):
    """N independent draws: the highest variance, and the simplest theory.

    Sorted uniform numbers come from the spacings of a Poisson process, without sorting.

    Source: Gordon, Salmond & Smith (1993), IEE Proc. F 140, 107-113; Devroye (1986),
    Non-Uniform Random Variate Generation, section V.3.1.
    """

    def indices(
        self, log_weights: LogWeights, *, key: Key[Array, ""] | None = None
    ) -> Indices:
        """Return the index of each new member, increasing."""
        size = len(log_weights)
        gaps = jr.exponential(_given(key), (size + 1,), log_weights.dtype)
        passed = jnp.cumsum(gaps)
        points = size * (passed[:-1] / passed[-1])
        return _invert(_probabilities(log_weights), points)


class Residual(Resampling):
    """floor(N w) copies for sure, and independent draws for the fractions that remain.

    Source: Liu & Chen (1998), J. Amer. Stat. Assoc. 93, 1032-1044.
    """

    def indices(
        self, log_weights: LogWeights, *, key: Key[Array, ""] | None = None
    ) -> Indices:
        """Return the index of each new member, increasing."""
        copies, fraction = _whole_and_rest(log_weights)
        size = len(log_weights)
        left = size - jnp.sum(copies, dtype=jnp.int32)
        points = size * jr.uniform(_given(key), (size,), log_weights.dtype)
        drawn = _invert(fraction, points)
        # As many of the N draws as are needed; shapes stay static.
        needed = (jnp.arange(size, dtype=jnp.int32) < left).astype(copies.dtype)
        return _repeat(copies.at[drawn].add(needed))


class SSP(Resampling):
    """Srinivasan's sampling process: fractions are settled in pairs.

    As with `Systematic`, a member of weight w is there floor(N w) or ceil(N w) times;
    and the numbers of copies are negatively associated, from which consistency follows
    for any order of the members.

    Source: Gerber, Chopin & Whiteley (2019), Ann. Stat. 47, 2236-2260, section 3.
    """

    def indices(
        self, log_weights: LogWeights, *, key: Key[Array, ""] | None = None
    ) -> Indices:
        """Return the index of each new member, increasing."""
        copies, fraction = _whole_and_rest(log_weights)
        size = len(log_weights)
        uniform = jr.uniform(_given(key), (size - 1,), log_weights.dtype)

        def pair(carry, x):
            # Of two fractions one becomes 0 or 1, and the other one takes the rest.
            (first, p), (second, q, u) = carry, x
            total = p + q
            above = total > 1
            chance = jnp.where(above, 1 - q, p)
            weight = jnp.where(above, 2 - total, total)
            stays = u * weight < chance  # the first: up to 1, or keeps the sum
            up = jnp.where(stays, first, second)
            settled_up = jnp.where(above, up, size)  # beyond the end: none
            other = jnp.where(stays, second, first)
            index = jnp.where(above, other, up)
            return (index, jnp.where(above, total - 1, total)), settled_up

        numbers = jnp.arange(size, dtype=jnp.int32)
        start = (numbers[0], fraction[0])
        (last, _), up = jax.lax.scan(pair, start, (numbers[1:], fraction[1:], uniform))
        copies = copies.at[up].add(1, mode="drop")
        # The last fraction is 0 or 1, but for rounding: it makes the number right.
        return _repeat(copies.at[last].add(size - jnp.sum(copies, dtype=jnp.int32)))


class OptimalTransport(eqx.Module):
    """Carry weighted members to equally weighted ones at least cost: differentiable.

    The plan P couples the weights with equal ones at the least mean squared distance,
    plus `epsilon` times its relative entropy; a new member is the mean of the old ones
    under its column of P. The ensemble's mean is kept to rounding, its spread shrinks
    as `epsilon` grows (0.5 is smooth, 0.01 close to the ensemble transform of Reich).
    Distances are over the leaves that have derivatives, in units of the largest
    standard deviation times the root of the state's size. Nothing is random: no key is
    needed. Leaves of integers are copied from the largest entry of the column.

    Sources: Corenflos et al. (2021), ICML 38, 2100-2111; Reich (2013), SIAM J. Sci.
    Comput. 35, A2013-A2024; Peyre & Cuturi (2019), Computational Optimal Transport,
    section 4.4, for the iteration in logarithms.
    """

    epsilon: Float[Array, ""]
    iterations: int = eqx.field(static=True)

    def __init__(
        self, epsilon: float | Float[Array, ""] = 0.1, *, iterations: int = 100
    ):
        """Set the strength of the entropy and how often the plan is improved.

        Small `epsilon` need more iterations; the mean is right after any number.

        Raises:
            ValueError: `iterations` is below 1.
            EquinoxRuntimeError: `epsilon` is not above 0.
        """
        if iterations < 1:
            raise ValueError(f"`iterations` must be at least 1, got {iterations}.")
        epsilon = jnp.asarray(epsilon, float)
        message = "`epsilon` must be above 0."
        self.epsilon = eqx.error_if(epsilon, ~(epsilon > 0), message)
        self.iterations = iterations

    def __call__(
        self, weighted: Weighted, *, key: Key[Array, ""] | None = None
    ) -> PyTree[Array]:
        """Return equally weighted members, in the dtypes and units of the old ones.

        Raises:
            ValueError: no leaf has real or complex numbers.
        """
        move = self.plan(weighted)
        ancestor = jnp.argmax(move, axis=1)
        weights = weighted.weights

        def carry(leaf):
            if not eqx.is_inexact_array(leaf):
                return leaf[ancestor]
            # About one that counts, so that large values cost no accuracy.
            first = leaf[jnp.argmax(weights > 0)][None]
            counted = (weights > 0).reshape(-1, *(1,) * (leaf.ndim - 1))
            shifted = jnp.where(counted, leaf - first, 0)
            flat = shifted.reshape(len(leaf), -1)
            mixed = jnp.matmul(move.astype(flat.dtype), flat, precision="highest")
            return first + mixed.reshape(leaf.shape)

        return jax.tree.map(carry, weighted.members)

    def plan(self, weighted: Weighted) -> Float[Array, "new old"]:
        """Return the matrix from old members to new ones, N times the plan.

        Its columns add up to N times the weights, whatever the number of iterations,
        its rows to 1 once these suffice.
        """
        log_weights = weighted.log_weights
        size, dtype = len(log_weights), log_weights.dtype
        cost = _distances(weighted)
        epsilon = self.epsilon.astype(dtype)
        level = -jnp.log(jnp.asarray(size, dtype))

        # From large entropy to small: each plan is a good start for the next.
        progress = jnp.arange(self.iterations, dtype=dtype) * (2 / self.iterations)
        strength = epsilon * jnp.minimum(epsilon, 1) ** -jnp.maximum(1 - progress, 0)

        @jax.checkpoint
        def improve(potential, strength):
            affinity = (potential[None, :] - cost) / strength
            old = log_weights - jax.nn.logsumexp(affinity, axis=1)
            short = level - jax.nn.logsumexp(old[:, None] - cost / strength, axis=0)
            return strength * short, None

        potential, _ = jax.lax.scan(improve, jnp.zeros(size, dtype), strength)
        logits = (potential[None, :] - cost) / epsilon
        # The weights last: they are what must be exact, for the mean to be.
        rows = jax.nn.log_softmax(logits, axis=1) + log_weights[:, None]
        return size * jnp.exp(rows).T


def _distances(weighted: Weighted) -> Float[Array, "member member"]:
    """Squared distances of members over the largest variance times the state's size."""
    dtype = weighted.log_weights.dtype
    weights = weighted.weights
    leaves = [x for x in jax.tree.leaves(weighted.members) if eqx.is_inexact_array(x)]
    if not leaves:
        raise ValueError("there is nothing to transport: no leaf has real numbers.")
    parts = [
        part.reshape(len(part), -1).astype(dtype)
        for leaf in leaves
        for part in ((leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,))
    ]
    counted = (weights > 0)[:, None]
    flat = jnp.concatenate(parts, axis=1)
    shifted = jnp.where(counted, flat - flat[jnp.argmax(weights > 0)][None], 0)
    size = shifted.shape[1]
    mean = weights @ shifted
    variance = jnp.max(weights @ (shifted - mean[None, :]) ** 2)
    unit = jnp.where(variance > 0, variance * size, 1)

    def row(one):
        return jnp.sum((shifted - one[None, :]) ** 2, axis=1)

    return jax.lax.map(row, shifted) / unit


def _given(key: Any) -> Any:
    if key is None:
        raise ValueError("`key` is needed to resample at random; give one.")
    return key


def _probabilities(log_weights: LogWeights) -> LogWeights:
    return jnp.exp(normalise(jax.lax.stop_gradient(log_weights))[0])


def _grid(log_weights: LogWeights) -> LogWeights:
    return jnp.arange(len(log_weights), dtype=log_weights.dtype)


def _invert(
    probabilities: Float[Array, "member"], points: Float[Array, "point"]
) -> Int[Array, "point"]:
    """Return where `points`, from 0 to N, fall among the summed probabilities."""
    summed = jnp.cumsum(probabilities)
    total = jnp.where(summed[-1] > 0, summed[-1], 1)
    index = jnp.searchsorted(summed / total * len(summed), points, side="right")
    # Rounding may put a point at the very end, past the last that has any probability.
    last = len(summed) - 1 - jnp.argmax(probabilities[::-1] > 0)
    return jnp.minimum(index, last.astype(index.dtype))


def _whole_and_rest(
    log_weights: LogWeights,
) -> tuple[Indices, LogWeights]:
    """Return the whole part of N w for each member, and its fraction."""
    expected = len(log_weights) * _probabilities(log_weights)
    # Rounding must not turn 3 into 2 and a fraction of almost 1.
    slack = len(log_weights) * jnp.finfo(expected.dtype).eps
    whole = jnp.floor(expected + slack)
    fraction = jnp.clip(expected - whole, 0, 1)
    return whole.astype(jnp.int32), jnp.where(fraction > slack, fraction, 0)


def _repeat(copies: Indices) -> Indices:
    """Return each index as often as `copies` says; they add up to their number."""
    numbers = jnp.arange(len(copies), dtype=jnp.int32)
    last = jnp.cumsum(copies, dtype=jnp.int32)
    return jnp.searchsorted(last, numbers, side="right").astype(jnp.int32)
