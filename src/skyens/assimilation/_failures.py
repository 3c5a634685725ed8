"""Members that failed: found, counted, and replaced from the healthy ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from skyens.assimilation._ensemble import matmul


class Replace(eqx.Module):
    """Replace members that are not finite, or beyond a bound, by mixing the others.

    With m the mean of the n healthy members, A their anomalies, a that of one of them
    drawn at random, and z numbers of N(0, 1), a failed member becomes

        m + (1 - noise**2)**1/2 a + noise * z A / (n - 1)**1/2.

    Mean and covariance stay those of the healthy members, and balances that are linear
    stay too. Leaves of integers are those of the member drawn. The healthy ones come
    back bit for bit.

    A gradient through a step that failed is that of the step there: NaN, as a rule.
    """

    limit: PyTree[Array]
    noise: Float[Array, ""]
    most: float = eqx.field(static=True)

    def __init__(
        self,
        limit: PyTree[float | int | Array] = float("inf"),
        most: float | int = 0.5,
        *,
        noise: float | int | Float[Array, ""] = 0.5,
    ):
        """Set what counts as failed, and how many may.

        Args:
            limit: a member with a larger absolute value has failed, as has one that is
                not finite. One number for all leaves of real or complex numbers, in
                their units; or a pytree of the state's structure, whose leaves
                broadcast to the state's.
            most: the share of members that may fail at once, from 0 (none) to 1.
            noise: from 0 (copies of healthy members) to 1 (no trace of any of them).

        Raises:
            ValueError: `most` lies outside [0, 1].
            EquinoxRuntimeError: `noise` lies outside [0, 1].
        """
        if not 0 <= most <= 1:
            raise ValueError(f"`most` must lie in [0, 1], got {most}.")
        self.limit = jax.tree.map(lambda bound: jnp.asarray(bound, float), limit)
        noise = jnp.asarray(noise, float)
        self.noise = eqx.error_if(
            noise, ~((noise >= 0) & (noise <= 1)), "`noise` must lie in [0, 1]."
        )
        self.most = float(most)

    def find(self, members: PyTree[Array]) -> Bool[Array, "member"]:
        """Return which members have failed.

        Raises:
            ValueError: `limit` has neither one number nor the state's structure.
        """
        limit = self.limit
        if eqx.is_array(limit) and limit.ndim == 0:
            limit = jax.tree.map(lambda _: limit, members)
        if jax.tree.structure(limit) != jax.tree.structure(members):
            raise ValueError(
                "`limit` must be one number or have the structure of the state, "
                f"{jax.tree.structure(members)}, got {jax.tree.structure(limit)}."
            )
        found = jax.tree.leaves(jax.tree.map(_beyond, members, limit))
        return jnp.any(jnp.stack(found), axis=0)

    def replace(
        self,
        tree: PyTree[Array],
        failed: Bool[Array, "member"],
        *,
        weights: Float[Array, "member"] | None = None,
        key: Key[Array, ""],
    ) -> PyTree[Array]:
        """Return `tree` with its `failed` members replaced.

        `tree` is what belongs to the members, with a leading member axis: their states,
        and what they showed earlier. With `weights` members are drawn by them.
        """
        pick, mix = jr.split(key)
        healthy = ~failed
        chance = jnp.ones(failed.shape) if weights is None else weights
        chance = jnp.where(healthy, chance, 0)
        donor = jr.categorical(pick, jnp.log(chance), shape=failed.shape)
        coefficients = jr.normal(mix, (len(failed), len(failed)))
        number = jnp.sum(healthy)
        degrees = jnp.maximum(number - 1, 1).astype(coefficients.dtype)
        coefficients = coefficients * jnp.sqrt(1 / degrees)

        def mend(leaf):
            along = lambda values: values.reshape(-1, *(1,) * (leaf.ndim - 1))
            if not eqx.is_inexact_array(leaf):
                return jnp.where(along(failed), leaf[donor], leaf)
            noise = self.noise.astype(leaf.real.dtype)
            first = leaf[jnp.argmax(healthy)]
            shifted = jnp.where(along(healthy), leaf - first[None], 0)
            mean = jnp.sum(shifted, axis=0) / jnp.maximum(number, 1).astype(leaf.dtype)
            anomalies = jnp.where(along(healthy), shifted - mean[None], 0)
            flat = anomalies.reshape(len(anomalies), -1)
            drawn = matmul(coefficients.astype(leaf.dtype), flat).reshape(leaf.shape)
            rest = 1 - noise**2
            # Double where: the square root must never see the 0 it would differentiate.
            kept = jnp.where(rest > 0, jnp.sqrt(jnp.where(rest > 0, rest, 1)), 0)
            new = (first + mean)[None] + kept.astype(leaf.dtype) * anomalies[donor]
            new = new + noise.astype(leaf.dtype) * drawn
            return jnp.where(along(failed), new, leaf)

        return jax.tree.map(mend, tree)

    def check(self, tree: Any, failed: Int[Array, "time"], members: int) -> Any:
        """Return `tree`, or fail where too many of the members failed at one time.

        Raises:
            EquinoxRuntimeError: at some time more than `most` of them have, or fewer
                than two are left (of one member, none); it says how many and when.
        """
        allowed = min(int(self.most * members), members - min(2, members))
        wrong = failed > allowed
        when = jnp.argmax(wrong)
        index = when.astype(failed.dtype) * (members + 1) + failed[when]
        messages = _TooMany(len(failed), members, allowed)
        any_wrong = jnp.any(wrong)
        index = jnp.where(any_wrong, index, 0)
        return eqx.branched_error_if(tree, any_wrong, index, messages)


@dataclass(frozen=True)
class _TooMany(Sequence):
    """The messages of all times and numbers of failures, each made when it is read."""

    times: int
    members: int
    allowed: int

    def __len__(self) -> int:
        return self.times * (self.members + 1)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        when, failed = divmod(index, self.members + 1)
        return (
            f"{failed} of {self.members} members failed in the forecast to analysis "
            f"{when} (counted from 0), {self.allowed} may: they are not finite or "
            "beyond `limit`. Look at the step, the initial ensemble and the inflation, "
            "or set `most` of `failures` higher."
        )


def _beyond(leaf, bound):
    """Whether something of a member is not finite, or larger than the bound."""
    if not eqx.is_inexact_array(leaf):
        return jnp.zeros(len(leaf), bool)
    size = jnp.abs(leaf)
    bound = jnp.broadcast_to(bound.astype(size.dtype), leaf.shape[1:])
    wrong = ~jnp.isfinite(size) | (size > bound[None])
    return jnp.any(wrong.reshape(len(leaf), -1), axis=1)
