"""Linear equations between coefficients, satisfied exactly by elimination."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from skyens.sparse._compress import SparseProblem


class Constraints(eqx.Module):
    """The equations `matrix @ coefficients = value`.

    For each equation one coefficient is expressed by the others, that which counts
    most in it; it has no prior of its own and is kept where one of those is.
    """

    matrix: Float[Array, "equation term"]
    value: Float[Array, "equation"]

    def __init__(self, matrix: Float[Array, "equation term"], value=None):
        """Set the equations; `value` is 0 where None.

        Raises:
            ValueError: shapes do not fit, or there are not fewer equations than terms.
        """
        self.matrix = jnp.asarray(matrix)
        equations, terms = self.matrix.shape
        if not 0 < equations < terms:
            raise ValueError(
                f"`matrix` must have fewer equations (at least 1) than its {terms} "
                f"terms, got {equations}."
            )
        zero = jnp.zeros(equations, self.matrix.dtype)
        self.value = zero if value is None else jnp.asarray(value, zero.dtype)
        if self.value.shape != (equations,):
            raise ValueError(
                f"`value` must have the shape ({equations},), got {self.value.shape}."
            )


class Reduction(NamedTuple):
    """A regression on free coefficients: `coefficients = start + basis @ free`."""

    factor: Float[Array, "term term"]
    target: Float[Array, "term"]
    start: Float[Array, "term"] | None
    basis: Float[Array, "term term"] | None

    @classmethod
    def none(cls, problem: SparseProblem) -> "Reduction":
        """Return the regression where all coefficients are free."""
        return cls(problem.factor, problem.target, None, None)

    def expand(
        self,
        mean: Float[Array, "term"],
        covariance: Float[Array, "term term"],
        support: Bool[Array, "term"],
    ):
        """Return the posterior and support of all coefficients."""
        if self.basis is None or self.start is None:
            return mean, covariance, support
        used = jnp.any((self.basis != 0) & support[None], axis=1) | (self.start != 0)
        covariance = self.basis @ covariance @ self.basis.T
        return self.start + self.basis @ mean, covariance, used


def reduce(problem: SparseProblem, constraints: Constraints) -> Reduction:
    """Return the regression that is left when the equations are eliminated.

    Raises:
        ValueError: the equations have another number of terms.
        EquinoxRuntimeError: the equations depend on each other.
    """
    dtype = problem.target.dtype
    matrix = constraints.matrix.astype(dtype)
    equations, terms = matrix.shape
    if terms != len(problem.target):
        raise ValueError(
            f"`constraints` are for {terms} terms, the problem has "
            f"{len(problem.target)}."
        )
    size = jnp.max(jnp.abs(problem.factor), axis=0)
    size = jnp.where(size > 0, size, 1)
    lower_upper, _, order = lax.linalg.lu((matrix / size[None]).T)
    pivots = jnp.abs(jnp.diagonal(lower_upper))
    eps = jnp.finfo(dtype).eps
    order = eqx.error_if(
        order,
        jnp.min(pivots) <= 16 * terms * eps * jnp.max(pivots),
        "the equations of `constraints` must not depend on each other.",
    )
    gone = order[:equations]
    square = matrix[:, gone]
    both = jnp.concatenate([matrix, constraints.value.astype(dtype)[:, None]], axis=1)
    solved = jnp.linalg.solve(square, both)
    is_gone = jnp.zeros(terms, bool).at[gone].set(True)
    basis = jnp.diag(jnp.where(is_gone, 0, 1).astype(dtype))
    basis = basis.at[gone].set(jnp.where(is_gone[None], 0, -solved[:, :terms]))
    start = jnp.zeros(terms, dtype).at[gone].set(solved[:, terms])
    return Reduction(
        problem.factor @ basis, problem.target - problem.factor @ start, start, basis
    )
