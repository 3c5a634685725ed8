"""Diagnostics of cycles: statistics that grow with the cycle and store no ensembles.

A diagnostic is a monoid: `init(seen)`, `update(state, seen)`, `merge(first, second)`
and `finalize(state)`. The statistics themselves are those of `skyens.scores`.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int, PyTree

from skyens.assimilation._ensemble import Info, centre, wide
from skyens.observations import Observation
from skyens.scores import Sum


class Seen(eqx.Module):
    """What a cycle shows its diagnostics, once for each observation.

    `predictions` and `analysed` are what the members of background and analysis show
    of it; the latter is None for the observations of a window that a filter analyses
    at its end. `number` counts them from 0. `counts` is False for an observation that
    was shown before. `last` is True for the last observation of an analysis, so that
    each `info` counts once.
    """

    background: PyTree[Array]
    analysis: PyTree[Array]
    observation: Observation
    predictions: Float[Array, "member *observation"]
    analysed: Float[Array, "member *observation"] | None
    info: Any
    truth: PyTree[Array] | None
    number: Int[Array, ""]
    counts: Bool[Array, ""]
    last: Bool[Array, ""]


@runtime_checkable
class Diagnostic(Protocol):
    """The contract of what `cycle` takes as a diagnostic."""

    def init(self, seen: Seen) -> Any:
        """Return the state that has seen nothing; of `seen` only shapes are known."""
        ...

    def update(self, state: Any, seen: Seen) -> Any:
        """Return the state that has seen this too."""
        ...

    def merge(self, first: Any, second: Any) -> Any:
        """Return the state that has seen what both have."""
        ...

    def finalize(self, state: Any) -> Any:
        """Return the diagnostic."""
        ...


class AgainstObservations(eqx.Module):
    """A statistic of the background against observations, whitened by their errors.

    `AgainstObservations(scores.Desroziers())` gives the consistency of innovations in
    units of the observation error: an `estimated_observation_variance` of 1 confirms
    the error that was assumed (Desroziers' ratio), and `ratio` and `chi_square` of 1
    the spread of the background. `scores.SpreadSkill()` and `scores.RankHistogram(N)`
    allow for the observation error. Masked entries do not count.
    """

    statistic: Any  # a `scores.Statistic`, maybe with more arguments
    burn_in: int = eqx.field(static=True)
    keep: int = eqx.field(static=True)

    def __init__(self, statistic: Any, *, burn_in: int = 0, keep: int = 0):
        """Set the statistic.

        Args:
            statistic: of `skyens.scores`, or any other `Statistic`. It is told
                `observation_error`, `truth_error` (both 1) and `analysis` if its
                `update` has arguments of these names.
            burn_in: number of observations to leave out first.
            keep: number of leading axes of the observation to keep: 1 for a result of
                each station, say.

        Raises:
            ValueError: `burn_in` or `keep` is negative.
        """
        _check_sizes(burn_in=burn_in, keep=keep)
        self.statistic, self.burn_in, self.keep = statistic, burn_in, keep

    def init(self, seen: Seen) -> Any:
        """Return the state that has seen nothing.

        Raises:
            ValueError: the observation has fewer than `keep` axes.
        """
        shape = seen.observation.value.shape
        if self.keep > len(shape):
            raise ValueError(
                f"`keep` is {self.keep}, an observation has the shape {shape}."
            )
        return self.statistic.init(shape[: self.keep])

    def update(self, state: Any, seen: Seen) -> Any:
        """Return the state that has seen this observation too."""
        observation = seen.observation
        predictions = observation.unwrap(seen.predictions)
        predictions = predictions.astype(wide(predictions.dtype))
        error = observation.gaussian_error(centre(predictions)[0])
        whiten = lambda prediction: (
            -error.whiten(
                observation.residual(prediction.astype(predictions.dtype)),
                observation.mask,
            )
        )
        ensemble = jax.vmap(whiten)(predictions)
        one, none = jnp.ones_like(ensemble[0]), jnp.zeros_like(ensemble[0])
        more = {"observation_error": one, "truth_error": one}
        if seen.analysed is not None:
            more["analysis"] = jax.vmap(whiten)(seen.analysed)
        known = inspect.signature(self.statistic.update).parameters
        more = {name: value for name, value in more.items() if name in known}
        counts = observation.mask & seen.counts & (seen.number >= self.burn_in)
        return self.statistic.update(state, ensemble, none, where=counts[None], **more)

    def merge(self, first: Any, second: Any) -> Any:
        """Return the state that has seen what both have."""
        return self.statistic.merge(first, second)

    def finalize(self, state: Any) -> Any:
        """Return what the statistic does."""
        return self.statistic.finalize(state)


class AgainstTruth(eqx.Module):
    """A statistic of the analysis, or the background, against a truth that is known.

    `AgainstTruth(scores.SpreadSkill())` says whether the spread of the analysis is its
    error. The truth is the `truth` of the cycle.
    """

    statistic: Any  # a `scores.Statistic`, maybe with more arguments
    weights: Float[Array, "..."] | None
    select: Callable[[Any], Array] | None = eqx.field(static=True)
    background: bool = eqx.field(static=True)
    burn_in: int = eqx.field(static=True)
    keep: int = eqx.field(static=True)

    def __init__(
        self,
        statistic: Any,
        *,
        select: Callable[[Any], Array] | None = None,
        background: bool = False,
        weights: Float[Array, "..."] | None = None,
        burn_in: int = 0,
        keep: int = 0,
    ):
        """Set the statistic.

        Args:
            statistic: of `skyens.scores`, or any other `Statistic`.
            select: from one state to the array to score; None for states that are one
                array.
            background: whether to score the background in place of the analysis.
            weights: of the points, `grid.weights[:, None]` say.
            burn_in: number of observation times to leave out first.
            keep: number of leading axes of the array to keep.

        Raises:
            ValueError: `burn_in` or `keep` is negative.
        """
        _check_sizes(burn_in=burn_in, keep=keep)
        self.statistic, self.weights, self.select = statistic, weights, select
        self.background, self.burn_in, self.keep = background, burn_in, keep

    def init(self, seen: Seen) -> Any:
        """Return the state that has seen nothing.

        Raises:
            ValueError: the cycle has no truth, it is not like a state, or `select` is
                needed to choose one array of it.
        """
        truth, ensemble = self._arrays(seen)
        if ensemble.shape[1:] != truth.shape or self.keep > truth.ndim:
            raise ValueError(
                f"what `select` takes of `truth` has the shape {truth.shape}, of a "
                f"member {ensemble.shape[1:]}; `keep` is {self.keep}."
            )
        return self.statistic.init(truth.shape[: self.keep])

    def update(self, state: Any, seen: Seen) -> Any:
        """Return the state that has seen this time too."""
        truth, ensemble = self._arrays(seen)
        counts = seen.counts & (seen.number >= self.burn_in)
        counts = jnp.broadcast_to(counts, (1,) * ensemble.ndim)
        return self.statistic.update(state, ensemble, truth, self.weights, counts)

    def merge(self, first: Any, second: Any) -> Any:
        """Return the state that has seen what both have."""
        return self.statistic.merge(first, second)

    def finalize(self, state: Any) -> Any:
        """Return what the statistic does."""
        return self.statistic.finalize(state)

    def _arrays(self, seen):
        if seen.truth is None:
            raise ValueError("`AgainstTruth` needs the `truth` of the cycle.")
        select = _only_array if self.select is None else self.select
        ensemble = seen.background if self.background else seen.analysis
        return select(seen.truth), jax.vmap(select)(ensemble)


class Taken(NamedTuple):
    """What `Information` gives."""

    analyses: Float[Array, ""]  # how many
    used: Float[Array, ""]  # observations, in all analyses
    masked: Float[Array, ""]
    rejected: Float[Array, ""]
    chi_square: Float[Array, "..."]  # mean over observations used; 1 if consistent
    degrees_of_freedom: Float[Array, "..."]  # mean over analyses


class Information(eqx.Module):
    """What analyses say of themselves: counts, chi-square and degrees of freedom.

    The same for each analysis is in the `infos` of the cycle; here it adds up.
    """

    burn_in: int = eqx.field(static=True)

    def __init__(self, *, burn_in: int = 0):
        """Set the number of observations to leave out first.

        Raises:
            ValueError: it is negative.
        """
        _check_sizes(burn_in=burn_in)
        self.burn_in = burn_in

    def init(self, seen: Seen) -> dict[str, Sum]:
        """Return the state that has seen nothing.

        Raises:
            ValueError: the method returns no `Info`.
        """
        if not isinstance(seen.info, Info):
            raise ValueError(
                "`Information` needs a method that returns an Info, got "
                f"{type(seen.info).__name__}."
            )
        terms = jax.eval_shape(self._terms, seen)
        dtype = jnp.zeros((), float).dtype
        return {name: Sum.zeros(x.shape, dtype) for name, x in terms.items()}

    def update(self, state: dict[str, Sum], seen: Seen) -> dict[str, Sum]:
        """Return the state that has seen this observation too."""
        add = lambda total, term: total.merge(Sum(term, jnp.zeros_like(term)))
        terms = self._terms(seen)
        return {name: add(total, terms[name]) for name, total in state.items()}

    def merge(self, first: dict[str, Sum], second: dict[str, Sum]) -> dict[str, Sum]:
        """Return the state that has seen what both have."""
        return {name: total.merge(second[name]) for name, total in first.items()}

    def finalize(self, state: dict[str, Sum]) -> Taken:
        """Return counts and means; means are 0 where nothing was seen."""
        total = {name: each.value for name, each in state.items()}
        mean = lambda name, over: total[name] / jnp.where(over == 0, 1, over)
        used = jnp.broadcast_to(total["weight"], total["chi_square"].shape)
        return Taken(
            analyses=total["analyses"],
            used=total["used"],
            masked=total["masked"],
            rejected=total["rejected"],
            chi_square=mean("chi_square", used),
            degrees_of_freedom=mean("degrees_of_freedom", total["analyses"]),
        )

    def _terms(self, seen):
        info = seen.info
        counts = seen.last & (seen.number >= self.burn_in)
        # What does not count may be NaN, which times 0 would stay NaN.
        real = lambda x: jnp.where(counts, x.astype(float), 0)
        used = info.used
        shape = jnp.broadcast_shapes(used.shape, info.chi_square.shape)
        weight = jnp.broadcast_to(used, shape)
        chi_square = jnp.broadcast_to(info.chi_square, shape)
        some = weight > 0
        return {
            "analyses": real(jnp.ones(())),
            "used": real(jnp.sum(used)),
            "masked": real(jnp.sum(info.masked)),
            "rejected": real(jnp.sum(info.rejected)),
            "weight": real(weight),
            "chi_square": real(
                jnp.where(some, chi_square * weight.astype(chi_square.dtype), 0)
            ),
            "degrees_of_freedom": real(info.degrees_of_freedom),
        }


def _only_array(state: PyTree[Any]) -> Inexact[Array, "..."]:
    leaves = jax.tree.leaves(state)
    if len(leaves) != 1:
        raise ValueError(
            f"the state has {len(leaves)} leaves; say by `select` which array to score."
        )
    return leaves[0]


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 0:
            raise ValueError(f"`{name}` must not be negative, got {size}.")
