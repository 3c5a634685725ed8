"""Inflation that is learned from innovations while cycling."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from skyens.assimilation._ensemble import (
    Recorded,
    as_pytree,
    counts,
    observe,
    predict_members,
)
from skyens.assimilation._inflation import multiply
from skyens.observations import Observation


class AdaptiveInflation(eqx.Module):
    """A method whose backgrounds are inflated as much as their innovations ask for.

    On average the squared whitened innovation is `p + factor * trace`: p observations,
    and the trace of `R^-1/2 H P H' R^-1/2` for the background's covariance P. So each
    analysis gives an estimate of the `factor` of the variance, a noisy one. A Kalman
    filter of one number joins it to those before, which may drift: its estimate and the
    variance of that are the memory of this method, in `info.method`. The background's
    perturbations are multiplied by the root of the factor; `info.inflation` is that
    root. The chi-square in the info is that of the inflated background.

    It makes up for all that the ensemble lacks, sampling errors and those of the model.
    Where the background's spread is small against the observation errors an innovation
    says little of it, and the factor needs hundreds of analyses to settle. Where no
    observation is used the background comes back as it is, and nothing is learned.

    Sources: Wang & Bishop (2003), J. Atmos. Sci. 60, 1140-1158, for the estimate; Li
    et al. (2009), Q. J. R. Meteorol. Soc. 135, 523-533, for the Kalman filter; Miyoshi
    (2011), Mon. Wea. Rev. 139, 1519-1535, for the variance of the estimate.
    """

    method: Callable[..., tuple[Any, Any]]
    factor: Float[Array, ""]
    variance: Float[Array, ""]
    drift: Float[Array, ""]
    bounds: Float[Array, "2"]
    where: Callable[[Any], Any] | None = eqx.field(static=True)

    def __init__(
        self,
        method: Callable[..., tuple[Any, Any]],
        factor: float | Float[Array, ""] = 1.0,
        *,
        deviation: float | Float[Array, ""] = 0.5,
        drift: float | Float[Array, ""] = 0.01,
        bounds: tuple[float, float] | Float[Array, "2"] = (1.0, 10.0),
        where: Callable[[Any], Any] | None = None,
    ):
        """Set the `method`, and what is known of the factor at first.

        Args:
            method: any method of ensembles, without inflation of its own as a rule.
            factor: first guess of the factor of the background's variance, above 0.
            deviation: standard deviation of that guess, not negative.
            drift: standard deviation of the factor's change between two analyses, not
                negative; 0 averages over all past.
            bounds: the factor stays between these two, both above 0.
            where: the part of the state to inflate, all leaves of real or complex
                numbers otherwise.

        Raises:
            EquinoxRuntimeError: a number is not what it must be.
        """
        number = lambda x: jnp.asarray(x, float)
        self.method = as_pytree(method)
        bounds = number(bounds)
        ordered = (bounds[0] > 0) & (bounds[0] <= bounds[1])
        self.bounds = eqx.error_if(
            bounds, ~ordered, "`bounds` must be above 0, the lower one first."
        )
        factor = number(factor)
        self.factor = eqx.error_if(factor, ~(factor > 0), "`factor` must be above 0.")
        self.variance = _not_negative("deviation", number(deviation)) ** 2
        self.drift = _not_negative("drift", number(drift))
        self.where = where

    def __call__(
        self,
        background: PyTree[Array],
        observation: Observation,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[PyTree[Array], Any]:
        """Return the analysis of the inflated background, and the method's info.

        Predictions that were recorded along a window are inflated like the members.

        Raises:
            ValueError: as the method does.
        """
        innovation, anomalies = observe(background, observation)
        used = counts(observation)["used"]
        factor, variance = self._learn(innovation, anomalies, used)
        active = used > 0
        root = jnp.where(active, jnp.sqrt(factor), 1)
        inflated = multiply(background, root, self.where)
        if isinstance(observation.operator, Recorded):
            predictions = multiply(predict_members(background, observation), root, None)
            observation = eqx.tree_at(
                lambda o: o.operator.predictions, observation, predictions
            )
        analysis, info = self.method(inflated, observation, key=key)
        choose = lambda a, b: jnp.where(active, a, b)
        analysis = jax.tree.map(choose, analysis, background)
        inner = getattr(info, "method", None)
        successor = eqx.tree_at(
            lambda method: (method.method, method.factor, method.variance),
            self,
            (self.method if inner is None else inner, factor, variance),
        )
        info = eqx.tree_at(
            lambda info: (info.inflation, info.method),
            info,
            (root, successor),
            is_leaf=lambda leaf: leaf is None,
        )
        return analysis, info

    def _learn(
        self,
        innovation: Float[Array, "observation"],
        anomalies: Float[Array, "member observation"],
        used: Int[Array, ""],
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The factor and its variance, given one more innovation."""
        dtype = self.factor.dtype
        number = jnp.maximum(used, 1).astype(dtype)
        trace = jnp.sum(anomalies**2).astype(dtype) / (len(anomalies) - 1)
        variance = self.variance + self.drift**2
        # The estimate (d'd - p) / trace has the variance 2 (factor trace + p)^2 /
        # (p trace^2); all is multiplied by the trace, which may be 0.
        expected = self.factor * trace + number
        surprise = jnp.sum(innovation**2).astype(dtype) - expected
        seen = variance * trace**2
        total = seen + 2 * expected**2 / number
        factor = self.factor + variance * trace * surprise / total
        remaining = variance * (1 - seen / total)
        known = jnp.where(used > 0, factor, self.factor)
        return (
            jnp.clip(known, self.bounds[0], self.bounds[1]),
            jnp.where(used > 0, remaining, self.variance),
        )


def _not_negative(name, value):
    return eqx.error_if(value, ~(value >= 0), f"`{name}` must not be negative.")
