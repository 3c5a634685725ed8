"""Are the errors of background and observations what innovations say they are?"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from skyens.scores._sample import sample, to_truth
from skyens.scores._sums import Sums, add_terms, empty_sums, merge_sums, ratio


class Consistency(NamedTuple):
    """What `Desroziers` gives, in the observations' units or their square."""

    innovation: Float[Array, "..."]  # mean of observation minus background mean
    innovation_square: Float[Array, "..."]  # mean of its square
    expected_square: Float[Array, "..."]  # what spread and observation error make it
    ratio: Float[Array, "..."]  # innovation_square / expected_square: 1 if consistent
    chi_square: Float[Array, "..."]  # mean of square over expected one, point by point
    background_variance: Float[Array, "..."]  # assumed: mean unbiased variance
    observation_variance: Float[Array, "..."]  # assumed: mean squared error given
    estimated_background_variance: Float[Array, "..."]  # from products; with analyses
    estimated_observation_variance: Float[Array, "..."]  # may be negative


class Desroziers(eqx.Module):
    """Consistency of innovations with the errors that an assimilation assumed.

    With `d = y - mean(x)` the innovation of observations `y` by the background ensemble
    in observation space, `e = y - mean(a)` that by the analysis, `s^2` the ensemble's
    variance over `M - 1` and `r` the standard deviation of the observation error:

    - `mean(d^2)` should be `mean((M + 1) / M s^2 + r^2)`, with the error of a mean of
      `M` members as in `SpreadSkill`, and `chi_square` 1;
    - `mean(e d)` estimates the variance of the observation error, and `mean((d - e) d)`
      that of the background error, if the analysis weighs both rightly or nearly so.

    The squares contain the bias, which `innovation` shows. Arguments and state: see
    `Statistic`, with observations as the truth; a point needs two members.

    Source: Desroziers et al. (2005), Q. J. R. Meteorol. Soc. 131, 3385-3396, equations
        1 to 3.
    """

    def init(self, shape: tuple[int, ...] = (), dtype: DTypeLike | None = None) -> Sums:
        """Return the state that has seen nothing, with `shape` as kept axes."""
        names = ("weight", "innovation", "square", "expected", "chi_square")
        names += ("background", "observation")
        names += ("analysis_weight", "background_product", "observation_product")
        return empty_sums(dict.fromkeys(names, shape), dtype)

    def update(
        self,
        state: Sums,
        ensemble: Float[Array, "member ..."],
        truth: Float[Array, "..."],
        weights: Float[Array, "..."] | None = None,
        where: Bool[Array, "..."] | None = None,
        *,
        observation_error: Float[Array, "..."],
        analysis: Float[Array, "..."] | None = None,
    ) -> Sums:
        """Return the state that has seen these innovations too.

        Args:
            state: what was seen before.
            ensemble: the background in observation space, without observation error.
            truth: the observations.
            weights: of the observations.
            where: which members or observations count.
            observation_error: its standard deviation; broadcasts to `truth`.
            analysis: in observation space, of the background's shape; without it the
                two estimated variances see nothing of this update.

        Raises:
            ValueError: as for every statistic, there is one member,
                `observation_error` does not broadcast to `truth`, or `analysis` has
                another shape than `ensemble`.
        """
        seen = sample(state, ensemble, truth, weights, where, least=2)
        error = to_truth("observation_error", observation_error, seen.truth)
        weight = seen.weights_of(least=2)
        # What is masked may be NaN, which times a weight of 0 would stay NaN.
        observation = jnp.where(seen.has_members, error**2, 0)
        shift = seen.mean_departure(seen.truth)
        squares = seen.total(lambda x: (x - shift) ** 2, seen.truth)
        background = squares / jnp.maximum(seen.count - 1, 1)
        expected = background * (seen.count + 1) / seen.count + observation
        terms = {
            "weight": weight,
            "innovation": -weight * shift,
            "square": weight * shift**2,
            "expected": weight * expected,
            "chi_square": weight * ratio(shift**2, expected),
            "background": weight * background,
            "observation": weight * observation,
        }
        if analysis is not None:
            if analysis.shape != ensemble.shape:
                raise ValueError(
                    f"`analysis` of shape {analysis.shape} must have that of "
                    f"`ensemble`, {ensemble.shape}."
                )
            analysed = seen._replace(ensemble=analysis.astype(seen.truth.dtype))
            after = analysed.mean_departure(seen.truth)
            terms["analysis_weight"] = weight
            terms["observation_product"] = weight * after * shift
            terms["background_product"] = weight * (shift - after) * shift
        return state | add_terms({name: state[name] for name in terms}, **terms)

    def merge(self, first: Sums, second: Sums) -> Sums:
        """Return the state that has seen what both have."""
        return merge_sums(first, second)

    def finalize(self, state: Sums) -> Consistency:
        """Return the consistency; 0 where nothing valid, or no analysis, was seen."""
        value = {name: total.value for name, total in state.items()}
        mean = lambda name: ratio(value[name], value["weight"])
        product = lambda name: ratio(value[name], value["analysis_weight"])
        return Consistency(
            innovation=mean("innovation"),
            innovation_square=mean("square"),
            expected_square=mean("expected"),
            ratio=ratio(value["square"], value["expected"]),
            chi_square=mean("chi_square"),
            background_variance=mean("background"),
            observation_variance=mean("observation"),
            estimated_background_variance=product("background_product"),
            estimated_observation_variance=product("observation_product"),
        )
