"""Does the spread of an ensemble say how wrong its mean is?"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from skyens.scores._sample import sample, to_truth
from skyens.scores._sums import Sums, add_terms, empty_sums, merge_sums, ratio, root


class SpreadAndSkill(NamedTuple):
    """What `SpreadSkill` gives: two numbers in the field's units and their ratio."""

    spread: Float[Array, "..."]  # root of the mean unbiased variance of the members
    skill: Float[Array, "..."]  # root of the mean squared error of the ensemble mean
    ratio: Float[Array, "..."]  # 1 for a reliable ensemble of any size


class SpreadSkill(eqx.Module):
    """The spread of the members against the error of their mean.

    `ratio = sqrt(mean((M + 1) / M s^2)) / sqrt(mean(e^2))`, with `s^2` the variance
    over `M - 1` and `e` the error of the mean. A reliable ensemble of any size has 1,
    as its mean is itself uncertain by `s^2 / M`. Where members are masked, `M` is that
    of the point; a point with fewer than two has no weight. `spread` is not corrected.
    Arguments and state: see `Statistic`.

    A truth that is observed with errors, independent of the members, is farther from
    their mean than the spread says: `truth_error`, their standard deviation, adds its
    square to the expected one, and a reliable ensemble has ratio 1 again. `spread` and
    `skill` stay what they are.

    Source: Fortin et al. (2014), J. Hydrometeor. 15, 1708-1713, equation 15;
        observation error: Saetra et al. (2004), Mon. Wea. Rev. 132, 1487-1501.
    """

    def init(self, shape: tuple[int, ...] = (), dtype: DTypeLike | None = None) -> Sums:
        """Return the state that has seen nothing, with `shape` as kept axes."""
        names = "weight", "variance", "expected_square", "squared_error"
        return empty_sums(dict.fromkeys(names, shape), dtype)

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
            ValueError: as for every statistic, or `ensemble` has one member, or
                `truth_error` does not broadcast to the shape of `truth`.
        """
        seen = sample(state, ensemble, truth, weights, where, least=2)
        weight = seen.weights_of(least=2)
        error = seen.mean_departure(seen.truth)
        squares = seen.total(lambda x: (x - error) ** 2, seen.truth)
        variance = squares / jnp.maximum(seen.count - 1, 1)
        expected = variance * (seen.count + 1) / seen.count
        if truth_error is not None:
            deviation = to_truth("truth_error", truth_error, seen.truth)
            square = jnp.where(deviation < 0, jnp.nan, deviation**2)
            # Where nothing counts it may be NaN, which times 0 would stay NaN.
            expected += jnp.where(seen.has_members, square, 0)
        return add_terms(
            state,
            weight=weight,
            variance=weight * variance,
            expected_square=weight * expected,
            squared_error=weight * error**2,
        )

    def merge(self, first: Sums, second: Sums) -> Sums:
        """Return the state that has seen what both have."""
        return merge_sums(first, second)

    def finalize(self, state: Sums) -> SpreadAndSkill:
        """Return spread, skill and ratio; 0 where nothing valid was seen.

        The ratio is 0 too where the skill is: a perfect mean has no ratio.
        """
        value = {name: total.value for name, total in state.items()}
        return SpreadAndSkill(
            spread=root(ratio(value["variance"], value["weight"])),
            skill=root(ratio(value["squared_error"], value["weight"])),
            ratio=ratio(root(value["expected_square"]), root(value["squared_error"])),
        )
