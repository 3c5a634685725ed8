"""Do forecasts and truth have the same climate? Quantiles against quantiles."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, DTypeLike, Float

from skyens.scores._sample import sample
from skyens.scores._sums import Sum, Sums, add_terms, empty_sums, merge_sums, ratio
from skyens.scores._thresholds import Numbers, share_of_members


class Quantiles(NamedTuple):
    """What `QuantileQuantile` gives, in the field's units."""

    forecast: Float[Array, "... level"]  # of all valid members
    truth: Float[Array, "... level"]


class QuantileQuantile(eqx.Module):
    """Quantiles of all that was forecast, and of all that came.

    Kept is how much lies at or below each edge, which merges exactly. Quantiles are
    read from it, linearly between edges: they are right to the distance of the two
    edges around them, and what lies outside of all edges counts as at the next of them.
    An edge at 0 and none below makes dry days exact. The members of a point share its
    weight. Arguments and state: see `Statistic`.
    """

    levels: tuple[float, ...] = eqx.field(static=True)
    edges: tuple[float, ...] = eqx.field(static=True)

    def __init__(self, levels: Numbers, edges: Numbers):
        """Set what to ask for and where to count.

        Args:
            levels: of the quantiles, increasing, between 0 and 1.
            edges: increasing, in the field's units; the closer, the more exact.

        Raises:
            ValueError: a level is not between 0 and 1, an edge is not finite, either do
                not increase, or there is no level or fewer than two edges.
        """
        self.levels = tuple(float(level) for level in levels)
        self.edges = tuple(float(edge) for edge in edges)
        unsorted = (np.diff(self.levels) <= 0).any()
        if not self.levels or unsorted or not all(0 < p < 1 for p in self.levels):
            raise ValueError(
                "`levels` must increase and lie between 0 and 1, at least one; got "
                f"{self.levels}."
            )
        unsorted = (np.diff(self.edges) <= 0).any()
        if len(self.edges) < 2 or unsorted or not np.isfinite(self.edges).all():
            raise ValueError(
                f"`edges` must be finite and increase, at least two; got {self.edges}."
            )

    def init(self, shape: tuple[int, ...] = (), dtype: DTypeLike | None = None) -> Sums:
        """Return the state that has seen nothing, with `shape` as kept axes."""
        each = (*shape, len(self.edges))
        return empty_sums({"weight": shape, "forecasts": each, "truths": each}, dtype)

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
        weight, kept = seen.weights_of(least=1), state["weight"].high.ndim
        lost = seen.total(jnp.isnan, seen.truth) > 0
        weight_or_nan = jnp.where(lost, jnp.nan, weight)

        def count(edge):
            share = share_of_members(seen, lambda x: x <= edge)
            came = (seen.truth <= edge).astype(weight.dtype)
            over = lambda x: Sum.over(weight_or_nan * x, kept)
            return over(share), over(came)

        # Edge after edge, for the memory of one.
        counts = lax.map(count, jnp.asarray(self.edges, weight.dtype))
        forecasts, truths = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), counts)
        return add_terms(state, weight=weight, forecasts=forecasts, truths=truths)

    def merge(self, first: Sums, second: Sums) -> Sums:
        """Return the state that has seen what both have."""
        return merge_sums(first, second)

    def finalize(self, state: Sums) -> Quantiles:
        """Return the quantiles; 0 where nothing valid was seen."""
        weight = state["weight"].value
        return Quantiles(
            self._invert(state["forecasts"].value, weight),
            self._invert(state["truths"].value, weight),
        )

    def _invert(
        self, below: Float[Array, "... edge"], weight: Float[Array, "..."]
    ) -> Float[Array, "... level"]:
        """Return where the weight at or below reaches each level."""
        edges = jnp.asarray(self.edges, below.dtype)

        def one(level):
            wanted = level * weight
            # The first edge that has enough at or below it, or the last.
            reached = jnp.sum(below < wanted[..., None], axis=-1)
            right = jnp.clip(reached, 1, len(self.edges) - 1)
            at = lambda i: jnp.take_along_axis(below, i[..., None], axis=-1)[..., 0]
            step = at(right) - at(right - 1)
            part = jnp.clip(ratio(wanted - at(right - 1), step), 0, 1)
            quantile = edges[right - 1] + part * (edges[right] - edges[right - 1])
            return jnp.where(reached == len(self.edges), edges[-1], quantile)

        levels = jnp.asarray(self.levels, below.dtype)
        quantiles = jnp.moveaxis(lax.map(one, levels), 0, -1)
        # NaN compares as false, and must not pass as a quantile.
        quantiles = jnp.where(jnp.isnan(below[..., :1]), jnp.nan, quantiles)
        return jnp.where(weight[..., None] == 0, 0, quantiles)
