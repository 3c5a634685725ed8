"""What a forecast is worth to those who can act on it."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from skyens.scores._event_counts import EventCounts, at_least
from skyens.scores._sums import Sums, ratio
from skyens.scores._thresholds import Numbers


class ValueCurves(NamedTuple):
    """What `EconomicValue` gives: 1 for a perfect forecast, 0 for the climate's."""

    value: Float[Array, "... threshold warning cost_loss"]  # by 1 ... members members
    envelope: Float[Array, "... threshold cost_loss"]  # each user's best of these


class EconomicValue(eqx.Module):
    """The relative economic value to users who protect themselves when warned.

    To act costs `cost_loss` of what an event does to those who have not acted. `value`
    is the part of the possible saving that a user makes who acts if at least
    `1, ..., members` members have the event (probability `k / members` or more);
    `envelope` is that of the user's best choice. The saving counts from the better of
    always and never acting: a user who may ignore a forecast of negative value has 0.
    The event is `x > threshold`, or `x < threshold` if not `above`; where members are
    masked, the share `k / n` of the others stands at the nearest `k / members`.
    Arguments and state: see `Statistic`. Of the same settings, `Reliability`, `ROC`
    and `EconomicValue` have the same state: one update serves all.

    Source: Richardson (2000), Q. J. R. Meteorol. Soc. 126, 649-667.
    """

    counts: EventCounts
    cost_loss: tuple[float, ...] = eqx.field(static=True)

    def __init__(
        self,
        members: int,
        thresholds: Numbers | int,
        cost_loss: Numbers,
        above: bool = True,
    ):
        """Set what counts as an event, as for `Reliability`, and the users.

        Raises:
            ValueError: as for `Reliability`, or `cost_loss` are none or not all between
                0 and 1.
        """
        self.counts = EventCounts(members, thresholds, above)
        self.cost_loss = tuple(float(one) for one in cost_loss)
        if not self.cost_loss or not all(0 < one < 1 for one in self.cost_loss):
            raise ValueError(
                "`cost_loss` must be ratios above 0 and below 1, at least one; got "
                f"{self.cost_loss}."
            )

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

    def finalize(self, state: Sums) -> ValueCurves:
        """Return the values; 0 where there is nothing to save: all events or none."""
        events = state["events"].value
        others = state["forecasts"].value - events
        # Costs are in losses, sums over all that was seen, for `(warning, cost_loss)`.
        hits, alarms = (at_least(x)[..., 1:-1, None] for x in (events, others))
        all_events, all_others = (x.sum(-1)[..., None, None] for x in (events, others))
        cost = jnp.asarray(self.cost_loss, events.dtype)
        cost = cost.reshape((1,) * (events.ndim) + cost.shape)
        # All beyond what a perfect forecast costs: no difference of equal products,
        # which a fused multiply-add would leave a little off 0.
        spent = cost * alarms + (1 - cost) * (all_events - hits)
        climate = jnp.minimum(cost * all_others, (1 - cost) * all_events)
        value = ratio(climate - spent, climate)
        return ValueCurves(value, value.max(-2))
