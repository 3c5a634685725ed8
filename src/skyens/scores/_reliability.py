"""Do events come as often as they are forecast? The Brier score and its parts."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from skyens.scores._event_counts import EventCounts
from skyens.scores._sums import Sums, ratio
from skyens.scores._thresholds import Numbers


class ReliabilityTable(NamedTuple):
    """What `Reliability` gives: a bin for each number of members, and the scores."""

    probability: Float[Array, "... threshold bin"]  # mean forecast of the bin
    frequency: Float[Array, "... threshold bin"]  # of the event, given that forecast
    count: Float[Array, "... threshold bin"]  # weight of the forecasts of the bin
    brier: Float[Array, "... threshold"]  # reliability - resolution + uncertainty
    reliability: Float[Array, "... threshold"]  # 0 is best
    resolution: Float[Array, "... threshold"]  # 0 where forecasts tell nothing
    uncertainty: Float[Array, "... threshold"]  # of the climate: at most 1 / 4
    fair_brier: Float[Array, "... threshold"]  # unbiased in the number of members


class Reliability(eqx.Module):
    """The reliability diagram of probabilities `k / members`, and the Brier score.

    The event is `x > threshold`, or `x < threshold` if not `above`. Each number of
    members with the event has a bin of its own, so that the decomposition `brier =
    reliability - resolution + uncertainty` is exact. Where members are masked, the
    probability `k / n` of the `n` others falls into the nearest bin, and what differs
    inside of bins counts in `resolution`, the generalised one of Stephenson et al.:
    the identity stays exact.

    `fair_brier` is the mean of `(p - o)^2 - p (1 - p) / (n - 1)` over points with two
    members or more. Arguments and state: see `Statistic`. Of the same settings,
    `Reliability`, `ROC` and `EconomicValue` have the same state: one update serves all.

    Source: Murphy (1973), J. Appl. Meteorol. 12, 595-600; Stephenson, Coelho & Jolliffe
        (2008), Wea. Forecasting 23, 752-757; Ferro (2014), Q. J. R. Meteorol. Soc. 140,
        1917-1923.
    """

    counts: EventCounts

    def __init__(self, members: int, thresholds: Numbers | int, above: bool = True):
        """Set what counts as an event.

        Args:
            members: of every ensemble.
            thresholds: increasing, in the field's units; or how many each update
                brings, to have thresholds of each point (climatological quantiles).
            above: whether the event is a value above the threshold, or one below it.

        Raises:
            ValueError: `members` is below 1, or `thresholds` are none, not finite or do
                not increase.
        """
        self.counts = EventCounts(members, thresholds, above)

    def init(self, shape: tuple[int, ...] = (), dtype: DTypeLike | None = None) -> Sums:
        """Return the state that has seen nothing, with `shape` as kept axes."""
        return self.counts.init(shape, dtype)

    def update(
        self,
        state: Sums,
        ensemble: Float[Array, "member ..."],
        truth: Float[Array, "..."],
        weights: Float[Array, "..."] | None = None,
        where: Bool[Array, "..."] | None = None,
        *,
        thresholds: Float[Array, "threshold ..."] | None = None,
    ) -> Sums:
        """Return the state that has seen these forecasts too.

        `thresholds`, if the statistic has only their number, lead with the threshold
        and then broadcast against `truth` from the right.

        Raises:
            ValueError: as for every statistic, `ensemble` has not `members` members, or
                `thresholds` are missing, not wanted, or do not fit.
        """
        more = weights, where, thresholds
        return self.counts.update(state, ensemble, truth, *more)

    def merge(self, first: Sums, second: Sums) -> Sums:
        """Return the state that has seen what both have."""
        return self.counts.merge(first, second)

    def finalize(self, state: Sums) -> ReliabilityTable:
        """Return the table; 0 in empty bins and where nothing valid was seen."""
        value = {name: total.value for name, total in state.items()}
        count, events, offsets = (
            value[name] for name in ("forecasts", "events", "offsets")
        )
        weight = value["weight"][..., None]
        centre = jnp.arange(count.shape[-1], dtype=count.dtype) / self.counts.members
        centre = jnp.broadcast_to(centre, count.shape)
        foreseen = count * centre + offsets  # the sum of the bin's probabilities
        frequency = ratio(events, count)
        climate = ratio(events.sum(-1), weight)
        mean = lambda terms: ratio(terms.sum(-1), weight)
        reliability = mean(ratio((foreseen - events) ** 2, count))
        resolution = mean(count * (frequency - climate[..., None]) ** 2)
        uncertainty = climate * (1 - climate)
        # Inside of bins: the variance of the forecasts, and twice their covariance with
        # the events. Both are 0 where no member is masked.
        spread = value["squared_offsets"] - ratio(offsets**2, count).sum(-1)
        shared = value["event_offsets"] - frequency * offsets
        resolution += ratio(2 * shared.sum(-1) - spread, weight)
        return ReliabilityTable(
            probability=ratio(foreseen, count),
            frequency=frequency,
            count=count,
            brier=reliability - resolution + uncertainty,
            reliability=reliability,
            resolution=resolution,
            uncertainty=uncertainty,
            fair_brier=ratio(value["fair_error"], value["fair_weight"][..., None]),
        )
