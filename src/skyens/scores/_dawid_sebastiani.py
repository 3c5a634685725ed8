"""The Dawid-Sebastiani score: an ensemble judged by its mean and covariance."""

import math

import jax.numpy as jnp
from jax import lax
from jax.scipy.special import digamma
from jaxtyping import Array, Bool, Float

from skyens.scores._events import Events, gather_events
from skyens.scores._members import (
    check_members,
    score_dtype,
)
from skyens.scores._multivariate_normal import log_score_multivariate_normal


def dawid_sebastiani_score(
    ensemble: Float[Array, "..."],
    truth: Float[Array, "..."],
    *,
    alpha: float = 0.0,
    shrinkage: float = 0.0,
    localisation: Float[Array, "event event"] | None = None,
    axis: int = 0,
    event_axes: tuple[int, ...] = (-1,),
    where: Bool[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Return the Dawid-Sebastiani score of the members along `axis`; lower is better.

    `log det S + (y - m)^T S^-1 (y - m)` with the ensemble's mean and covariance (over
    `M - 1`), by Cholesky; without event axes `log s^2 + (y - m)^2 / s^2`. Up to factor
    and constant the log score of the normal distribution with these moments.

    That of few members is biased. `alpha=1` is fair for members that are normal,
    unbiased in their number: `log det S` less `sum_k psi((M - k) / 2) + d log(2 / (M -
    1))`, and the distance times `(M - d - 2) / (M - 1)` less `d / M`.

    Args:
        ensemble: members along `axis`, in any units.
        truth: broadcasts against the ensemble without its member axis.
        alpha: 0 standard, 1 fair, between them the mixture.
        shrinkage: from 0 to 1, by which covariances between entries are reduced.
        localisation: factors of the covariances, a correlation matrix (its diagonal 1).
        axis: the member axis of `ensemble`.
        event_axes: the axes that make up one event, as in `energy_score`.
        where: a mask against `ensemble`, of members or entries, as in `energy_score`.
            Points left with too few members score 0.

    Returns:
        The score of each point, dimensionless but for the units inside the logarithm;
        NaN where the covariance is not positive definite, as for equal members.

    Raises:
        ValueError: there are too few members (at least 2; more than the event has
            entries, unless the covariance is shrunk or localised; `d + 3` for
            `alpha > 0`), `alpha` or `shrinkage` lies outside [0, 1], `alpha > 0` meets
            either of these two, `localisation` is no square of the event's size,
            `event_axes` are not there, or the shapes do not broadcast.

    Source: Dawid & Sebastiani (1999), Ann. Stat. 27, 65-81; fair: Siegert et al.
        (2019), Q. J. R. Meteorol. Soc. 145, 129-139, and Wishart moments for `d > 1`.
    """
    check_members(ensemble, axis)
    for name, value in {"alpha": alpha, "shrinkage": shrinkage}.items():
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must lie in [0, 1], got {value}.")
    events, shape = gather_events(ensemble, truth, axis, event_axes, where)
    size = events.truth.shape[0]
    if localisation is not None and localisation.shape != (size, size):
        raise ValueError(
            f"`localisation` must have shape {(size, size)}, one for each pair of "
            f"entries of the event, got {localisation.shape}."
        )
    regular = shrinkage > 0 or localisation is not None
    if regular and alpha > 0:
        raise ValueError(
            "The fair score is that of the sample covariance: use `alpha=0` (got "
            f"{alpha}) with `shrinkage` or `localisation`."
        )
    # A covariance of its own takes more members than entries, the fair score's moments
    # two more.
    spare = None if regular else (3 if alpha > 0 else 1)
    needed = 2 if spare is None else max(2, size + spare)
    if (members := ensemble.shape[axis]) < needed:
        raise ValueError(
            f"`ensemble` needs at least {needed} members along axis {axis} for events "
            f"of {size} entries, got {members}: with fewer the covariance is singular "
            "or its moments do not exist. Use more members, or `shrinkage` or "
            "`localisation` with `alpha=0`."
        )
    dtype = events.truth.dtype
    taper = jnp.full((size, size), 1 - shrinkage, dtype)
    taper = jnp.where(jnp.eye(size, dtype=bool), 1, taper)
    if localisation is not None:
        taper *= localisation.astype(dtype)
    score = _score(alpha, spare, taper, events).reshape(shape)
    return score.astype(score_dtype(ensemble, truth))


def _score(
    alpha: float,
    spare: int | None,
    taper: Float[Array, "event event"],
    events: Events,
) -> Float[Array, " points"]:
    members, truth, valid, known = events
    dtype, size = truth.dtype, truth.shape[0]
    if valid is None or known is None:
        count = jnp.full((1,), members.shape[0], dtype)
        dimensions = jnp.full((1,), size, dtype)
        counted = jnp.ones((members.shape[0], 1, 1), dtype)
    else:
        count = jnp.sum(valid, axis=0, dtype=dtype)
        dimensions = jnp.sum(known, axis=0, dtype=dtype)
        counted = valid[:, None].astype(dtype)
    needed = 2 if spare is None else jnp.maximum(2, dimensions + spare)
    enough = (count >= needed) & (dimensions > 0)
    # Departures from the truth keep their digits at large offsets.
    departures = counted * (members - truth[None])
    error = jnp.sum(departures, axis=0) / jnp.maximum(count, 1)[None]
    anomalies = counted * (departures - error[None])
    covariance = jnp.einsum(
        "mip,mjp->pij", anomalies, anomalies, precision=lax.Precision.HIGHEST
    ) / jnp.maximum(count - 1, 1).reshape(-1, 1, 1)
    covariance *= taper[None]
    # Entries that are left out, and points that are, get the identity.
    unit = jnp.eye(size, dtype=dtype)[None]
    here = jnp.broadcast_to(enough[None], truth.shape)
    here = (here if known is None else here & known).T
    covariance = jnp.where(here[:, :, None] & here[:, None], covariance, unit)
    error = jnp.where(here, error.T, 0)
    factor = jnp.linalg.cholesky(covariance)
    zero = jnp.zeros_like(error)
    constant = size * math.log(2 * math.pi)
    score = 2 * log_score_multivariate_normal(zero, factor, error) - constant
    if alpha > 0:
        volume = 2 * jnp.sum(jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)), axis=-1)
        degrees, distance = jnp.maximum(count - 1, 1), score - volume
        order = jnp.arange(1, size + 1, dtype=dtype)[:, None]
        logarithms = digamma(jnp.maximum(count[None] - order, 1) / 2)
        bias = jnp.sum(jnp.where(order <= dimensions[None], logarithms, 0), axis=0)
        bias += dimensions * jnp.log(2 / degrees)
        fair = volume - bias + (count - dimensions - 2) / degrees * distance
        fair -= dimensions / jnp.maximum(count, 1)
        score = alpha * fair + (1 - alpha) * score
    return jnp.where(enough, score, 0)
