"""Why an ensemble is better than its members: ambiguity decompositions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from skyens.scores._checks import check_known
from skyens.scores._members import (
    gather,
    score_dtype,
    wide_dtype,
)


class Ambiguity(NamedTuple):
    """A loss of the combined forecast: `loss = average_loss - diversity`."""

    loss: Float[Array, "..."]  # of the combined forecast
    average_loss: Float[Array, "..."]  # of its members, their mean
    diversity: Float[Array, "..."]  # what combining gains, never negative


def ambiguity_squared_error(
    ensemble: Float[Array, "..."],
    truth: Float[Array, "..."],
    *,
    axis: int = 0,
    where: Bool[Array, "..."] | None = None,
) -> Ambiguity:
    """Return the squared error of the ensemble mean, and what it is made of.

    The mean squared error of the members less their variance about the mean: members
    that err alike gain nothing by being many. Exact at any offset.

    Args:
        ensemble: members along `axis`, in any units.
        truth: broadcasts against the ensemble without its member axis.
        axis: the member axis of `ensemble`.
        where: broadcasts against `ensemble`; members where it is False do not count,
            and points without members are 0.

    Raises:
        ValueError: there are no members or the shapes do not broadcast.

    Source: Krogh & Vedelsby (1995), Adv. Neural Inf. Process. Syst. 7, 231-238.
    """
    dtype = score_dtype(ensemble, truth)
    seen = gather(ensemble, truth, axis, where)
    count = jnp.maximum(seen.count, 1)
    mean = lambda x: jnp.sum(seen.masked(x), axis=0) / count
    errors = seen.members - seen.truth[None]
    error = mean(errors)
    diversity = mean((errors - error[None]) ** 2)
    parts = error**2, mean(errors**2), diversity
    return Ambiguity(*(x.astype(dtype) for x in parts))


def ambiguity_cross_entropy(
    probabilities: Float[Array, "..."], target: Float[Array, "..."]
) -> Ambiguity:
    """Return the cross-entropy of the members' geometric mean, and what it is made of.

    The centroid of forecasts in this loss is the normalised geometric mean of their
    probabilities, and the diversity is the mean Kullback-Leibler divergence from it to
    the members. A category to which a member gives probability 0 has none in the mean.

    Args:
        probabilities: `(member, ..., category)`, adding up to 1.
        target: probabilities of the categories, such as 1 for the one that came and 0
            for the others; broadcasts against one member.

    Returns:
        The parts, without members and categories, in nats. Losses are infinite where
        what happened was given no probability, and the diversity where no category has
        any from all members; up to rounding it is never negative.

    Raises:
        ValueError: there are no members, or the shapes do not broadcast.
        EquinoxRuntimeError: a known value is negative.

    Source: Wood et al. (2023), J. Mach. Learn. Res. 24, 359, theorem 5 and table 2.
    """
    if probabilities.ndim < 2 or probabilities.shape[0] == 0:
        raise ValueError(
            "`probabilities` lead with members, of which there must be 1, and end with "
            f"categories; got shape {probabilities.shape}."
        )
    dtype = score_dtype(probabilities, target)
    wide = wide_dtype(dtype)
    fine = lambda x: ~(x < 0)
    probabilities = check_known("probabilities", "not negative", probabilities, fine)
    target = check_known("target", "not negative", target, fine)
    try:
        shape = jnp.broadcast_shapes(probabilities.shape[1:], target.shape)
    except ValueError:
        raise ValueError(
            f"`target` of shape {target.shape} does not broadcast against one member "
            f"of `probabilities`, {probabilities.shape[1:]}."
        ) from None
    target = jnp.broadcast_to(target.astype(wide), shape)
    missing = len(shape) - (probabilities.ndim - 1)
    members = jnp.expand_dims(probabilities.astype(wide), tuple(range(1, 1 + missing)))
    members = jnp.broadcast_to(members, (members.shape[0], *shape))
    logs = _log(members)
    mean = jnp.mean(logs, axis=0)
    # Where members exclude each other there is nothing left to combine.
    nothing = jnp.all(mean == -jnp.inf, axis=-1, keepdims=True)
    total = jax.nn.logsumexp(jnp.where(nothing, 0, mean), axis=-1, keepdims=True)
    combined = jnp.where(nothing, -jnp.inf, mean - total)
    losses = _expected(target[None], -logs)
    diversity = jnp.where(nothing, jnp.inf, -total)[..., 0]
    parts = _expected(target, -combined), jnp.mean(losses, axis=0), diversity
    return Ambiguity(*(x.astype(dtype) for x in parts))


def _log(probability):
    """Return the logarithm, minus infinity with gradient 0 at 0."""
    zero = probability <= 0
    return jnp.where(zero, -jnp.inf, jnp.log(jnp.where(zero, 1, probability)))


def _expected(probability, values):
    """Return the mean of values over the categories that have any probability."""
    values = jnp.where(probability > 0, values, 0)
    return jnp.sum(probability * values, axis=-1)
