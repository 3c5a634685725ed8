"""Where the truth falls among the sorted members."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import ndtr
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from skyens.scores._rank_shares import bin_share
from skyens.scores._sample import Sample, sample, to_truth
from skyens.scores._sums import Sum, Sums, add_terms, empty_sums, merge_sums, ratio


class RankHistogram(eqx.Module):
    """The frequencies of the truth's rank among `members`: flat if it is one of them.

    A truth above `b` members and equal to `t` more belongs to the ranks `b ... b + t`
    in equal parts, so that ties (dry days) leave the histogram of a reliable ensemble
    flat, without random numbers. Where members are masked, the `n` others divide the
    unit interval into `n + 1` parts, and the part of the truth is shared among the
    `members + 1` bins that it overlaps: flat again. Arguments and state: see
    `Statistic`; a point without members has no weight.

    A truth that is observed with errors ranks too often at the ends. With
    `truth_error`, their standard deviation, each member is given an error of its own,
    and the histogram counts the expectation over all these, without random numbers:
    member `i` lies below the truth `y` with probability `Phi((y - x_i) / error)`, and
    the number below is Poisson-binomial. It is flat if the errors are normal, unbiased
    and independent of each other and of the members. Where the error is 0 it is the
    rank of the truth itself.

    Source: Hamill (2001), Mon. Wea. Rev. 129, 550-560; observation error: Anderson
        (1996), J. Climate 9, 1518-1530, and Saetra et al. (2004), Mon. Wea. Rev. 132,
        1487-1501.
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
        *,
        truth_error: Float[Array, "..."] | None = None,
    ) -> Sums:
        """Return the state that has seen these forecasts too.

        `truth_error` is the standard deviation of the errors of `truth`, in the same
        units, and broadcasts to it; negative, it is NaN. With it, an update needs the
        memory of one more ensemble, and time in proportion to members squared.

        Raises:
            ValueError: as for every statistic, or `ensemble` has not `members` members,
                or `truth_error` does not broadcast to the shape of `truth`.
        """
        if ensemble.ndim and ensemble.shape[0] != self.members:
            raise ValueError(
                f"`ensemble` has {ensemble.shape[0]} members, but this histogram is "
                f"for {self.members}."
            )
        seen = sample(state, ensemble, truth, weights, where)
        weight = seen.weights_of(least=1)
        below, tied, lost = seen.total(
            lambda x: (x < 0, x == 0, jnp.isnan(x)), seen.truth
        )
        # NaN, which compares as false, must not pass as a member above the truth.
        below = jnp.where(lost > 0, jnp.nan, below)
        bins = self.members + 1
        share = lambda index: bin_share(below, tied, seen.count, index, bins)
        if truth_error is not None:
            share = _expected_share(share, seen, truth_error)
        kept = state["weight"].high.ndim
        # Bin after bin, for the memory of one: there may be hundreds.
        each = lambda index: Sum.over(weight * share(index), kept)
        ranks = lax.map(each, jnp.arange(bins, dtype=seen.truth.dtype))
        ranks = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), ranks)
        return add_terms(state, weight=weight, ranks=ranks)

    def merge(self, first: Sums, second: Sums) -> Sums:
        """Return the state that has seen what both have."""
        return merge_sums(first, second)

    def finalize(self, state: Sums) -> Float[Array, "... rank"]:
        """Return frequencies that add up to 1; all 0 where nothing valid was seen."""
        return ratio(state["ranks"].value, state["weight"].value[..., None])


def _expected_share(
    share: Callable[[Array], Array], seen: Sample, truth_error: Float[Array, "..."]
) -> Callable[[Array], Array]:
    """Return `share` of bin `index`, expected over errors of the members."""
    error = to_truth("truth_error", truth_error, seen.truth)
    exact = error == 0
    scale = jnp.where(exact, 1, jnp.where(error < 0, jnp.nan, error))
    chance = ndtr(-seen.departures(seen.truth) / scale[None])
    if seen.valid is not None:
        chance = jnp.where(seen.valid, chance, 0)  # no member, none below
    members = chance.shape[0]
    none = jnp.zeros((members + 1, *chance.shape[1:]), chance.dtype).at[0].set(1)
    none += 0 * chance[:1]  # as `shard_map` wants it to vary from the start

    def add_member(ranks, chance):
        # The member lies above, and the rank stays, or below, and it is one more.
        below = jnp.concatenate([jnp.zeros_like(ranks[:1]), ranks[:-1]])
        return ranks * (1 - chance)[None] + below * chance[None], None

    ranks, _ = lax.scan(add_member, none, chance)
    if seen.valid is None:
        expected = lambda index: ranks[index.astype(int)]
    else:
        expected = _redistributed(ranks, jnp.sum(seen.valid, axis=0), members)
    return lambda index: jnp.where(exact, share(index), expected(index))


def _redistributed(
    ranks: Float[Array, "rank *points"], count: Int[Array, "*points"], members: int
) -> Callable[[Array], Array]:
    """Return the share of bin `index` where `count` members have these `ranks`.

    They divide the unit interval into `count + 1` parts; the distribution function at
    the bin's edges is linear within each.
    """
    function = jnp.cumsum(ranks, axis=0)

    def up_to(edge):
        units = edge * (count + 1)
        part = jnp.minimum(units // (members + 1), count)
        inside = (units - part * (members + 1)) / (members + 1)
        take = lambda x: jnp.take_along_axis(x, part[None], axis=0)[0]
        return take(function) - take(ranks) * (1 - inside.astype(ranks.dtype))

    def share(index):
        edge = index.astype(count.dtype)
        # Rounding could make a difference of equal numbers negative.
        return jnp.maximum(up_to(edge + 1) - up_to(edge), 0)

    return share
