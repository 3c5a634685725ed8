"""Do forecasts vary as much as the atmosphere does?"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from skyens.scores._sample import sample, to_truth
from skyens.scores._sums import Sums, add_terms, empty_sums, merge_sums, ratio, root


class Activities(NamedTuple):
    """What `Activity` gives: standard deviations in the field's units, and ratios."""

    members: Float[Array, "..."]  # of the members' anomalies, all together
    mean: Float[Array, "..."]  # of the anomalies of the ensemble mean
    truth: Float[Array, "..."]  # of the true anomalies
    members_ratio: Float[Array, "..."]  # members / truth: 1 for a model like the world
    mean_ratio: Float[Array, "..."]  # mean / truth: falls as predictability does


class Activity(eqx.Module):
    """The standard deviation of anomalies, of the forecasts against the truth.

    Anomalies are departures from the climatology; their weighted mean over all that was
    seen, a bias, does not count as activity. The members of a point share its weight.
    Arguments and state: see `Statistic`.

    Source: Simmons & Hollingsworth (2002), Q. J. R. Meteorol. Soc. 128, 647-677.
    """

    def init(self, shape: tuple[int, ...] = (), dtype: DTypeLike | None = None) -> Sums:
        """Return the state that has seen nothing, with `shape` as kept axes."""
        squares = "members_square", "mean_square", "truth_square"
        names = "weight", "mean", "truth", *squares
        return empty_sums(dict.fromkeys(names, shape), dtype)

    def update(
        self,
        state: Sums,
        ensemble: Float[Array, "member ..."],
        truth: Float[Array, "..."],
        weights: Float[Array, "..."] | None = None,
        where: Bool[Array, "..."] | None = None,
        *,
        climatology: Float[Array, "..."],
    ) -> Sums:
        """Return the state that has seen these forecasts too.

        `climatology` is what the anomalies are measured from, in the field's units; it
        broadcasts to `truth`.

        Raises:
            ValueError: as for every statistic, or `climatology` does not broadcast to
                the shape of `truth`.
        """
        seen = sample(state, ensemble, truth, weights, where)
        climatology = to_truth("climatology", climatology, seen.truth)
        weight = seen.weights_of(least=1)
        mean, squares = (
            total / seen.count for total in seen.total(lambda x: (x, x**2), climatology)
        )
        # A masked truth may be NaN, which times a weight of 0 would stay NaN.
        observed = jnp.where(seen.has_members, seen.truth - climatology, 0)
        return add_terms(
            state,
            weight=weight,
            mean=weight * mean,
            truth=weight * observed,
            members_square=weight * squares,
            mean_square=weight * mean**2,
            truth_square=weight * observed**2,
        )

    def merge(self, first: Sums, second: Sums) -> Sums:
        """Return the state that has seen what both have."""
        return merge_sums(first, second)

    def finalize(self, state: Sums) -> Activities:
        """Return the activities; 0 where nothing valid was seen, or nothing varied."""
        value = {name: total.value for name, total in state.items()}
        mean = lambda name: ratio(value[name], value["weight"])

        def deviation(square, first):
            variance = mean(square) - mean(first) ** 2
            # Of what does not vary, rounding leaves a little of either sign.
            noise = 4 * jnp.finfo(variance.dtype).eps * mean(square)
            return root(jnp.where(variance <= noise, 0, variance))

        members = deviation("members_square", "mean")
        forecast = deviation("mean_square", "mean")
        truth = deviation("truth_square", "truth")
        of_truth = lambda x: ratio(x, truth)
        ratios = of_truth(members), of_truth(forecast)
        return Activities(members, forecast, truth, *ratios)
