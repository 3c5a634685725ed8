"""Observations within a window: made at several times, analysed at one."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Key, PyTree, Scalar

from skyens.assimilation._ensemble import Recorded
from skyens.observations import Error, Observation


def layers(method: Any) -> list[Any]:
    """Return a method, the one it holds if it holds one, and so on to the innermost.

    `Inflated(AdaptiveInflation(ETKF()))` has three.
    """
    found = [method]
    while (inner := getattr(found[-1], "method", None)) is not None:
        found.append(inner)
    return found


def holds_step(method: Any) -> bool:
    """Whether it is a method of windows, which runs the step by itself."""
    inner = layers(method)[-1]
    step = getattr(inner, "step", None)
    return step is not None and hasattr(inner, "steps_between")


def recorded(
    observations: Observation, predictions: Float[Array, "member time *observation"]
) -> Observation:
    """Return the observations of a window as one, with what the members showed then.

    `observations` has a leading axis of times in every array. That of the result leads
    its value, mask and coordinates; errors of different times are independent.
    """
    return Observation(
        observations.value,
        Recorded(predictions),
        ErrorOfTimes(observations.error),
        observations.mask,
        observations.coordinates,
        rejected=observations.rejected,
        period=observations.period,
    )


class ErrorOfTimes(eqx.Module):
    """Errors of several times, independent of each other; the times lead all arrays."""

    error: Error

    @property
    def independent(self) -> bool:
        """Whether entries of one time are independent too."""
        return self.error.independent

    def at(self, prediction: Float[Array, "time *shape"]) -> "ErrorOfTimes":
        """Return the law where this is predicted, if it depends on it."""
        if getattr(self.error, "at", None) is None:
            return self
        law = lambda error, prediction: error.at(prediction)
        return ErrorOfTimes(jax.vmap(law)(self.error, prediction))

    def gaussian(
        self, residual: Float[Array, "time *shape"], mask: Bool[Array, "time *shape"]
    ) -> "ErrorOfTimes":
        """Return the Gaussian law that stands for it at these residuals."""
        if getattr(self.error, "gaussian", None) is None:
            return self
        law = lambda error, residual, mask: error.gaussian(residual, mask)
        return ErrorOfTimes(jax.vmap(law)(self.error, residual, mask))

    def whiten(
        self, residual: Float[Array, "time *shape"], mask: Bool[Array, "time *shape"]
    ) -> Float[Array, "time *shape"]:
        """Return `R^-1/2 residual` of each time, 0 where `mask` is False."""
        whiten = lambda error, residual, mask: error.whiten(residual, mask)
        return jax.vmap(whiten)(self.error, residual, mask)

    def log_prob(
        self, residual: Float[Array, "time *shape"], mask: Bool[Array, "time *shape"]
    ) -> Scalar:
        """Return the log-density of the residuals that `mask` keeps."""
        density = lambda error, residual, mask: error.log_prob(residual, mask)
        return jnp.sum(jax.vmap(density)(self.error, residual, mask))

    def sample(
        self, prediction: Float[Array, "time *shape"], *, key: Key[Array, ""]
    ) -> Float[Array, "time *shape"]:
        """Return one error for each time, in the prediction's dtype and units."""
        draw = lambda error, prediction, key: error.sample(prediction, key=key)
        keys = jr.split(key, len(prediction))
        return jax.vmap(draw)(self.error, prediction, keys)


def hide_all_but(observations: Observation, new: Bool[Array, "time"]) -> Observation:
    """Return the observations of a window with those masked that are not `new`."""
    along = new.reshape(-1, *(1,) * (observations.value.ndim - 1))
    parts = lambda o: (o.mask, o.rejected)
    masks = observations.mask & along, observations.rejected & along
    return eqx.tree_at(parts, observations, masks)


def observe_times(
    observe: Callable[[Any], Observation], data: PyTree[Array]
) -> Observation:
    """Return the observations of each of the leading times of `data`, stacked.

    Raises:
        ValueError: `observe` returned no Observation.
    """
    return jax.vmap(lambda datum: check_observation(observe(datum)))(data)


def check_observation(observation: Any) -> Observation:
    """Return what `observe` made.

    Raises:
        ValueError: it is no Observation.
    """
    if not isinstance(observation, Observation):
        raise ValueError(
            "`observe` must return an Observation of one time, got "
            f"{type(observation).__name__}."
        )
    return observation
