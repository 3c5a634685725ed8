"""Parameterisations: what a network predicts, and how that becomes a denoiser.

A network trained elsewhere sees `x = alpha * clean + sigma * noise` at a time t of its
schedule and predicts the noise, the score, the velocity or the clean state. All say the
same; `as_denoiser` makes a denoiser of such a network, and `as_network` the reverse.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from skyens.diffusion._denoisers import Denoiser, Scalar
from skyens.diffusion._schedule import Schedule, level

State = Float[Array, "*state"]
Time = Float[Array, ""]


@runtime_checkable
class Invertible(Schedule, Protocol):
    """A schedule that knows the time of a level; all of this room do."""

    def time_of(self, level: Float[Array, "*time"]) -> Float[Array, "*time"]:
        """Return the time at which `sigma / alpha` is `level`."""
        ...


@runtime_checkable
class Parameterisation(Protocol):
    """What a network predicts, as a map to the clean state and back."""

    def to_clean(
        self, predicted: State, x: State, schedule: Schedule, time: Time
    ) -> State:
        """Return the clean state that goes with what was `predicted` from `x`."""
        ...

    def from_clean(
        self, clean: State, x: State, schedule: Schedule, time: Time
    ) -> State:
        """Return the prediction that goes with the `clean` state."""
        ...


class PredictsClean(eqx.Module):
    """The network predicts the clean state itself, also called x0 or sample."""

    def to_clean(
        self, predicted: State, x: State, schedule: Schedule, time: Time
    ) -> State:
        """Return `predicted`."""
        return predicted

    def from_clean(
        self, clean: State, x: State, schedule: Schedule, time: Time
    ) -> State:
        """Return `clean`."""
        return clean


class PredictsNoise(eqx.Module):
    """The network predicts the noise of unit variance, epsilon.

    Source: Ho, Jain & Abbeel (2020), NeurIPS 33, arXiv:2006.11239.
    """

    def to_clean(
        self, predicted: State, x: State, schedule: Schedule, time: Time
    ) -> State:
        """Return `(x - sigma noise) / alpha`."""
        return (x - schedule.sigma(time) * predicted) / schedule.alpha(time)

    def from_clean(
        self, clean: State, x: State, schedule: Schedule, time: Time
    ) -> State:
        """Return `(x - alpha clean) / sigma`."""
        return (x - schedule.alpha(time) * clean) / schedule.sigma(time)


class PredictsScore(eqx.Module):
    """The network predicts the gradient of the log density of `x`, per unit of `x`.

    The noise is white. Source: Song et al. (2021), ICLR, arXiv:2011.13456.
    """

    def to_clean(
        self, predicted: State, x: State, schedule: Schedule, time: Time
    ) -> State:
        """Return `(x + sigma^2 score) / alpha`."""
        variance = jnp.square(schedule.sigma(time))
        return (x + variance * predicted) / schedule.alpha(time)

    def from_clean(
        self, clean: State, x: State, schedule: Schedule, time: Time
    ) -> State:
        """Return `(alpha clean - x) / sigma^2`."""
        return (schedule.alpha(time) * clean - x) / jnp.square(schedule.sigma(time))


class PredictsV(eqx.Module):
    """The network predicts `v = alpha noise - sigma clean`.

    Source: Salimans & Ho (2022), ICLR, arXiv:2202.00512.
    """

    def to_clean(
        self, predicted: State, x: State, schedule: Schedule, time: Time
    ) -> State:
        """Return `(alpha x - sigma v) / (alpha^2 + sigma^2)`."""
        alpha, sigma = schedule.alpha(time), schedule.sigma(time)
        return (alpha * x - sigma * predicted) / (alpha * alpha + sigma * sigma)

    def from_clean(
        self, clean: State, x: State, schedule: Schedule, time: Time
    ) -> State:
        """Return `(alpha x - (alpha^2 + sigma^2) clean) / sigma`."""
        alpha, sigma = schedule.alpha(time), schedule.sigma(time)
        return (alpha * x - (alpha * alpha + sigma * sigma) * clean) / sigma


class PredictsVelocity(eqx.Module):
    """The network predicts the mean of `dx / dt`, as flow matching trains it.

    `dx / dt = alpha' clean + sigma' noise`; for `RectifiedFlow` this is noise - clean.

    Source: Lipman et al. (2023), ICLR, arXiv:2210.02747.
    """

    def to_clean(
        self, predicted: State, x: State, schedule: Schedule, time: Time
    ) -> State:
        """Return `(sigma' x - sigma velocity) / (alpha sigma' - alpha' sigma)`."""
        (alpha, falls), (sigma, grows) = _rates(schedule, time)
        return (grows * x - sigma * predicted) / (alpha * grows - falls * sigma)

    def from_clean(
        self, clean: State, x: State, schedule: Schedule, time: Time
    ) -> State:
        """Return `alpha' clean + sigma' (x - alpha clean) / sigma`."""
        (alpha, falls), (sigma, grows) = _rates(schedule, time)
        return falls * clean + grows * ((x - alpha * clean) / sigma)


class AdaptedDenoiser(eqx.Module):
    """The denoiser made of a network and what it predicts; made by `as_denoiser`."""

    network: Callable
    schedule: Invertible = eqx.field(metadata={"trainable": False})
    parameterisation: Parameterisation
    sigma_min: Float[Array, ""] = eqx.field(metadata={"trainable": False})
    sigma_max: Float[Array, ""] = eqx.field(metadata={"trainable": False})

    def __call__(self, x: State, sigma: Scalar, *, condition: Any = None) -> State:
        """Return the expected clean state, in the shape, units and dtype of `x`.

        `condition` goes to the network.
        """
        time = self.schedule.time_of(jnp.asarray(sigma, x.dtype))
        x = self.schedule.alpha(time) * x
        predicted = self.network(x, time, condition=condition)
        return self.parameterisation.to_clean(predicted, x, self.schedule, time)


class AdaptedNetwork(eqx.Module):
    """What a network would predict, made of a denoiser; made by `as_network`."""

    denoiser: Denoiser
    schedule: Schedule = eqx.field(metadata={"trainable": False})
    parameterisation: Parameterisation

    def __call__(self, x: State, time: Scalar, *, condition: Any = None) -> State:
        """Return the prediction from `x` at `time`; `condition` goes to the denoiser.

        `time` lies above the schedule's 0, where no noise is left to tell.
        """
        time = jnp.asarray(time, x.dtype)
        sigma = level(self.schedule, time)
        scaled = x / self.schedule.alpha(time)
        clean = self.denoiser(scaled, sigma, condition=condition)
        return self.parameterisation.from_clean(clean, x, self.schedule, time)


def as_denoiser(
    network: Callable,
    schedule: Invertible,
    parameterisation: Parameterisation,
    *,
    sigma_min: float | Float[Array, ""] | None = None,
    sigma_max: float | Float[Array, ""] | None = None,
) -> AdaptedDenoiser:
    """Return the denoiser that a network trained elsewhere amounts to.

    `network(x, time, condition=...)` takes one sample `x = alpha * clean + sigma *
    noise` and the scalar `time` of the `schedule` it was trained with; one that counts
    steps, or takes the level or its logarithm, is wrapped in a lambda first.
    `sigma_min` and `sigma_max` are the levels `sigma / alpha` it was trained between:
    samplers refuse to leave them. Those that are not given are the levels of the
    schedule's times 0 and 1.
    """
    if sigma_min is None:
        sigma_min = level(schedule, jnp.zeros(()))
    if sigma_max is None:
        last = level(schedule, jnp.ones(()))
        # Where no signal is left, rounding may make it a little less than none.
        sigma_max = jnp.where(last > 0, last, jnp.inf)
    low, high = (jnp.asarray(value, float) for value in (sigma_min, sigma_max))
    return AdaptedDenoiser(network, schedule, parameterisation, low, high)


def as_network(
    denoiser: Denoiser, schedule: Schedule, parameterisation: Parameterisation
) -> AdaptedNetwork:
    """Return what a denoiser predicts in another parameterisation of a `schedule`.

    It is called as `network(x, time, condition=...)`: the score of a prior, say, is
    `as_network(prior, schedule, PredictsScore())`.
    """
    return AdaptedNetwork(denoiser, schedule, parameterisation)


def _rates(schedule, time):
    with_slope = lambda f: jax.jvp(f, (time,), (jnp.ones_like(time),))
    return with_slope(schedule.alpha), with_slope(schedule.sigma)
