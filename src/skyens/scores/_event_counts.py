"""How often an event was forecast by so many members, and how often it came.

The table that reliability, ROC and economic value are all read from.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, DTypeLike, Float

from skyens.scores._sample import check_member_count, sample
from skyens.scores._sums import Sum, Sums, add_terms, empty_sums, merge_sums
from skyens.scores._thresholds import (
    Numbers,
    Thresholds,
    check_thresholds,
    forecast_and_event,
    number_of,
    thresholds_of,
)


class EventCounts(eqx.Module):
    """Forecasts and events by the number of members that foresee the event.

    The event is a value above its threshold, or below it if not `above`; a value equal
    to the threshold is none. Of `k` members with the event the forecast probability is
    `k / members`, and each `k` has a bin of its own: nothing is rounded.

    Where members are masked, `k` of the `n` others give the probability `k / n`, which
    goes to the nearest bin. What it differs from the bin's is kept too (`offsets`
    and their products), so that means of probabilities and Brier scores stay exact.
    """

    members: int = eqx.field(static=True)
    thresholds: Thresholds = eqx.field(static=True)
    above: bool = eqx.field(static=True)

    def __init__(self, members: int, thresholds: Numbers | int, above: bool):
        """Check the settings; see `Reliability`."""
        if members < 1:
            raise ValueError(f"`members` must be at least 1, got {members}.")
        self.members, self.above = members, above
        self.thresholds = check_thresholds(thresholds)

    def init(self, shape: tuple[int, ...], dtype: DTypeLike | None) -> Sums:
        """Return the state that has seen nothing, with `shape` as kept axes."""
        each = (*shape, number_of(self.thresholds))
        bins = (*each, self.members + 1)
        shapes = {
            "weight": shape,
            "forecasts": bins,
            "events": bins,
            "offsets": bins,
            "event_offsets": bins,
            "squared_offsets": each,
            "fair_weight": shape,
            "fair_error": each,
        }
        return empty_sums(shapes, dtype)

    def update(
        self,
        state: Sums,
        ensemble: Float[Array, "member ..."],
        truth: Float[Array, "..."],
        weights: Float[Array, "..."] | None,
        where: Bool[Array, "..."] | None,
        thresholds: Float[Array, "threshold ..."] | None,
    ) -> Sums:
        """Return the state that has seen these forecasts too.

        Raises:
            ValueError: as for every statistic, `ensemble` has not `members` members, or
                `thresholds` are missing, not wanted, or do not fit.
        """
        check_member_count(ensemble, self.members)
        seen = sample(state, ensemble, truth, weights, where)
        edges = thresholds_of(self.thresholds, thresholds, seen)
        weight, fair_weight = seen.weights_of(least=1), seen.weights_of(least=2)
        if self.members == 1:
            fair_weight = jnp.zeros_like(weight)
        kept = state["weight"].high.ndim
        bins = jnp.arange(self.members + 1, dtype=weight.dtype)

        def count(threshold):
            share, event = forecast_and_event(seen, threshold, self.above)
            nearest = jnp.round(share * self.members)
            offset = share - nearest / self.members

            def fill(bin):
                # A share that is NaN belongs to every bin, and spoils it.
                inside = weight * jnp.where(nearest == bin, 1, 0 * share)
                terms = {"forecasts": inside, "events": inside * event}
                if seen.valid is not None:
                    terms["offsets"] = inside * offset
                    terms["event_offsets"] = inside * offset * event
                return {name: Sum.over(term, kept) for name, term in terms.items()}

            error = (share - event) ** 2
            if self.members > 1:
                error -= share * (1 - share) / jnp.maximum(seen.count - 1, 1)
            terms = {"fair_error": Sum.over(fair_weight * error, kept)}
            if seen.valid is not None:
                terms["squared_offsets"] = Sum.over(weight * offset**2, kept)
            # Bin after bin, and threshold after threshold, for the memory of one.
            return lax.map(fill, bins), terms

        by_bin, by_threshold = lax.map(count, edges)
        to_end = lambda x, axes: jnp.moveaxis(x, range(axes), range(-axes, 0))
        terms = {
            **jax.tree.map(lambda x: to_end(x, 2), by_bin),
            **jax.tree.map(lambda x: to_end(x, 1), by_threshold),
            "weight": weight,
            "fair_weight": fair_weight,
        }
        return state | add_terms({name: state[name] for name in terms}, **terms)

    def merge(self, first: Sums, second: Sums) -> Sums:
        """Return the state that has seen what both have."""
        return merge_sums(first, second)


def at_least(bins: Float[Array, "... bin"]) -> Float[Array, "... warning"]:
    """Return the sums over bins from each on: of at least 0, 1, ..., all, more members.

    The first is the sum over all bins, the last, one more than there are bins, is 0.
    """
    sums = jnp.flip(jnp.cumsum(jnp.flip(bins, -1), axis=-1), -1)
    return jnp.concatenate([sums, jnp.zeros_like(sums[..., :1])], axis=-1)
