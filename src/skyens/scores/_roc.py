"""Can an ensemble tell events from other cases? Hits against false alarms."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from skyens.scores._event_counts import EventCounts, at_least
from skyens.scores._sums import Sums, ratio
from skyens.scores._thresholds import Numbers


class ROCCurve(NamedTuple):
    """What `ROC` gives: warnings by at least `members + 1, members, ..., 0` members."""

    hit_rate: Float[Array, "... threshold warning"]  # of the events, from 0 to 1
    false_alarm_rate: Float[Array, "... threshold warning"]  # of the other cases
    area: Float[Array, "... threshold"]  # 1 is best, 1 / 2 tells nothing


class ROC(eqx.Module):
    """The relative operating characteristic of warnings by at least so many members.

    The curve goes from (0, 0), never a warning, to (1, 1), always one. Its area by
    trapezoids is the probability that an event had the higher forecast than another
    case had, ties counted half (Mann-Whitney). The event is `x > threshold`, or
    `x < threshold` if not `above`; where members are masked, the share `k / n` of the
    others stands at the nearest `k / members`. Arguments and state: see `Statistic`. Of
    the same settings, `Reliability`, `ROC` and `EconomicValue` have the same state: one
    update serves all.

    Source: Mason & Graham (2002), Q. J. R. Meteorol. Soc. 128, 2145-2166.
    """

    counts: EventCounts

    def __init__(self, members: int, thresholds: Numbers | int, above: bool = True):
        """Set what counts as an event, with arguments and errors of `Reliability`."""
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
        """Return the state that has seen these forecasts too: see `Reliability`."""
        more = weights, where, thresholds
        return self.counts.update(state, ensemble, truth, *more)

    def merge(self, first: Sums, second: Sums) -> Sums:
        """Return the state that has seen what both have."""
        return self.counts.merge(first, second)

    def finalize(self, state: Sums) -> ROCCurve:
        """Return the curve; 0 where no event, or nothing else, was seen."""
        events = state["events"].value
        others = state["forecasts"].value - events
        hits, alarms = at_least(events), at_least(others)
        hit_rate = ratio(hits, hits[..., :1])
        false_alarm_rate = ratio(alarms, alarms[..., :1])
        width = false_alarm_rate[..., :-1] - false_alarm_rate[..., 1:]
        area = jnp.sum(width * (hit_rate[..., :-1] + hit_rate[..., 1:]) / 2, axis=-1)
        from_never = lambda rate: jnp.flip(rate, -1)
        return ROCCurve(from_never(hit_rate), from_never(false_alarm_rate), area)
