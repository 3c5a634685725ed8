"""The mean of the CRPS over all that was seen."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from skyens.scores._crps import crps
from skyens.scores._normal_mixture import crps_normal_mixture
from skyens.scores._sample import sample, to_truth
from skyens.scores._sums import Sums, add_terms, empty_sums, merge_sums, ratio


class CRPS(eqx.Module):
    """The mean continuous ranked probability score, in the field's units.

    `alpha` is that of `crps`: 1 fair, 0 standard. Points with too few valid members for
    it have no weight. Arguments and state: see `Statistic`.

    A truth that is observed with errors is not what the members forecast: with
    `truth_error`, their standard deviation, each member is dressed with the errors'
    normal distribution, and the score is that of the mixture (`crps_normal_mixture`),
    the fair one the expectation over members that each have an error of their own. The
    errors are assumed normal, unbiased and independent of the members. The ensemble
    that forecasts the truth itself then has the best expected score; without, an
    ensemble with the errors' spread added would win.

    Source: observation error: Candille & Talagrand (2008), Q. J. R. Meteorol. Soc. 134,
        959-971.
    """

    alpha: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"`alpha` must lie in [0, 1], got {self.alpha}.")

    def init(self, shape: tuple[int, ...] = (), dtype: DTypeLike | None = None) -> Sums:
        """Return the state that has seen nothing, with `shape` as kept axes."""
        return empty_sums({"weight": shape, "score": shape}, dtype)

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
        units, and broadcasts to it; negative, it is NaN.

        Raises:
            ValueError: as for every statistic, or `ensemble` has one member and
                `alpha > 0`, or `truth_error` does not broadcast to the shape of
                `truth`.
        """
        least = 2 if self.alpha > 0 else 1
        seen = sample(state, ensemble, truth, weights, where, least)
        weight = seen.weights_of(least)
        members = seen.ensemble
        if seen.valid is not None:
            shape = jnp.broadcast_shapes(members.shape, seen.valid.shape)
            members = jnp.broadcast_to(members, shape)
        settings = {"alpha": self.alpha, "where": seen.valid}
        if truth_error is None:
            score = crps(members, seen.truth, **settings)
        else:
            error = to_truth("truth_error", truth_error, seen.truth)
            score = crps_normal_mixture(members, error[None], seen.truth, **settings)
        return add_terms(state, weight=weight, score=weight * score)

    def merge(self, first: Sums, second: Sums) -> Sums:
        """Return the state that has seen what both have."""
        return merge_sums(first, second)

    def finalize(self, state: Sums) -> Float[Array, "..."]:
        """Return the score; 0 where nothing valid was seen."""
        return ratio(state["score"].value, state["weight"].value)
