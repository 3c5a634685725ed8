"""The mean of any score over all that was seen."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from skyens.scores._sample import Sample, sample
from skyens.scores._sums import Sums, add_terms, empty_sums, merge_sums, ratio


class MeanScore(eqx.Module):
    """The weighted mean of a score, which so becomes a statistic.

    `score(ensemble, truth)` is any score of this room, or of your own, with its
    settings bound (`functools.partial(scores.crps, alpha=0.95)`): the members lead, the
    value is point by point. Where members or points are masked it is called with
    `where=`, of the ensemble's shape, too.

    A score of whole vectors or fields gives one value for them: its result lacks the
    `event_axes` trailing axes of the truth, 1 for `energy_score`, 2 for
    `functools.partial(energy_score, event_axes=(-2, -1))`. Along those `weights` must
    have length 1, as the parts of one event are for the score to weigh. Parts that no
    member has are left out of it; a member that lacks another part does not count
    there.

    `least` is the number of valid members that the score needs, 2 for a fair one;
    points with fewer have no weight. Arguments and state: see `Statistic`.
    """

    score: Callable[..., Array]
    least: int = eqx.field(static=True, default=1)
    event_axes: int = eqx.field(static=True, default=0)

    def __check_init__(self):
        if self.event_axes < 0:
            raise ValueError(f"`event_axes` must not be negative: {self.event_axes}.")
        if self.least < 1:
            raise ValueError(f"`least` must be at least 1, got {self.least}.")

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
            ValueError: as for every statistic and for the score, or the shape of the
                score is not that of what is scored without its last `event_axes` axes,
                or these are among the kept ones, or `weights` vary along them.
        """
        seen = sample(state, ensemble, truth, weights, where, self.least)
        members, truth, more = seen.ensemble, seen.truth, {}
        if seen.valid is not None:
            shape = jnp.broadcast_shapes(members.shape, seen.valid.shape)
            valid = jnp.broadcast_to(seen.valid, shape)
            # Masked entries may be NaN; constants in their place cut off gradients.
            members = jnp.where(valid, members, 0)
            truth = jnp.where(seen.has_members, truth, 0)
            more["where"] = valid
        score = self.score(members, truth, **more)
        points = jnp.broadcast_shapes(members.shape[1:], truth.shape)
        kept = state["weight"].high.ndim
        expected = points[: max(len(points) - self.event_axes, 0)]
        if score.shape != expected or score.ndim < kept:
            raise ValueError(
                f"`score` gave shape {score.shape} for what has shape {points}, of "
                f"which {kept} axes are kept: with `event_axes={self.event_axes}` it "
                f"must give {expected}, the kept axes among them."
            )
        weight = self._weight_of_events(seen, weights)
        return add_terms(state, weight=weight, score=weight * score)

    def merge(self, first: Sums, second: Sums) -> Sums:
        """Return the state that has seen what both have."""
        return merge_sums(first, second)

    def finalize(self, state: Sums) -> Float[Array, "..."]:
        """Return the mean; 0 where nothing valid was seen."""
        return ratio(state["score"].value, state["weight"].value)

    def _weight_of_events(
        self, seen: Sample, weights: Float[Array, "..."] | None
    ) -> Float[Array, "..."]:
        """Return the weights without the axes that the score has not."""
        if (event_axes := self.event_axes) == 0:
            return seen.weights_of(self.least)
        if weights is not None and any(n > 1 for n in weights.shape[-event_axes:]):
            raise ValueError(
                f"`weights` of shape {weights.shape} vary along the last {event_axes} "
                "axes, which the score joins to one value: have 1 there."
            )
        weight = seen.weights[(..., *(0,) * event_axes)]
        if seen.valid is None:
            return weight
        axes = tuple(range(-event_axes, 0))
        present = seen.has_members
        complete = (seen.valid | ~present[None]).all(axes) & present.any(axes)[None]
        return jnp.where(jnp.sum(complete, axis=0) >= self.least, weight, 0)
