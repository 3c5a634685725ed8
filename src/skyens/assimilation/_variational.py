"""Three-dimensional variational analysis."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Key, PyTree

from skyens.assimilation._background_covariance import BackgroundCovariance
from skyens.assimilation._ensemble import Info, count_members, split
from skyens.assimilation._variational_minimisers import Incremental, Minimiser
from skyens.assimilation._variational_problem import Problem, analyse_ensemble, move
from skyens.observations import Observation


class ThreeDVar(eqx.Module):
    """Three-dimensional variational analysis with a static background covariance.

    It minimises `|v|^2 / 2 - log p(y | background + B^1/2 v)` over control variables v,
    which needs no matrix at all: neither of the background nor of the observations.

    What it does to an ensemble, of one member or more: the mean gets the analysis, and
    all members move along with it, their anomalies untouched. Nothing damps these, so
    cycle one member, or with `perturb`: each member then gets an analysis of its own,
    of observations with errors drawn anew (an ensemble of data assimilations), and the
    spread is that of the analysis error.

    Info: `iterations` and `converged` are the minimiser's; `chi_square` is twice the
    cost at the minimum over the number of observations, and `degrees_of_freedom` is
    `|v|^2`: where the covariances are right its expectation is their number (Talagrand
    1999), and one draw scatters about it.

    Sources: Lorenc (1986), Quart. J. Roy. Meteor. Soc. 112, 1177-1194; Parrish & Derber
    (1992), Mon. Wea. Rev. 120, 1747-1763; for `perturb`, Isaksen et al. (2010), ECMWF
    Technical Memorandum 636.
    """

    covariance: BackgroundCovariance
    minimiser: Minimiser
    perturb: bool = eqx.field(static=True)
    where: Callable[[Any], Any] | None = eqx.field(static=True)

    def __init__(
        self,
        covariance: BackgroundCovariance,
        *,
        minimiser: Minimiser | None = None,
        perturb: bool = False,
        where: Callable[[Any], Any] | None = None,
    ):
        """Set how to analyse.

        Args:
            covariance: of the background's errors.
            minimiser: `Incremental()` when not given, with one outer loop.
            perturb: whether to perturb the observations for each member; needs a key.
            where: the part of the state to update; otherwise all its leaves of real
                numbers.
        """
        self.covariance = covariance
        self.minimiser = Incremental() if minimiser is None else minimiser
        self.perturb = perturb
        self.where = where

    def __call__(
        self,
        background: PyTree[Array],
        observation: Observation,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[PyTree[Array], Info]:
        """Return the analysis ensemble, and what there is to say of it.

        Raises:
            ValueError: the covariance does not fit the state, a leaf to update is
                complex, leaves disagree on the number of members, or `perturb` has no
                key.
        """
        count_members(background, least=1)
        update, rest = split(background, self.where)
        return analyse_ensemble(
            lambda state, rest: problem(self.covariance, state, rest),
            self.minimiser,
            update,
            rest,
            observation,
            perturb=self.perturb,
            key=key,
        )


def problem(
    covariance: BackgroundCovariance, state: PyTree[Any], rest: PyTree[Any]
) -> Problem:
    """Return the problem of one observation, made at the time of the background."""
    zero, unravel = ravel_pytree(covariance.control(state))
    increment = lambda v: covariance.root(unravel(v), state)

    def visit(observation, function, v):
        return function(observation, eqx.combine(move(state, increment(v)), rest), 0)

    return Problem(zero, visit, increment)
