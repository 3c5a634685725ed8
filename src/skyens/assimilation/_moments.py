"""Mean and spread of a cycle's ensembles, and how far they are from a truth."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from skyens.assimilation._ensemble import centre
from skyens.assimilation._inflation import ensemble_spread
from skyens.assimilation._weighted import Weighted


class Moments(NamedTuple):
    """Mean and spread of an ensemble, of every leaf of real or complex numbers."""

    mean: PyTree[Array]
    spread: PyTree[Array]


def moments(ensemble: PyTree[Array]) -> Moments:
    """Return mean and unbiased standard deviation: the `reduce=` of most cycles.

    Leaves of integers are those of the first member. A weighted ensemble gives its
    weighted moments.

    Raises:
        ValueError: there are fewer than two members.
    """
    if isinstance(ensemble, Weighted):
        return Moments(ensemble.mean(), ensemble.spread())
    inexact = eqx.is_inexact_array
    mean = lambda leaf: centre(leaf)[0] if inexact(leaf) else leaf[0]
    spread = lambda leaf: ensemble_spread(leaf) if inexact(leaf) else leaf[0]
    return Moments(jax.tree.map(mean, ensemble), jax.tree.map(spread, ensemble))


class Errors(NamedTuple):
    """What `errors` gives, for each time and over them."""

    error: Float[Array, "time"]  # root mean square of mean minus truth
    spread: Float[Array, "time"]  # root mean square of the spread
    mean_error: Float[Array, ""]  # mean over times of `error`
    mean_spread: Float[Array, ""]


def errors(track: Moments, truth: PyTree[Array], *, burn_in: int = 0) -> Errors:
    """Return error and spread of a cycle with `reduce=moments`, time after time.

    All real and complex leaves count together, point by point, each in its units.

    Args:
        track: `result.analyses` or `result.backgrounds`.
        truth: the true states at the same times, stacked.
        burn_in: number of times that do not enter the means over times.

    Raises:
        ValueError: `burn_in` leaves nothing, or truth and track do not fit.
    """
    pairs = [
        (mean, spread, true)
        for mean, spread, true in zip(
            *map(jax.tree.leaves, (track.mean, track.spread, truth)), strict=True
        )
        if eqx.is_inexact_array(mean)
    ]
    for mean, _, true in pairs:
        if mean.shape != true.shape:
            raise ValueError(
                f"`truth` of shape {true.shape} does not fit means of {mean.shape}."
            )
    times = len(pairs[0][0])
    if not 0 <= burn_in < times:
        raise ValueError(f"`burn_in` must lie in [0, {times}), got {burn_in}.")
    size = sum(mean[0].size for mean, _, _ in pairs)
    squares = lambda x: jnp.sum(jnp.abs(x.reshape(times, -1)) ** 2, axis=1)
    total = lambda parts: jnp.sum(jnp.stack([squares(x) for x in parts]), axis=0)
    error = _root(total([mean - true for mean, _, true in pairs]) / size)
    spread = _root(total([spread for _, spread, _ in pairs]) / size)
    return Errors(error, spread, error[burn_in:].mean(), spread[burn_in:].mean())


def _root(square: Array) -> Array:
    # Double where: the square root must never see the 0 it would differentiate.
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
