"""Ridge regression, and plain least squares, on a fixed support."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from skyens.sparse._compress import SparseProblem
from skyens.sparse._least_squares import Solution, check_support, least_squares


def ridge(
    problem: SparseProblem,
    penalty: float | Float[Array, ""] = 0.0,
    *,
    support: Bool[Array, "term"] | None = None,
) -> Solution:
    """Return the coefficients that minimise misfit and a penalty on their squares.

    The minimum is that of `|y - Phi w|^2 + penalty * sum_i |Phi_i|^2 w_i^2`, so that
    it does not depend on the columns' scales. A penalty of 0 is least squares; then
    columns that depend on each other share what they explain. It refits a support
    found elsewhere. With noise of variance s, `s * solution.shape` is the covariance
    of least squares.

    Args:
        problem: as `compress` makes it.
        penalty: relative to the columns' sums of squares, not negative.
        support: the terms to use; all if None.

    Raises:
        ValueError: `support` has not one entry for each term.
        EquinoxRuntimeError: `penalty` is negative.
    """
    penalty = jnp.asarray(penalty, problem.target.dtype)
    penalty = eqx.error_if(penalty, ~(penalty >= 0), "`penalty` must not be negative.")
    return least_squares(problem, check_support(problem, support), penalty)
