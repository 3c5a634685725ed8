"""Where the truth falls among the sorted members."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, DTypeLike, Float

from skyens.scores._sample import sample
from skyens.scores._sums import Sum, Sums, add_terms, empty_sums, merge_sums, ratio


class RankHistogram(eqx.Module):
    """The frequencies of the truth's rank among `members`: flat if it is one of them.

    A truth above `b` members and equal to `t` more belongs to the ranks `b ... b + t`
    in equal parts, so that ties (dry days) leave the histogram of a reliable ensemble
    flat, without random numbers. Where members are masked, the `n` others divide the
    unit interval into `n + 1` parts, and the part of the truth is shared among the
    `members + 1` bins that it overlaps: flat again. Arguments and state: see
    `Statistic`; a point without members has no weight.

    Source: Hamill (2001), Mon. Wea. Rev. 129, 550-560.
    """

    members: int = eqx.field(static=True)

    def __check_init__(self):
        if self.members < 1:
            raise ValueError(f"`members` must be at least 1, got {self.members}.")

    def init(self, shape: tuple[int, ...] = (), dtype: DTypeLike | None = None) -> Sums:
        """Return the state that has seen nothing, with `shape` as kept axes."""
        ranks = (*shape, self.members + 1)
        return empty_sums({"weight": shape, "ranks": ranks}, dtype)

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
            ValueError: as for every statistic, or `ensemble` has not `members` members.
        """
        if ensemble.ndim and ensemble.shape[0] != self.members:
            raise ValueError(
                f"`ensemble` has {ensemble.shape[0]} members, but this histogram is "
                f"for {self.members}."
            )
        seen = sample(state, ensemble, truth, weights, where)
        weight = seen.weights_of(least=1)
        departures = seen.departures(seen.truth)
        below, tied = departures < 0, departures == 0
        if seen.valid is not None:
            tied &= seen.valid
        count = lambda members: jnp.sum(members, axis=0, dtype=seen.truth.dtype)
        width = (self.members + 1) / (seen.count + 1)  # of one rank, in bins
        # NaN, which compares as false, must not pass as a member above the truth.
        lost = jnp.isnan(departures).any(axis=0)
        start = jnp.where(lost, jnp.nan, count(below)) * width
        length = (count(tied) + 1) * width
        kept = state["weight"].high.ndim

        def share(bin_start):
            overlap = jnp.minimum(start + length, bin_start + 1)
            overlap = jnp.maximum(overlap - jnp.maximum(start, bin_start), 0)
            return Sum.over(weight * overlap / length, kept)

        # Bin after bin, for the memory of one: there may be hundreds.
        bins = jnp.arange(self.members + 1, dtype=seen.truth.dtype)
        ranks = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), lax.map(share, bins))
        return add_terms(state, weight=weight, ranks=ranks)

    def merge(self, first: Sums, second: Sums) -> Sums:
        """Return the state that has seen what both have."""
        return merge_sums(first, second)

    def finalize(self, state: Sums) -> Float[Array, "... rank"]:
        """Return frequencies that add up to 1; all 0 where nothing valid was seen."""
        return ratio(state["ranks"].value, state["weight"].value[..., None])
