"""How often is a threshold passed, in forecasts and in truth?"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, DTypeLike, Float

from skyens.scores._sample import sample
from skyens.scores._sums import Sum, Sums, add_terms, empty_sums, merge_sums, ratio
from skyens.scores._thresholds import (
    Numbers,
    Thresholds,
    check_thresholds,
    forecast_and_event,
    number_of,
    thresholds_of,
)


class ExceedanceRates(NamedTuple):
    """What `Exceedance` gives, for each threshold."""

    forecast: Float[Array, "... threshold"]  # mean forecast probability
    observed: Float[Array, "... threshold"]  # frequency in the truth
    ratio: Float[Array, "... threshold"]  # forecast / observed: 1 without bias


class Exceedance(eqx.Module):
    """The forecast probability and the observed frequency of passing thresholds.

    The event is `x > threshold`, or `x < threshold` if not `above`; its probability is
    the share of the valid members that have it, of any number of members. `thresholds`
    are those of `Reliability`: increasing values, or how many each update brings.
    Arguments and state: see `Statistic`.
    """

    thresholds: Thresholds = eqx.field(static=True)
    above: bool = eqx.field(static=True)

    def __init__(self, thresholds: Numbers | int, above: bool = True):
        """Set what counts as an event.

        Raises:
            ValueError: `thresholds` are none, not finite or do not increase.
        """
        self.thresholds, self.above = check_thresholds(thresholds), above

    def init(self, shape: tuple[int, ...] = (), dtype: DTypeLike | None = None) -> Sums:
        """Return the state that has seen nothing, with `shape` as kept axes."""
        each = (*shape, number_of(self.thresholds))
        shapes = {"weight": shape, "forecasts": each, "events": each}
        return empty_sums(shapes, dtype)

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
        seen = sample(state, ensemble, truth, weights, where)
        weight, kept = seen.weights_of(least=1), state["weight"].high.ndim

        def count(threshold):
            share, event = forecast_and_event(seen, threshold, self.above)
            return Sum.over(weight * share, kept), Sum.over(weight * event, kept)

        # Threshold after threshold, for the memory of one.
        counts = lax.map(count, thresholds_of(self.thresholds, thresholds, seen))
        to_end = lambda x: jnp.moveaxis(x, 0, -1)
        forecasts, events = jax.tree.map(to_end, counts)
        return add_terms(state, weight=weight, forecasts=forecasts, events=events)

    def merge(self, first: Sums, second: Sums) -> Sums:
        """Return the state that has seen what both have."""
        return merge_sums(first, second)

    def finalize(self, state: Sums) -> ExceedanceRates:
        """Return the rates; 0 where nothing valid, and a ratio of 0 where no event."""
        forecasts, events = state["forecasts"].value, state["events"].value
        weight = state["weight"].value[..., None]
        rates = ratio(forecasts, weight), ratio(events, weight)
        return ExceedanceRates(*rates, ratio(forecasts, events))
