"""The extended Kalman filter: a mean and its covariance, carried by the tangent linear.

A `Gaussian` takes the place of a member: `GaussianStep` forecasts one, and the filter
updates it. The leading member axis counts filters that know nothing of each other.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from skyens.assimilation._ensemble import Info, as_pytree, count_members, counts
from skyens.assimilation._kalman import Gaussian, condition, flatten
from skyens.observations import Observation


class GaussianStep(eqx.Module):
    """A step of mean and covariance: `P <- inflation^dt M P M' + noise`.

    M is the tangent linear of the step at the mean; it is applied to the columns of P
    and never built. The step is called without key.
    """

    step: Callable[..., Any]
    noise: Float[Array, "state state"] | None
    inflation: Float[Array, ""]
    dt: Float[Array, ""]

    def __init__(
        self,
        step: Callable[..., Any],
        *,
        noise: Float[Array, "state state"] | None = None,
        inflation: float | Float[Array, ""] = 1.0,
        dt: float | Float[Array, ""] = 1.0,
    ):
        """Set what to step, and how the covariance grows on its own.

        Args:
            step: `step(state, forcing) -> state`.
            noise: covariance of the error of one step, in the state's units squared.
            inflation: factor of the covariance for each unit of time, above 0.
            dt: the time of one step, in that unit.

        Raises:
            EquinoxRuntimeError: `inflation` is not above 0.
        """
        inflation = jnp.asarray(inflation, float)
        message = "`inflation` must be above 0; 1 is none."
        self.step = as_pytree(step)
        self.noise = noise
        self.inflation = eqx.error_if(inflation, ~(inflation > 0), message)
        self.dt = jnp.asarray(dt, float)

    def __call__(
        self,
        state: Gaussian,
        forcing: PyTree[Array] | None = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Gaussian:
        """Return the law of the state one step later; the key is not used.

        Raises:
            ValueError: the covariance does not fit the mean, or that is complex.
        """
        flat, unravel = flatten(state.mean, state.covariance)

        def advance(flat):
            later = self.step(unravel(flat), forcing)
            return flatten(later, state.covariance)[0], later

        _, tangent, later = jax.linearize(advance, flat, has_aux=True)
        columns = jax.vmap(tangent)
        spread = columns(columns(state.covariance).T)
        spread = (self.inflation**self.dt).astype(flat.dtype) * (spread + spread.T) / 2
        if self.noise is not None:
            spread = spread + self.noise.astype(flat.dtype)
        return Gaussian(later, spread)


class ExtendedKalmanFilter(eqx.Module):
    """Kalman's update of each `Gaussian`, with operators linearised at its mean.

    A cycle with it runs a `GaussianStep`:

        start = Gaussian(mean[None], covariance[None])
        cycle(GaussianStep(step), ExtendedKalmanFilter(), start, observe, data, key=key)

    It is exact where step and operator are linear. The leading member axis counts
    independent filters; what the info says of several is their mean.

    Source: Jazwinski (1970), Stochastic Processes and Filtering Theory, chapter 8.
    """

    def __call__(
        self,
        background: Gaussian,
        observation: Observation,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Gaussian, Info]:
        """Return the analysed laws, and what there is to say of them.

        Where everything is masked the background comes back as it is. The key is not
        used.

        Raises:
            ValueError: a covariance does not fit its mean, or that is complex.
        """
        count_members(background, least=1)
        means, covariances, seen = jax.vmap(
            lambda law: condition(law.mean, law.covariance, observation)
        )(background)
        number = counts(observation)
        active = number["used"] > 0
        keep = lambda new, old: jnp.where(active, new, old)
        analysis = jax.tree.map(keep, Gaussian(means, covariances), background)
        misfit, freedom, evidence = jax.vmap(
            lambda seen: (seen.misfit, seen.degrees_of_freedom, seen.log_evidence)
        )(seen)
        used = jnp.maximum(number["used"], 1).astype(misfit.dtype)
        info = Info(
            **number,
            chi_square=jnp.mean(misfit) / used,
            degrees_of_freedom=jnp.mean(freedom),
            log_evidence=jnp.mean(evidence),
        )
        return analysis, info
