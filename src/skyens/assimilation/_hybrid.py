"""Hybrid ensemble-variational analysis: static and ensemble covariances together."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key, PyTree

from skyens.assimilation._background_covariance import BackgroundCovariance
from skyens.assimilation._background_covariance_ensemble import (
    EnsembleCovariance,
    HybridCovariance,
)
from skyens.assimilation._ensemble import Info, as_pytree, centre, count_members, split
from skyens.assimilation._variational import problem
from skyens.assimilation._variational_minimisers import Incremental, Minimiser
from skyens.assimilation._variational_problem import add_increment, analyse_ensemble
from skyens.observations import Observation


class HybridEnVar(eqx.Module):
    """Three-dimensional variational analysis with a partly static covariance.

    `B = weights[0] * static + weights[1] * localised ensemble covariance`, the second
    that of the background's members at each analysis. It is `ThreeDVar` where the
    ensemble has no weight, and the mean of the ensemble Kalman filters where the static
    part has none and nothing is localised.

    The members then move along with their mean; or each has its own analysis of
    perturbed observations (`perturb`); or an ensemble method makes their anomalies
    (`members`) and the variational analysis their mean, as operational centres do.

    The info is as for `ThreeDVar`; `degrees_of_freedom` is `|v|^2`.

    Sources: Hamill & Snyder (2000), Mon. Wea. Rev. 128, 2905-2919; Lorenc (2003),
    Quart. J. Roy. Meteor. Soc. 129, 3183-3203; for `members`, Clayton et al. (2013),
    ibid. 139, 1445-1461.
    """

    covariance: BackgroundCovariance
    weights: Float[Array, "2"]
    localisation: BackgroundCovariance | None
    members: Callable[..., tuple[Any, Any]] | None
    minimiser: Minimiser
    perturb: bool = eqx.field(static=True)
    where: Callable[[Any], Any] | None = eqx.field(static=True)

    def __init__(
        self,
        covariance: BackgroundCovariance,
        weights: tuple[float, float] | Float[Array, "2"] = (0.5, 0.5),
        localisation: BackgroundCovariance | None = None,
        *,
        members: Callable[..., tuple[Any, Any]] | None = None,
        minimiser: Minimiser | None = None,
        perturb: bool = False,
        where: Callable[[Any], Any] | None = None,
    ):
        """Set how to analyse.

        Args:
            covariance: the static one.
            weights: of the static and of the ensemble's covariance, dimensionless.
            localisation: correlation of the weights of the ensemble's anomalies, see
                `EnsembleCovariance`; none when not given.
            members: an ensemble method, `ETKF(1.02)` say, for the anomalies.
            minimiser: `Incremental()` when not given, with one outer loop.
            perturb: whether to perturb the observations for each member; needs a key.
            where: the part of the state to update; otherwise all its leaves of real
                numbers.

        Raises:
            ValueError: both `members` and `perturb` are given.
            EquinoxRuntimeError: a weight is negative or not finite.
        """
        if members is not None and perturb:
            raise ValueError(
                "`members` and `perturb` both make the members' anomalies; give one."
            )
        weights = jnp.asarray(weights, None if isinstance(weights, Array) else float)
        fine = (weights >= 0) & (weights < jnp.inf)
        message = "`weights` must be finite and not negative."
        self.weights = eqx.error_if(weights, ~fine, message)
        self.covariance = covariance
        self.localisation = localisation
        self.members = None if members is None else as_pytree(members)
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

        A `members` method with memory leaves its successor in the info's `method`.

        Raises:
            ValueError: there are fewer than two members, leaves disagree on their
                number, the covariance does not fit the state, a leaf to update is
                complex, or `perturb` has no key.
        """
        count_members(background)
        update, rest = split(background, self.where)
        ensemble = EnsembleCovariance(update, self.localisation)
        both = (self.covariance, ensemble)
        covariance = HybridCovariance(both, self.weights)
        first, second = (None, None) if key is None else jr.split(key)
        analysis, info = analyse_ensemble(
            lambda state, rest: problem(covariance, state, rest),
            self.minimiser,
            update,
            rest,
            observation,
            perturb=self.perturb,
            key=first,
        )
        if self.members is None:
            return analysis, info
        members, other = self.members(background, observation, key=second)
        if (successor := getattr(other, "method", None)) is not None:
            successor = eqx.tree_at(lambda method: method.members, self, successor)
            info = eqx.tree_at(
                lambda info: info.method, info, successor, is_leaf=lambda x: x is None
            )
        anomalies, _ = split(members, self.where)
        centred, _ = split(analysis, self.where)
        # Equal ensembles have equal means: nothing is added where nothing was seen.
        shift = lambda wanted, got: add_increment(
            got, (centre(wanted)[0] - centre(got)[0])[None]
        )
        return eqx.combine(jax.tree.map(shift, centred, anomalies), rest), info
