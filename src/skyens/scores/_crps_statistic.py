"""The mean of the CRPS over all that was seen."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from skyens.scores._crps import crps
from skyens.scores._sample import sample
from skyens.scores._sums import Sums, add_terms, empty_sums, merge_sums, ratio


class CRPS(eqx.Module):
    """The mean continuous ranked probability score, in the field's units.

    `alpha` is that of `crps`: 1 fair, 0 standard. Points with too few valid members for
    it have no weight. Arguments and state: see `Statistic`.
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
    ) -> Sums:
        """Return the state that has seen these forecasts too.

        Raises:
            ValueError: as for every statistic, or `ensemble` has one member and
                `alpha > 0`.
        """
        least = 2 if self.alpha > 0 else 1
        seen = sample(state, ensemble, truth, weights, where, least)
        weight = seen.weights_of(least)
        members = seen.ensemble
        if seen.valid is not None:
            shape = jnp.broadcast_shapes(members.shape, seen.valid.shape)
            members = jnp.broadcast_to(members, shape)
        score = crps(members, seen.truth, alpha=self.alpha, where=seen.valid)
        return add_terms(state, weight=weight, score=weight * score)

    def merge(self, first: Sums, second: Sums) -> Sums:
        """Return the state that has seen what both have."""
        return merge_sums(first, second)

    def finalize(self, state: Sums) -> Float[Array, "..."]:
        """Return the score; 0 where nothing valid was seen."""
        return ratio(state["score"].value, state["weight"].value)
