"""How often does the truth lie outside of the ensemble?"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from skyens.scores._sample import sample
from skyens.scores._sums import Sums, add_terms, empty_sums, merge_sums, ratio


class OutlierShares(NamedTuple):
    """What `Outliers` gives: shares of the truths, and their ratio."""

    below: Float[Array, "..."]  # below every member
    above: Float[Array, "..."]  # above every member
    outside: Float[Array, "..."]  # either
    expected: Float[Array, "..."]  # of a reliable ensemble: 2 / (members + 1)
    ratio: Float[Array, "..."]  # outside / expected: above 1 for too little spread


class Outliers(eqx.Module):
    """The share of truths outside of the ensemble, against that of a reliable one.

    A truth equal to `t` members and above no other is below all with the part
    `1 / (t + 1)`, as for `RankHistogram`, and likewise above: ties (dry days) leave a
    reliable ensemble at `2 / (members + 1)`. Where members are masked, the members are
    those of the point. Arguments and state: see `Statistic`.

    Source: Hamill (2001), Mon. Wea. Rev. 129, 550-560.
    """

    def init(self, shape: tuple[int, ...] = (), dtype: DTypeLike | None = None) -> Sums:
        """Return the state that has seen nothing, with `shape` as kept axes."""
        names = "weight", "below", "above", "expected"
        return empty_sums(dict.fromkeys(names, shape), dtype)

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
        sides = lambda x: (x < 0, x > 0, x == 0, jnp.isnan(x))
        below, above, tied, lost = seen.total(sides, seen.truth)
        # NaN, which compares as false, must not pass as a truth inside.
        part = jnp.where(lost > 0, jnp.nan, 1 / (tied + 1))
        # The part where no member is on that side of the truth.
        unless = lambda side: weight * jnp.where(side > 0, 0 * part, part)
        return add_terms(
            state,
            weight=weight,
            below=unless(below),
            above=unless(above),
            expected=weight * 2 / (seen.count + 1),
        )

    def merge(self, first: Sums, second: Sums) -> Sums:
        """Return the state that has seen what both have."""
        return merge_sums(first, second)

    def finalize(self, state: Sums) -> OutlierShares:
        """Return the shares; 0 where nothing valid was seen."""
        value = {name: total.value for name, total in state.items()}
        share = lambda part: ratio(part, value["weight"])
        outside = value["below"] + value["above"]
        return OutlierShares(
            below=share(value["below"]),
            above=share(value["above"]),
            outside=share(outside),
            expected=share(value["expected"]),
            ratio=ratio(outside, value["expected"]),
        )
