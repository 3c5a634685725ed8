"""Least squares on a given support, with or without a ridge."""

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from skyens.sparse._compress import SparseProblem


class Solution(eqx.Module):
    """Coefficients by least squares; those outside of the support are 0."""

    mean: Float[Array, "term"]
    shape: Float[Array, "term term"]  # covariance over noise variance
    misfit: Float[Array, ""]  # the residual sum of squares
    support: Bool[Array, "term"]


def least_squares(
    problem: SparseProblem, support: Bool[Array, "term"], penalty
) -> Solution:
    """Return the coefficients that minimise misfit and penalty on a support."""
    factor, target = problem.factor, problem.target
    terms = len(target)
    norm = jnp.sqrt(jnp.sum(lax.stop_gradient(factor) ** 2, axis=0))
    used = support & (norm > 0)
    norm = jnp.where(used, norm, 1)
    unit = jnp.where(used[None], factor / norm[None], 0)
    root = jnp.where(penalty > 0, jnp.sqrt(jnp.where(penalty > 0, penalty, 1)), 0)
    # Directions that the data do not know are held at 0, weakly: their variance is
    # large, so that one of two duplicates is the first to leave.
    fixed = lax.stop_gradient(unit)
    _, singular, rows = jnp.linalg.svd(fixed)
    eps = jnp.finfo(target.dtype).eps
    null = singular <= 32 * terms * eps * jnp.max(singular)
    unknown = (rows.T * null.astype(target.dtype)[None]) @ rows
    hold = jnp.diag(jnp.where(used, root, 0)) + eps**0.25 * unknown
    unit = unit - unit @ unknown
    q, upper = jnp.linalg.qr(jnp.concatenate([unit, hold]))
    eye = jnp.eye(terms, dtype=target.dtype)
    sides = jnp.concatenate([eye, (q[:terms].T @ target)[:, None]], axis=1)
    solved = lax.linalg.triangular_solve(upper, sides, left_side=True, lower=False)
    weights = jnp.where(used, solved[:, terms], 0)
    inverse = jnp.where(used[:, None], solved[:, :terms] / norm[:, None], 0)
    misfit = jnp.sum((target - unit @ weights) ** 2) + problem.rest
    return Solution(weights / norm, inverse @ inverse.T, misfit, used)


def check_support(problem: SparseProblem, support):
    """Return the support as an array; all terms where it is None.

    Raises:
        ValueError: it has not one entry for each term.
    """
    terms = len(problem.target)
    if support is None:
        return jnp.ones(terms, bool)
    support = jnp.asarray(support)
    if support.shape != (terms,) or support.dtype != bool:
        raise ValueError(
            f"`support` must be {terms} booleans, one for each term, got "
            f"{support.dtype} of shape {support.shape}."
        )
    return support
