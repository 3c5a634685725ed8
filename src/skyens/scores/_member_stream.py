"""Verify an ensemble of any size, a chunk of members at a time."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from skyens.scores._crps import crps
from skyens.scores._sums import Sum, ratio, root


class MemberState(eqx.Module):
    """What a stream remembers of the members it has seen, point by point.

    Departures are members minus truth. A chunk is what one update has seen.
    """

    truth: Float[Array, "*points"]
    thresholds: Float[Array, "threshold ..."]
    count: Int[Array, "*points"]
    failed: Int[Array, "*points"]
    mean: Sum  # of the departures
    squares: Sum  # of the departures, about their mean
    distance: Sum  # of absolute departures
    paired: Int[Array, "*points"]  # members in chunks of two or more
    pairs: Sum  # over chunks: members times their mean distance from each other
    load: Float[Array, "*points"]  # over chunks: members over members less one
    gap: Float[Array, "*points"]  # over chunks: (estimate by parts - by the whole)^2
    gap_scale: Float[Array, "*points"]  # what `gap` is to be expected in proportion to
    minimum: Float[Array, "*points"]
    maximum: Float[Array, "*points"]
    closest: Float[Array, "*points"]
    below: Int[Array, "*points"]
    tied: Int[Array, "*points"]
    exceedances: Int[Array, "threshold *points"]


class MemberScores(NamedTuple):
    """What `MemberStream` gives, point by point, in the field's units or counts.

    Floats are 0 where too few members were seen.
    """

    count: Int[Array, "*points"]  # members seen and finite
    failed: Int[Array, "*points"]  # members that were not finite, left out of all else
    error: Float[Array, "*points"]  # of the ensemble mean: forecast minus truth
    variance: Float[Array, "*points"]  # over members, unbiased, in units squared
    crps: Float[Array, "*points"]  # fair
    crps_error: Float[Array, "*points"]  # its rms distance from that of all pairs
    paired: Int[Array, "*points"]  # members compared with another; 0: `crps` is 0
    minimum: Float[Array, "*points"]  # of the members
    maximum: Float[Array, "*points"]
    closest: Float[Array, "*points"]  # the best member's absolute error
    below: Int[Array, "*points"]  # members below the truth
    tied: Int[Array, "*points"]  # members equal to the truth
    exceedances: Int[Array, "threshold *points"]  # members above each threshold


class MemberStream(eqx.Module):
    """Scores of an ensemble too large to hold: chunks of members come one by one.

    Memory is that of one chunk and some twenty fields, whatever the number of members.
    `init(truth)`, `update(state, members)` for every chunk, `merge(first, second)` for
    chunks or devices that share a truth (so `all_merge` works), then
    `finalize(state)`. The order and the grouping of members change nothing but `crps`
    and `crps_error`, and the last bits. Moments are those of the departures from the
    truth, merged pairwise and compensated: float32 loses nothing at large offsets or
    biases.

    A member that is NaN or infinite at a point is left out there, and counted as
    `failed`: it never spoils what the others say. A truth that is NaN makes its points
    NaN, unless all members are masked there.

    The fair score is `mean |x - y| - 1/2 mean |x - x'|`. The first mean is exact. The
    second, over all pairs of members, cannot be streamed: it is taken over pairs
    within chunks, each pair once, and chunks are weighted by their members. It is
    unbiased, and with these weights its error has no part that is linear in the
    members, only the degenerate one: about `sqrt(zeta / (2 M m))` for `M` members in
    chunks of `m`, with `zeta` the variance of the part of `|x - x'|` that is no sum
    over members: `0.45 s / sqrt(M m)` for normal members of standard deviation `s`. One
    chunk of all members is exact. `crps_error` estimates this distance from the score
    by all pairs (how far a finite ensemble is from an infinite one is another matter)
    by dealing each chunk out into parts, whose estimate differs from the chunk's by the
    same law; it is NaN where several chunks left nothing to compare, being smaller than
    4. A member alone in its chunk is in no pair, which the error disregards. The
    members of a chunk must be like those of any other: shuffle them if they come in
    groups.

    Source: Chan et al. (1983), Amer. Stat. 37, 242-247 (moments); Hoeffding (1948),
        Ann. Math. Stat. 19, 293-325 (errors of means over pairs); Ferro (2014), Q. J.
        R. Meteorol. Soc. 140, 1917-1923 (fair score).
    """

    def init(
        self,
        truth: Float[Array, "*points"],
        dtype: DTypeLike | None = None,
        *,
        thresholds: Float[Array, "threshold ..."] | None = None,
    ) -> MemberState:
        """Return the state that has seen no member.

        Args:
            truth: what the members are compared with.
            dtype: float32 or float64; that of the truth, and at least float32, where
                None.
            thresholds: those whose exceedances are counted, in the units of the truth.
                They lead; further axes broadcast to the truth from the right.

        Raises:
            ValueError: `dtype` is another one, or the thresholds do not broadcast to
                the truth.
        """
        wide = jnp.float32 if truth.dtype.itemsize < 4 else truth.dtype
        kind = jnp.zeros((), wide if dtype is None else dtype).dtype
        if kind not in (jnp.float32, jnp.float64):
            raise ValueError(f"`dtype` must be float32 or float64, got {dtype}.")
        if thresholds is None:
            thresholds = jnp.zeros((0,), kind)
        levels = _levels(thresholds.astype(kind), truth.shape)
        zero, none = jnp.zeros(truth.shape, kind), jnp.zeros(truth.shape, jnp.int32)
        total = Sum.zeros(truth.shape, kind)
        return MemberState(
            truth=truth.astype(kind),
            thresholds=levels,
            count=none,
            failed=none,
            mean=total,
            squares=total,
            distance=total,
            paired=none,
            pairs=total,
            load=zero,
            gap=zero,
            gap_scale=zero,
            minimum=zero + jnp.inf,
            maximum=zero - jnp.inf,
            closest=zero + jnp.inf,
            below=none,
            tied=none,
            exceedances=jnp.zeros((levels.shape[0], *truth.shape), jnp.int32),
        )

    def update(
        self,
        state: MemberState,
        members: Float[Array, "member ..."],
        where: Bool[Array, "..."] | None = None,
    ) -> MemberState:
        """Return the state that has seen this chunk of members too.

        Args:
            state: of any number of members.
            members: `(member, *points)`, in the units of the truth.
            where: broadcasts to `members` from the right; what is False there counts
                nowhere, not as failed either.

        Raises:
            ValueError: there are no members, or the shapes do not fit.
        """
        truth = state.truth
        if members.shape[0] == 0 or members.shape[1:] != truth.shape:
            raise ValueError(
                "`members` leads with one member or more and otherwise has the shape "
                f"of the truth, {truth.shape}; got {members.shape}."
            )
        finite = jnp.isfinite(members)
        given = jnp.ones((), bool) if where is None else where
        try:
            given = jnp.broadcast_to(given, members.shape)
        except ValueError:
            raise ValueError(
                f"`where` of shape {given.shape} does not broadcast to `members` of "
                f"shape {members.shape}."
            ) from None
        valid = given & finite
        failed = _count(given & ~finite)
        members = jnp.where(valid, members, 0).astype(truth.dtype)
        departures = jnp.where(valid, members - truth[None], 0)
        return self.merge(state, _chunk(state, members, departures, valid, failed))

    def merge(self, first: MemberState, second: MemberState) -> MemberState:
        """Return the state that has seen the members of both.

        Where their truths or thresholds differ, all that is float becomes NaN.

        Raises:
            ValueError: the states differ in shapes or dtypes.
        """
        if (a := _summary(first)) != (b := _summary(second)):
            raise ValueError(f"States of different kinds do not merge: {a} and {b}.")
        mean, squares = _merge_moments(first, second)
        added = jax.tree.map(jnp.add, _counters(first), _counters(second))
        same = first.truth == second.truth
        same &= (first.thresholds == second.thresholds).all(axis=0)
        return MemberState(
            truth=jnp.where(same, first.truth, jnp.nan),
            thresholds=first.thresholds,
            mean=mean,
            squares=squares,
            distance=first.distance.merge(second.distance),
            pairs=first.pairs.merge(second.pairs),
            minimum=jnp.minimum(first.minimum, second.minimum),
            maximum=jnp.maximum(first.maximum, second.maximum),
            closest=jnp.minimum(first.closest, second.closest),
            **added,
        )

    def finalize(self, state: MemberState) -> MemberScores:
        """Return the scores of all members seen."""
        dtype = state.truth.dtype
        count, paired = (x.astype(dtype) for x in (state.count, state.paired))
        some = state.count > 0
        known = lambda x: jnp.where(jnp.isnan(state.truth) & some, jnp.nan, x)
        seen = lambda x: known(jnp.where(some, x, 0))
        distance = ratio(state.distance.value, count)
        score = distance - ratio(state.pairs.value, paired) / 2
        law = jnp.where(state.gap_scale > 0, ratio(state.gap, state.gap_scale), jnp.nan)
        excess = _excess(paired, state.load)
        exact = excess <= 0  # one chunk holds all
        uncertain = root(jnp.where(exact, 0, law * jnp.where(exact, 0, excess))) / 2
        several = state.paired > 0
        return MemberScores(
            count=state.count,
            failed=state.failed,
            error=seen(state.mean.value),
            variance=known(ratio(state.squares.value, jnp.maximum(count - 1, 0))),
            crps=known(jnp.where(several, score, 0)),
            crps_error=known(jnp.where(several, uncertain, 0)),
            paired=state.paired,
            minimum=seen(state.minimum),
            maximum=seen(state.maximum),
            closest=seen(state.closest),
            below=state.below,
            tied=state.tied,
            exceedances=state.exceedances,
        )


def _levels(
    thresholds: Float[Array, "threshold ..."], points: tuple[int, ...]
) -> Float[Array, "threshold ..."]:
    """Return the thresholds with as many more axes as the truth has."""
    number, *rest = thresholds.shape
    try:
        fits = jnp.broadcast_shapes(tuple(rest), points) == points
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"`thresholds` of shape {thresholds.shape} do not broadcast to the truth "
            f"of shape {points}."
        )
    return thresholds.reshape(number, *(1,) * (len(points) - len(rest)), *rest)


def _chunk(state, members, departures, valid, failed) -> MemberState:
    """Return the state of one chunk alone."""
    truth, thresholds = state.truth, state.thresholds
    count = _count(valid)
    number = jnp.maximum(count, 1).astype(truth.dtype)
    centre = jnp.sum(departures, axis=0) / number
    anomalies = jnp.where(valid, departures - centre[None], 0)
    # What rounding took from the mean is the mean of what is left.
    rest = _total(anomalies).value / number
    anomalies = jnp.where(valid, anomalies - rest[None], 0)
    distances = _absolute(departures)
    exceed = lambda level: _count((members > level[None]) & valid)
    zero = jnp.zeros_like(truth)
    pairs, compared = _pair_terms(anomalies, valid, count)
    return MemberState(
        truth=truth,
        thresholds=thresholds,
        count=count,
        failed=failed,
        mean=Sum(centre, zero).merge(Sum(rest, zero)),
        squares=_total(anomalies**2),
        distance=_total(distances),
        pairs=pairs,
        **compared,
        minimum=jnp.min(jnp.where(valid, members, jnp.inf), axis=0),
        maximum=jnp.max(jnp.where(valid, members, -jnp.inf), axis=0),
        closest=jnp.min(jnp.where(valid, distances, jnp.inf), axis=0),
        below=_count((departures < 0) & valid),
        tied=_count((departures == 0) & valid),
        exceedances=lax.map(exceed, thresholds),
    )


def _counters(state: MemberState) -> dict[str, Array]:
    names = "count", "failed", "paired", "load", "gap", "gap_scale", "below", "tied"
    return {name: getattr(state, name) for name in (*names, "exceedances")}


def _summary(state: MemberState) -> str:
    shape, levels = list(state.truth.shape), state.exceedances.shape[0]
    return f"{state.truth.dtype}{shape} with {levels} thresholds"


def _merge_moments(first: MemberState, second: MemberState) -> tuple[Sum, Sum]:
    """Return mean and sum of squares of both (Chan et al., equations 2.1)."""
    a, b = (state.count.astype(state.truth.dtype) for state in (first, second))
    step = second.mean.high - first.mean.high + (second.mean.low - first.mean.low)
    share = b / jnp.maximum(a + b, 1)
    # From the mean of the more, as the shorter way keeps more digits: with nothing on
    # one side, all of them.
    start = jax.tree.map(lambda x, y: jnp.where(a >= b, x, y), first.mean, second.mean)
    way = step * jnp.where(a >= b, share, share - 1)
    way = jnp.where(a + b > 0, way, 0)
    between = step**2 * a * share
    zero = jnp.zeros_like(way)
    squares = first.squares.merge(second.squares)
    return start.merge(Sum(way, zero)), squares.merge(Sum(between, zero))


def _pair_terms(anomalies, valid, count) -> tuple[Sum, dict[str, Array]]:
    """Return `pairs` of a chunk, and all else it knows of their distances."""
    zero = jnp.zeros_like(anomalies[0])
    members, load, distance = _pair_distance(anomalies, valid)
    pairs = Sum(members * distance, zero)
    terms = {
        "paired": jnp.where(count >= 2, count, 0),
        "load": load,
        "gap": zero,
        "gap_scale": zero,
    }
    size = anomalies.shape[0]
    if size < 4:
        return pairs, terms
    # Up to 8 members a part, the cheapest to sort, in sizes that differ by one at most.
    parts = max(2, -(-size // 8))
    rows = -(-size // parts)
    fill = [(0, rows * parts - size)] + [(0, 0)] * zero.ndim
    deal = lambda x: jnp.pad(x, fill).reshape(rows, parts, *zero.shape)
    each, loads, distances = _pair_distance(deal(anomalies), deal(valid))
    complete = jnp.sum(each, axis=0) == members  # no member alone in its part
    gap = ratio(jnp.sum(each * distances, axis=0), members) - distance
    scale = _excess(members, jnp.sum(loads, axis=0))
    terms["gap"] = jnp.where(complete, gap**2, 0)
    terms["gap_scale"] = jnp.where(complete, scale, 0)
    return pairs, terms


def _pair_distance(anomalies, valid):
    """Return members, load and mean distance of pairs; all 0 for a member alone."""
    count = _count(valid).astype(anomalies.dtype)
    members = jnp.where(count >= 2, count, 0)
    load = ratio(members, members - jnp.sign(members))
    if anomalies.shape[0] < 2:
        return members, load, members
    centre = jnp.zeros_like(anomalies[0])
    distance = ratio(jnp.sum(_absolute(anomalies), axis=0), members)
    fair = crps(anomalies, centre, where=valid)
    return members, load, jnp.where(members > 0, 2 * (distance - fair), 0)


def _excess(members, load):
    """Return the variance that chunks add to a mean over pairs, over `2 zeta`.

    Chunks of `m_c` of the `M` members, weighted by `m_c`, have the variance `2 zeta
    sum(m_c / (m_c - 1)) / M^2` in the part that is no sum over members, and all pairs
    have `2 zeta / (M (M - 1))`. All pairs are the mean of all ways to chunk, so that
    the difference is the variance of the difference.
    """
    share = ratio(jnp.ones_like(members), members)
    return share**2 * (load - ratio(members, members - jnp.sign(members)))


def _count(mask: Bool[Array, "member *points"]) -> Int[Array, "*points"]:
    return jnp.sum(mask, axis=0, dtype=jnp.int32)


def _total(values: Float[Array, "member *points"]) -> Sum:
    add = lambda total, row: (total.merge(Sum(row, jnp.zeros_like(row))), None)
    # Begun with a row, as `shard_map` wants sums to vary from the start as terms do.
    start, _ = add(Sum.zeros(values.shape[1:], values.dtype), values[0])
    return lax.scan(add, start, values[1:])[0]


def _absolute(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return `|x|`, with the slope 0 at 0."""
    return x * lax.stop_gradient(jnp.sign(x))
