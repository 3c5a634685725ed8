"""From the scores of member streams to their means over points and starts."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, DTypeLike, Float

from skyens.scores._member_stream import MemberScores
from skyens.scores._rank_shares import bin_share
from skyens.scores._sums import (
    Sum,
    Sums,
    add_terms,
    empty_sums,
    merge_sums,
    ratio,
    root,
)


class StreamSummary(NamedTuple):
    """What `StreamStatistics` gives: the numbers of the statistics of their names."""

    crps: Float[Array, "..."]  # fair, in the field's units
    rmse: Float[Array, "..."]  # of the ensemble mean
    bias: Float[Array, "..."]  # of the ensemble mean, forecast minus truth
    spread: Float[Array, "..."]  # root of the mean unbiased variance
    spread_skill: Float[Array, "..."]  # corrected for the number of members
    ranks: Float[Array, "... bin"]  # frequencies of the truth's rank, in equal bins
    failed: Float[Array, "..."]  # share of members that were not finite


class StreamStatistics(eqx.Module):
    """A statistic whose updates take what `MemberStream` gives for one truth.

    A verification over many starts of many members each is then one `lax.scan` inside
    another, in the memory of a chunk of members:

        def verify_start(total, start):
            grow = lambda seen, index: (stream.update(seen, chunk(start, index)), None)
            seen, _ = lax.scan(grow, stream.init(truth(start)), jnp.arange(chunks))
            return statistics.update(total, stream.finalize(seen), weights), None

        total, _ = lax.scan(verify_start, statistics.init(), starts)
        summary = statistics.finalize(total)

    The numbers are those of `RMSE`, `Bias`, `SpreadSkill`, `RankHistogram` and, but for
    the error of streaming, `CRPS` given all members at once: points have weight where
    members are enough for each. The histogram has `bins` bins, each of so many ranks of
    the whole ensemble: `RankHistogram(members)` has `members + 1`. State: see
    `Statistic`.
    """

    bins: int = eqx.field(static=True, default=20)

    def __check_init__(self):
        if self.bins < 1:
            raise ValueError(f"`bins` must be at least 1, got {self.bins}.")

    def init(self, shape: tuple[int, ...] = (), dtype: DTypeLike | None = None) -> Sums:
        """Return the state that has seen nothing, with `shape` as kept axes."""
        names = "weight", "error", "squared_error", "members", "failed"
        pairs = "pair_weight", "variance", "expected_square", "pair_squared_error"
        names = dict.fromkeys((*names, *pairs, "score_weight", "score"), shape)
        return empty_sums({**names, "ranks": (*shape, self.bins)}, dtype)

    def update(
        self,
        state: Sums,
        seen: MemberScores,
        weights: Float[Array, "..."] | None = None,
        where: Bool[Array, "..."] | None = None,
    ) -> Sums:
        """Return the state that has seen these points too.

        Args:
            state: of any number of truths.
            seen: scores of points `(*shape, *field)`, with the kept `shape` in front.
            weights: such as `grid.weights[:, None]`; broadcast to the points from the
                right.
            where: broadcasts to the points from the right; False has weight 0.

        Raises:
            ValueError: the shapes do not fit each other or the axes that the state
                keeps.
        """
        points, dtype = seen.error.shape, seen.error.dtype
        kept = state["weight"].high.shape
        if points[: len(kept)] != kept:
            raise ValueError(
                f"The state was made by `init(shape={kept})` and keeps these leading "
                f"axes, but what is scored has shape {points}."
            )
        weights = jnp.ones((), dtype) if weights is None else weights.astype(dtype)
        weights = _broadcast("weights", weights, points)
        chosen = jnp.ones((), bool) if where is None else where
        chosen = _broadcast("where", chosen, points)
        weight_where = lambda enough: jnp.where(chosen & enough, weights, 0)
        # What has no weight may be NaN, which times 0 would stay NaN.
        clean = lambda x: jnp.where(chosen, x, 0)
        weight = weight_where(seen.count >= 1)
        pair_weight = weight_where(seen.count >= 2)
        score_weight = weight_where(seen.paired >= 2)
        count, below, tied = (
            x.astype(dtype) for x in (seen.count, seen.below, seen.tied)
        )
        error, variance = clean(seen.error), clean(seen.variance)
        below = jnp.where(jnp.isnan(error), jnp.nan, below)

        def share(index):
            return Sum.over(
                weight * bin_share(below, tied, count, index, self.bins), len(kept)
            )

        bins = lax.map(share, jnp.arange(self.bins, dtype=dtype))
        given = weight_where(True)
        failed = seen.failed.astype(dtype)
        return add_terms(
            state,
            weight=weight,
            error=weight * error,
            squared_error=weight * error**2,
            members=given * (count + failed),
            failed=given * failed,
            pair_weight=pair_weight,
            variance=pair_weight * variance,
            expected_square=pair_weight * variance * (1 + 1 / jnp.maximum(count, 1)),
            pair_squared_error=pair_weight * error**2,
            score_weight=score_weight,
            score=score_weight * clean(seen.crps),
            ranks=jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), bins),
        )

    def merge(self, first: Sums, second: Sums) -> Sums:
        """Return the state that has seen what both have."""
        return merge_sums(first, second)

    def finalize(self, state: Sums) -> StreamSummary:
        """Return the means; 0 where nothing valid was seen."""
        value = {name: total.value for name, total in state.items()}
        weight, pair_weight = value["weight"], value["pair_weight"]
        return StreamSummary(
            crps=ratio(value["score"], value["score_weight"]),
            rmse=root(ratio(value["squared_error"], weight)),
            bias=ratio(value["error"], weight),
            spread=root(ratio(value["variance"], pair_weight)),
            spread_skill=ratio(
                root(value["expected_square"]), root(value["pair_squared_error"])
            ),
            ranks=ratio(value["ranks"], weight[..., None]),
            failed=ratio(value["failed"], value["members"]),
        )


def _broadcast(name: str, array: Array, points: tuple[int, ...]) -> Array:
    try:
        return jnp.broadcast_to(array, points)
    except ValueError:
        raise ValueError(
            f"`{name}` of shape {array.shape} does not broadcast to the points, "
            f"{points}."
        ) from None
