"""Optimal interpolation: Kalman's update with a static covariance, by direct solve."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Key, PyTree

from skyens.assimilation._background_covariance import BackgroundCovariance
from skyens.assimilation._climatology import climate_members
from skyens.assimilation._ensemble import Info, count_members, split
from skyens.assimilation._variational import problem
from skyens.assimilation._variational_minimisers import ObservationSpace
from skyens.assimilation._variational_problem import analyse_ensemble
from skyens.observations import Observation


class OptimalInterpolation(eqx.Module):
    """Kalman's update with a covariance that never changes, by a direct solve.

    The background is the ensemble's mean, and all members move along with it; with
    `perturb` each is a background of its own, and has its own perturbed observations.
    The answer is that of `ThreeDVar`, without iterations: for up to some thousands of
    observations. A nonlinear operator is linearised at the background.

    With a climatology's `mean` that is the background instead, and `covariance` its:
    the members' forecasts have no say. All members become the same analysis, or with
    `perturb` draws from what the observations leave of the climatology.

    Source: Gandin (1963), Objective analysis of meteorological fields.
    """

    covariance: BackgroundCovariance
    mean: PyTree[Array] | None
    perturb: bool = eqx.field(static=True)
    where: Callable[[Any], Any] | None = eqx.field(static=True)

    def __init__(
        self,
        covariance: BackgroundCovariance,
        mean: PyTree[Any] | None = None,
        *,
        perturb: bool = False,
        where: Callable[[Any], Any] | None = None,
    ):
        """Set how to interpolate.

        Args:
            covariance: of the background's errors, or of the climate about `mean`.
            mean: one state, the climatology's; None to use the members' mean.
            perturb: whether each member gets an analysis of its own; needs a key.
            where: the part of the state to update; otherwise all its leaves of real
                numbers.
        """
        self.covariance = covariance
        self.mean = None if mean is None else jax.tree.map(jnp.asarray, mean)
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
            ValueError: the covariance or the mean do not fit the state, a leaf to
                update is complex, leaves disagree on the number of members, or
                `perturb` has no key.
        """
        count_members(background, least=1)
        update, rest = split(background, self.where)
        first, second = (None, None) if key is None else jr.split(key)
        if self.mean is not None:
            mean, _ = split(self.mean, self.where)
            spread = self.covariance if self.perturb else None
            update = climate_members(mean, spread, update, key=first)
        return analyse_ensemble(
            lambda state, rest: problem(self.covariance, state, rest),
            ObservationSpace(),
            update,
            rest,
            observation,
            perturb=self.perturb,
            key=second,
        )
