"""What every walk down the levels checks: the levels, the denoiser, the state."""

import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from skyens.diffusion._denoisers import Denoiser
from skyens.diffusion._schedule import Schedule

# A level and an end of a range that are meant to be equal differ by rounding.
_ROUNDING = 1e-5


def checked_levels(
    denoiser: Denoiser | None, schedule: Schedule, steps: int, method: Any = None
) -> Float[Array, "levels"]:
    """Return the `steps + 1` levels of the schedule, once they are fit to walk down.

    The denoiser is called at all but the last of them, or at those that the method says
    it visits, see `visited_levels`.

    Raises:
        ValueError: `steps` is below 1, or the schedule gives another number of levels.
        EquinoxRuntimeError: the levels are not finite, do not decrease, end below 0, or
            leave the range the denoiser was trained in.
    """
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1, got {steps}.")
    sigmas = schedule.sigmas(steps)
    if sigmas.shape != (steps + 1,):
        raise ValueError(
            f"`schedule` must give {steps + 1} levels for {steps} steps, got an array "
            f"of shape {sigmas.shape}."
        )
    decreasing = jnp.all(sigmas[1:] < sigmas[:-1]) & (sigmas[-1] >= 0)
    sigmas = eqx.error_if(
        sigmas,
        ~(decreasing & jnp.isfinite(sigmas[0])),
        "The levels of `schedule` must be finite, decrease, and end at 0 or above.",
    )
    return checked_range(denoiser, sigmas, visited_levels(method, sigmas))


def visited_levels(
    method: Any, sigmas: Float[Array, "levels"]
) -> Float[Array, "visited"]:
    """Return the levels that a method calls the denoiser at.

    A method that leaves the range of the schedule says so by `visited(sigmas)`.
    """
    visited = getattr(method, "visited", None)
    # Nothing is evaluated at the last level.
    return sigmas[:-1] if visited is None else visited(sigmas)


def checked_range(
    denoiser: Denoiser | None,
    result: Float[Array, "*result"],
    sigmas: Float[Array, "levels"],
) -> Float[Array, "*result"]:
    """Return `result`, or fail if one of `sigmas` leaves the denoiser's range.

    Raises:
        EquinoxRuntimeError: a level lies outside of [sigma_min, sigma_max].
    """
    low, high = training_range(denoiser)
    message = "The levels leave the range that `denoiser` was trained in"
    mend = "Choose the ends of `schedule`, and of any churn, inside of it."
    for end, sign, name in ((low, 1, "sigma_min"), (high, -1, "sigma_max")):
        if end is None:
            continue
        end = jnp.asarray(end, sigmas.dtype)
        beyond = sign * (end - sigmas) > _ROUNDING * end
        if isinstance(beyond, Tracer):
            text = f"{message}, beyond its `{name}`. {mend}"
            result = eqx.error_if(result, jnp.any(beyond), text)
        elif beyond.any():
            first = float(sigmas[int(np.argmax(beyond))])
            text = (
                f"{message}: {int(beyond.sum())} of {sigmas.size} lie beyond its "
                f"`{name}` {float(end):.6g}, the first is {first:.6g}. {mend}"
            )
            result = eqx.error_if(result, np.asarray(True), text)
    return result


def training_range(denoiser: Any) -> tuple[Any, Any]:
    """Return the levels `(sigma_min, sigma_max)` a denoiser was trained between.

    Either is None where it is not known. A denoiser says so by attributes of these
    names; one that wraps another in an attribute `denoiser`, as a guided one does, has
    the range of that one.
    """
    ends = getattr(denoiser, "sigma_min", None), getattr(denoiser, "sigma_max", None)
    inner = getattr(denoiser, "denoiser", None)
    if ends == (None, None) and inner is not None:
        return training_range(inner)
    return ends


def checked_denoiser(denoiser: Denoiser, condition: Any = None) -> Callable:
    """Return `denoise(x, sigma)`, which fails where the denoiser breaks its contract.

    Raises:
        ValueError: when called, the denoiser returns another shape or dtype than it
            was given.
    """

    def denoise(x, sigma):
        clean = denoiser(x, sigma, condition=condition)
        if clean.shape != x.shape or clean.dtype != x.dtype:
            raise ValueError(
                f"`denoiser` must keep shape and dtype: it was given "
                f"{x.dtype}{x.shape} and returned {clean.dtype}{clean.shape}."
            )
        return clean

    return denoise


def first_failure(
    failed: Float[Array, ""], sigma: Float[Array, ""], fine: Bool[Array, ""]
) -> Float[Array, ""]:
    """Return the level the first failure came from: `sigma` if there is none yet.

    0 means that all was `fine` so far.
    """
    now = jax.lax.stop_gradient(sigma).astype(failed.dtype)
    return jnp.where((failed > 0) | fine, failed, now)


def broken(level: float) -> str:
    """Return what to say of a state that broke in the step from a noise level."""
    return (
        f"A state is not finite any more after the step from noise level {level:.6g}: "
        "there `denoiser` returned what is not finite, or so large that the state left "
        "its dtype."
    )


def report_failure(
    x: Float[Array, "*state"],
    failed: Float[Array, ""],
    message: Callable[[float], str] = broken,
) -> Float[Array, "*state"]:
    """Return `x`, and say at which level it broke, where `failed` is not 0.

    One that is known is an error; under tracing it is a warning when the program runs,
    one for all that it maps over, and what is not finite stays where it is.

    Raises:
        EquinoxRuntimeError: `failed` is known and not 0.
    """
    if not isinstance(failed, Tracer):
        if failed > 0:
            return eqx.error_if(x, np.asarray(True), message(float(failed)))
        return x
    highest = eqxi.unvmap_max(jax.lax.stop_gradient(failed))

    def warn(level):
        warnings.warn(message(float(level)), RuntimeWarning, stacklevel=2)

    jax.lax.cond(highest > 0, lambda: jax.debug.callback(warn, highest), lambda: None)
    return x
