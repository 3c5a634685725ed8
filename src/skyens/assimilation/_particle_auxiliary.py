"""The auxiliary particle filter: choose first, by a look ahead, who gets the noise."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key, PyTree

from skyens.assimilation._ensemble import Info, as_pytree
from skyens.assimilation._particle import (
    describe,
    part_to_move,
    reweight,
    see,
    share,
    trace,
    with_members,
    with_weights,
)
from skyens.assimilation._resampling import Systematic
from skyens.assimilation._weighted import (
    Weighted,
    as_weighted,
    effective_size,
    normalise,
)
from skyens.dynamics import member_keys
from skyens.observations import Observation


class AuxiliaryFilter(eqx.Module):
    """Resample by the likelihood of the forecasts, then draw the model's noise.

    Its background are forecasts *without* the noise of the model, which the filter
    draws itself, once for each analysis: so that members which the observation favours
    get several draws, and others none. The weights then correct for the look ahead, and
    mean and evidence stay exact in the limit of many members. Where everything is
    masked, the noise is drawn all the same: it belongs to the forecast.

    Sources: Pitt & Shephard (1999), J. Amer. Stat. Assoc. 94, 590-599, with the
    forecast without noise as the likely value mu; Hesterberg (1995), Technometrics 37,
    185-194, for the caution.
    """

    noise: Callable[..., Any]
    threshold: Float[Array, ""]
    caution: Float[Array, ""]
    resampling: Callable[..., Any]
    where: Callable[[Any], Any] | None = eqx.field(static=True)

    def __init__(
        self,
        noise: Callable[..., Any],
        threshold: float | Float[Array, ""] = 1.0,
        caution: float | Float[Array, ""] = 0.1,
        *,
        resampling: Callable[..., Any] = Systematic(),
        where: Callable[[Any], Any] | None = None,
    ):
        """Set the noise, and when and how to choose.

        Args:
            noise: `noise(state, *, key) -> state` adds the model's noise to a forecast;
                `AdditiveNoise`, or any other, of any law. To draw whole steps from the
                analysis before, give the step here, and cycle with one that does
                nothing.
            threshold: choose when the effective size of the look ahead is at most this
                share of the members; 1 always.
            caution: the share of the choice that goes by the weights alone, from 0 to
                1. Without any, a forecast that the noise could still bring to the
                observation is hardly chosen, and then has a huge weight.
            resampling: `(weighted, *, key) -> members`, `Systematic()` say.
            where: the part of the state to update; everything if None. The noise is
                given that part alone, None in the place of other leaves.

        Raises:
            EquinoxRuntimeError: `threshold` is negative, or `caution` does not lie in
                [0, 1].
        """
        caution = share("caution", caution)
        message = "`caution` must lie in [0, 1]."
        self.caution = eqx.error_if(caution, ~(caution <= 1), message)
        self.noise = as_pytree(noise)
        self.threshold = share("threshold", threshold)
        self.resampling = as_pytree(resampling)
        self.where = where

    def __call__(
        self,
        background: PyTree[Array] | Weighted,
        observation: Observation,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Weighted, Info]:
        """Return the weighted analysis, and what there is to say of it.

        Raises:
            ValueError: there is no key, there are fewer than two members, or leaves
                disagree on their number.
        """
        if key is None:
            raise ValueError("`key` is needed to draw the noise; give one.")
        choose, disturb = jr.split(key)
        forecast = as_weighted(background)
        size = len(forecast.log_weights)
        keys = member_keys(disturb, size)
        active = jnp.any(observation.mask)
        _, ahead = see(forecast.members, observation)
        ahead = ahead.astype(forecast.log_weights.dtype)
        preview, hope = reweight(forecast, ahead, active)
        by_weight = self.caution.astype(hope.dtype)
        chance = (1 - by_weight) * preview.weights + by_weight * forecast.weights
        some = chance > 0
        choice = jnp.where(some, jnp.log(jnp.where(some, chance, 1)), -jnp.inf)
        limit = self.threshold.astype(hope.dtype) * size
        chosen = active & (hope > -jnp.inf) & (effective_size(choice) <= limit)

        def resample(favoured):
            moved, still = part_to_move(favoured.members, self.where)
            members, ancestors = trace(
                with_members(favoured, moved), self.resampling, key=choose
            )
            members = eqx.combine(members, still)
            # Equal weights, less what the look ahead has counted already; nobody
            # without a chance is an ancestor.
            equal, _ = normalise(jnp.zeros_like(ahead))
            counted = jnp.where(some, forecast.log_weights - choice, 0)
            return members, equal, counted[ancestors]

        def keep(favoured):
            return favoured.members, forecast.log_weights, jnp.zeros_like(ahead)

        members, log_weights, correction = jax.lax.cond(
            chosen, resample, keep, with_weights(forecast, choice)
        )
        members = self._disturb(members, keys)
        shown, likelihood = see(members, observation)
        likelihood = likelihood.astype(correction.dtype)
        before = with_weights(with_members(forecast, members), log_weights)
        analysis, log_evidence = reweight(before, likelihood + correction, active)
        # What the background would have shown with noise, whoever was chosen.
        expected, _ = see(self._disturb(forecast.members, keys), observation)
        info = describe(
            observation,
            (expected, forecast.log_weights),
            (shown, analysis.log_weights),
            log_evidence,
        )
        return analysis, info

    def _disturb(self, members, keys):
        moved, still = part_to_move(members, self.where)
        noisy = jax.vmap(lambda state, key: self.noise(state, key=key))(moved, keys)
        return eqx.combine(noisy, still)
