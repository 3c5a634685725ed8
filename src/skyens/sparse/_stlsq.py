"""Sequentially thresholded least squares."""

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from skyens.sparse._compress import SparseProblem
from skyens.sparse._least_squares import Solution, least_squares


def stlsq(
    problem: SparseProblem,
    threshold: float | Float[Array, ""],
    *,
    penalty: float | Float[Array, ""] = 0.0,
) -> Solution:
    """Return least squares on the terms that survive a threshold, again and again.

    Coefficients smaller than `threshold` leave, the rest are fitted anew, until none
    leaves. The threshold is in the units of the coefficients: it does depend on the
    columns' scales.

    Args:
        problem: as `compress` makes it.
        threshold: the smallest coefficient to keep, not negative.
        penalty: of the ridge, as for `ridge`, not negative.

    Raises:
        EquinoxRuntimeError: `threshold` or `penalty` is negative.

    Source: Brunton, Proctor & Kutz (2016), PNAS 113, 3932-3937.
    """
    dtype = problem.target.dtype
    threshold, penalty = jnp.asarray(threshold, dtype), jnp.asarray(penalty, dtype)
    threshold = eqx.error_if(
        threshold,
        ~((threshold >= 0) & (penalty >= 0)),
        "`threshold` and `penalty` must not be negative.",
    )
    held, at_least, with_penalty = lax.stop_gradient((problem, threshold, penalty))

    def cut(carry):
        support, _ = carry
        mean = least_squares(held, support, with_penalty).mean
        new = support & (jnp.abs(mean) >= at_least)
        return new, jnp.any(new != support)

    start = ~problem.empty, jnp.asarray(True)
    support, _ = lax.while_loop(lambda carry: carry[1], cut, start)
    return least_squares(problem, support, penalty)
