"""The Rauch-Tung-Striebel smoother of linear chains, in an inverse-free form."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from skyens.assimilation._ensemble import matmul
from skyens.assimilation._kalman import (
    Gaussian,
    Matrix,
    condition,
    each_time,
    flatten,
    predict,
)
from skyens.observations import Observation


class Smoothed(eqx.Module):
    """What `rts_smoother` knows of each time, given all observations.

    `law` has a leading axis of one time more than there are observations: the start
    comes first. `log_evidence` is as in `Filtered`.
    """

    law: Gaussian
    log_evidence: Float[Array, "time"]


def rts_smoother(
    mean: PyTree[Any],
    covariance: Matrix,
    transition: Float[Array, "*time _ _"],
    noise: Float[Array, "*time_noise _ _"],
    observations: Observation,
) -> Smoothed:
    """Return the laws of all states of a chain, given all its observations.

    Arguments are those of `kalman_filter`. The result is that of Rauch, Tung & Striebel
    (1965), by the backward recursion of Bryson & Frazier: it carries the gradient and
    the curvature of the log-likelihood of all later observations, and inverts no
    covariance of states, so that these may be singular (no noise, a state known in
    part).

    Raises:
        ValueError: as for `kalman_filter`.

    Source: Bierman (1973), Int. J. Control 18, 65-75; Anderson & Moore (1979), Optimal
    Filtering, chapter 7.
    """
    flat, unravel = flatten(mean, covariance)
    arrays, static = eqx.partition(observations, eqx.is_array)
    times = len(observations.value)
    transition = each_time("transition", transition, times, flat)
    noise = each_time("noise", noise, times, flat)

    def advance(carry, x):
        flat, covariance = carry
        transition, noise, arrays = x
        predicted, spread = predict(flat, covariance, transition, noise)
        analysis, remaining, seen = condition(
            predicted, spread, eqx.combine(arrays, static).pullback(unravel)
        )
        return (analysis, remaining), ((analysis, remaining), spread, seen)

    start = flat, covariance
    _, (filtered, spreads, seen) = jax.lax.scan(
        advance, start, (transition, noise, arrays)
    )

    def back(carry, x):
        gradient, curvature = carry
        (analysis, remaining), spread, seen, transition = x
        smooth = _smooth(analysis, remaining, gradient, curvature)
        # Through the update: K = P H' S^-1, I - K H; then through the transition.
        solve = lambda right: jax.scipy.linalg.cho_solve((seen.factor, True), right)
        weighted = solve(seen.operator)
        kept = jnp.eye(flat.size, dtype=flat.dtype) - matmul(
            matmul(spread, weighted.T), seen.operator
        )
        gradient = matmul(kept.T, gradient) + matmul(weighted.T, seen.innovation)
        curvature = matmul(matmul(kept.T, curvature), kept)
        curvature = curvature + matmul(seen.operator.T, weighted)
        gradient = matmul(transition.T, gradient)
        curvature = matmul(matmul(transition.T, curvature), transition)
        return (gradient, (curvature + curvature.T) / 2), smooth

    nothing = jnp.zeros_like(flat), jnp.zeros_like(covariance)
    end, later = jax.lax.scan(
        back, nothing, (filtered, spreads, seen, transition), reverse=True
    )
    first = _smooth(*start, *end)
    join = lambda one, many: jnp.concatenate([one[None], many])
    means, covariances = jax.tree.map(join, first, later)
    law = Gaussian(jax.vmap(unravel)(means), covariances)
    return Smoothed(law, jax.vmap(lambda seen: seen.log_evidence)(seen))


def _smooth(
    mean: Float[Array, "state"],
    covariance: Matrix,
    gradient: Float[Array, "state"],
    curvature: Matrix,
):
    """Mean and covariance, given what later observations say of the state."""
    moved = mean + matmul(covariance, gradient)
    reduced = covariance - matmul(matmul(covariance, curvature), covariance)
    return moved, (reduced + reduced.T) / 2
