"""Which member comes closest, and how close?"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, DTypeLike, Float

from skyens.scores._sample import Sample, check_member_count, sample
from skyens.scores._sums import (
    Sum,
    Sums,
    add_terms,
    empty_sums,
    merge_sums,
    ratio,
    root,
)


class Best(NamedTuple):
    """What `BestMember` gives."""

    frequency: Float[Array, "... member"]  # of being closest: 1 / members if all equal
    distance: Float[Array, "..."]  # mean distance of the closest, in the field's units


class BestMember(eqx.Module):
    """How often each member is the closest to the truth, and how close the closest is.

    Closest at a point, by the absolute error; or, with `field_axes`, over the field of
    that many trailing axes, by the root of its weighted mean squared error, so that two
    for (latitude, longitude) ask which member has the best map. Members equally close
    share the point, or the field, in equal parts. A field has the weight of its points.
    Where members are masked, each is measured where it is valid. Arguments and state:
    see `Statistic`.
    """

    members: int = eqx.field(static=True)
    field_axes: int = eqx.field(static=True, default=0)

    def __check_init__(self):
        if self.members < 1:
            raise ValueError(f"`members` must be at least 1, got {self.members}.")
        if self.field_axes < 0:
            raise ValueError(f"`field_axes` must not be negative: {self.field_axes}.")

    def init(self, shape: tuple[int, ...] = (), dtype: DTypeLike | None = None) -> Sums:
        """Return the state that has seen nothing, with `shape` as kept axes."""
        shapes = {"weight": shape, "best": (*shape, self.members), "distance": shape}
        return empty_sums(shapes, dtype)

    def update(
        self,
        state: Sums,
        ensemble: Float[Array, "member ..."],
        truth: Float[Array, "..."],
        weights: Float[Array, "..."] | None = None,
        where: Bool[Array, "..."] | None = None,
    ) -> Sums:
        """Return the state that has seen these forecasts too.

        Raises:
            ValueError: as for every statistic, `ensemble` has not `members` members, or
                the truth has no `field_axes` axes besides those kept.
        """
        check_member_count(ensemble, self.members)
        seen = sample(state, ensemble, truth, weights, where)
        kept = state["weight"].high.ndim
        if truth.ndim - kept < self.field_axes:
            raise ValueError(
                f"A field has {self.field_axes} axes, but `truth` of shape "
                f"{truth.shape} has {truth.ndim - kept} besides the {kept} kept."
            )
        weight = seen.weights_of(least=1)
        distances, weight = self._distances(seen, weight)
        best = distances.min(axis=0)
        known = ~jnp.isinf(best)  # infinite where no member is valid
        best = jnp.where(known, best, 0)
        ties = jnp.sum(distances == best[None], axis=0, dtype=weight.dtype)
        part = weight / jnp.where(known & (ties > 0), ties, 1)
        part = jnp.where(jnp.isnan(best), jnp.nan, part)
        share = lambda distance: Sum.over(
            jnp.where(distance == best, part, 0 * part), kept
        )
        # Member after member, for the memory of one.
        shares = lax.map(share, distances)
        shares = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), shares)
        return add_terms(state, weight=weight, best=shares, distance=weight * best)

    def merge(self, first: Sums, second: Sums) -> Sums:
        """Return the state that has seen what both have."""
        return merge_sums(first, second)

    def finalize(self, state: Sums) -> Best:
        """Return frequencies that add up to 1, and the distance; 0 if nothing valid."""
        weight = state["weight"].value
        return Best(
            frequency=ratio(state["best"].value, weight[..., None]),
            distance=ratio(state["distance"].value, weight),
        )

    def _distances(
        self, seen: Sample, weight: Float[Array, "..."]
    ) -> tuple[Float[Array, "member ..."], Float[Array, "..."]]:
        """Return each member's distance, infinite if masked, and weights of fields."""
        departures = seen.departures(seen.truth)
        if self.field_axes == 0:
            # By the sign, as the derivative of an absolute value at 0 would be 1.
            distances = departures * jnp.sign(departures)
            if seen.valid is not None:
                distances = jnp.where(seen.valid, distances, jnp.inf)
            return distances, weight
        axes = tuple(range(-self.field_axes, 0))
        total = weight.sum(axis=axes)
        if seen.valid is None:
            share = ratio(weight, jnp.expand_dims(total, axes))
            return root(jnp.sum(share[None] * departures**2, axis=axes)), total
        own = jnp.where(seen.valid, weight[None], 0)
        share = ratio(own, own.sum(axis=axes, keepdims=True))
        distances = root(jnp.sum(share * departures**2, axis=axes))
        return jnp.where((own > 0).any(axis=axes), distances, jnp.inf), total
