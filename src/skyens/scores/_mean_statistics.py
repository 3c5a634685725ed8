"""Statistics of the ensemble mean: error, bias and correlation of anomalies."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from skyens.scores._sample import sample, to_truth
from skyens.scores._sums import Sums, add_terms, empty_sums, merge_sums, ratio, root


class RMSE(eqx.Module):
    """The root of the mean squared error of the ensemble mean, in the field's units.

    The mean is over all that was seen, the root comes last. One member is a
    deterministic forecast. Arguments and state: see `Statistic`.
    """

    def init(self, shape: tuple[int, ...] = (), dtype: DTypeLike | None = None) -> Sums:
        """Return the state that has seen nothing, with `shape` as kept axes."""
        return empty_sums({"weight": shape, "squared_error": shape}, dtype)

    def update(
        self,
        state: Sums,
        ensemble: Float[Array, "member ..."],
        truth: Float[Array, "..."],
        weights: Float[Array, "..."] | None = None,
        where: Bool[Array, "..."] | None = None,
    ) -> Sums:
        """Return the state that has seen these forecasts too."""
        seen = sample(state, ensemble, truth, weights, where)
        weight = seen.weights_of(least=1)
        square = seen.mean_departure(seen.truth) ** 2
        return add_terms(state, weight=weight, squared_error=weight * square)

    def merge(self, first: Sums, second: Sums) -> Sums:
        """Return the state that has seen what both have."""
        return merge_sums(first, second)

    def finalize(self, state: Sums) -> Float[Array, "..."]:
        """Return the error; 0 where nothing valid was seen."""
        return root(ratio(state["squared_error"].value, state["weight"].value))


class Bias(eqx.Module):
    """The mean error of the ensemble mean, forecast minus truth, in the field's units.

    Arguments and state: see `Statistic`.
    """

    def init(self, shape: tuple[int, ...] = (), dtype: DTypeLike | None = None) -> Sums:
        """Return the state that has seen nothing, with `shape` as kept axes."""
        return empty_sums({"weight": shape, "error": shape}, dtype)

    def update(
        self,
        state: Sums,
        ensemble: Float[Array, "member ..."],
        truth: Float[Array, "..."],
        weights: Float[Array, "..."] | None = None,
        where: Bool[Array, "..."] | None = None,
    ) -> Sums:
        """Return the state that has seen these forecasts too."""
        seen = sample(state, ensemble, truth, weights, where)
        weight = seen.weights_of(least=1)
        error = seen.mean_departure(seen.truth)
        return add_terms(state, weight=weight, error=weight * error)

    def merge(self, first: Sums, second: Sums) -> Sums:
        """Return the state that has seen what both have."""
        return merge_sums(first, second)

    def finalize(self, state: Sums) -> Float[Array, "..."]:
        """Return the bias; 0 where nothing valid was seen."""
        return ratio(state["error"].value, state["weight"].value)


class AnomalyCorrelation(eqx.Module):
    """The correlation of forecast and true anomalies, about 0 (uncentred).

    `sum(f o) / sqrt(sum(f^2) sum(o^2))`, with `f` the ensemble mean and `o` the truth,
    both minus the climatology; the sums are over all that was seen, weighted. Arguments
    and state: see `Statistic`.

    Source: Jolliffe & Stephenson (2012), Forecast Verification.
    """

    def init(self, shape: tuple[int, ...] = (), dtype: DTypeLike | None = None) -> Sums:
        """Return the state that has seen nothing, with `shape` as kept axes."""
        names = "weight", "covariance", "forecast_variance", "truth_variance"
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
        forecast = seen.mean_departure(climatology)
        # A masked truth may be NaN, which times a weight of 0 would stay NaN.
        observed = jnp.where(seen.has_members, seen.truth - climatology, 0)
        return add_terms(
            state,
            weight=weight,
            covariance=weight * forecast * observed,
            forecast_variance=weight * forecast**2,
            truth_variance=weight * observed**2,
        )

    def merge(self, first: Sums, second: Sums) -> Sums:
        """Return the state that has seen what both have."""
        return merge_sums(first, second)

    def finalize(self, state: Sums) -> Float[Array, "..."]:
        """Return the correlation; 0 where nothing valid or no anomaly was seen."""
        # Root by root: the product of two variances may overflow.
        forecast = root(state["forecast_variance"].value)
        truth = root(state["truth_variance"].value)
        return ratio(ratio(state["covariance"].value, forecast), truth)
