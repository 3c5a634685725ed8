"""Minimising a variational cost over control variables v of covariance one.

    J(v) = |v|^2 / 2 - log p(y | state(v))

A minimiser is any callable `(innovation, log_likelihood, control) -> Minimum` that gets
both sides of the second term as functions of v: the whitened innovations, whose squares
it is half the sum of where errors are Gaussian, and the log-likelihood itself.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int, Scalar

from skyens.assimilation._ensemble import matmul

Vector = Float[Array, "control"]


class Minimum(eqx.Module):
    """Where a minimisation ended, after how many `iterations`, and if it `converged`.

    `degrees_of_freedom` of the observations are there if they cost nothing.
    """

    control: Float[Array, "..."]
    iterations: Int[Array, "..."]
    converged: Bool[Array, "..."]
    degrees_of_freedom: Float[Array, "..."] | None = None


@runtime_checkable
class Minimiser(Protocol):
    """The contract of a minimiser of a variational cost."""

    def __call__(
        self,
        innovation: Callable[[Vector], Float[Array, "observation"]],
        log_likelihood: Callable[[Vector], Scalar],
        control: Vector,
    ) -> Minimum:
        """Return the minimum found from `control` on."""
        ...


class Incremental(eqx.Module):
    """Outer loops around a quadratic problem: Gauss-Newton with conjugate gradients.

    Each of `outer` loops linearises the whitened innovations at its iterate and solves
    the normal equations there, matrix-free. One is exact for a linear operator and a
    linear step. Errors that are not Gaussian, or depend on the prediction, are
    reweighted at the start of each outer loop (iteratively reweighted least squares):
    where that settles, it is at a stationary point of the true cost for robust laws.

    `iterations` are those of all inner solves; `converged` says that these succeeded
    and that the gradient of the cost has come down to a thousandth.

    The derivative goes through the outer loops, and through each linear solve
    implicitly, by a solve with the same matrix: to the accuracy of the inner solver,
    with constant memory in its iterations.

    Source: Courtier, Thepaut & Hollingsworth (1994), Quart. J. Roy. Meteor. Soc. 120,
    1367-1387.
    """

    outer: int = eqx.field(static=True)
    solver: lx.AbstractLinearSolver = eqx.field(static=True)  # it holds functions

    def __init__(
        self,
        outer: int = 1,
        solver: lx.AbstractLinearSolver | None = None,
    ):
        """Set the number of `outer` loops, and the inner `solver`.

        Args:
            outer: at least 1.
            solver: any of lineax for positive definite operators; conjugate gradients
                to 1e-5 of the right side's largest entry when not given. `lx.Cholesky`
                builds the matrix, for a few hundred control variables.

        Raises:
            ValueError: `outer` is below 1.
        """
        if outer < 1:
            raise ValueError(f"`outer` must be at least 1, got {outer}.")
        self.outer = outer
        self.solver = lx.CG(1e-5, 1e-5, max_steps=500) if solver is None else solver

    def __call__(
        self,
        innovation: Callable[[Vector], Float[Array, "observation"]],
        log_likelihood: Callable[[Vector], Scalar],
        control: Vector,
    ) -> Minimum:
        """Return the minimum found from `control` on; only `innovation` is used."""

        def loop(control, _):
            gradient, hessian = self._quadratic(innovation, control)
            step, (count, fine) = self._solve(hessian, -gradient)
            return control + step, (jnp.linalg.norm(gradient), count, fine)

        end, (sizes, count, fine) = jax.lax.scan(loop, control, None, length=self.outer)
        gradient, _ = self._quadratic(innovation, jax.lax.stop_gradient(end))
        converged = jnp.all(fine) & (jnp.linalg.norm(gradient) <= 1e-3 * sizes[0])
        return Minimum(end, jnp.sum(count), converged)

    def _quadratic(self, innovation, control):
        """Gradient of the cost, and product with its Gauss-Newton Hessian."""
        departure, negative = jax.linearize(innovation, control)
        adjoint = jax.linear_transpose(negative, control)
        hessian = lambda v: v + adjoint(negative(v))[0]
        return control + adjoint(departure)[0], hessian

    def _solve(self, hessian, right):
        def solve(matvec, right):
            # Tolerances of lineax are absolute where the right side is small.
            size = jnp.max(jnp.abs(right))
            size = jnp.where(size > 0, size, 1)
            shape = jax.eval_shape(lambda: right)
            tag = lx.positive_semidefinite_tag
            operator = lx.FunctionLinearOperator(matvec, shape, tag)
            found = lx.linear_solve(operator, right / size, self.solver, throw=False)
            count = jnp.asarray(found.stats.get("num_steps", 1))
            return found.value * size, (count, found.result == lx.RESULTS.successful)

        # Symmetric: a derivative, of either mode, is one more such solve.
        return jax.lax.custom_linear_solve(
            hessian, right, solve, symmetric=True, has_aux=True
        )


class ObservationSpace(eqx.Module):
    """Gauss-Newton with a direct solve in the space of the observations.

    It builds the matrices `(observation, control)` of the linearised observations and
    `(observation, observation)` of their covariance: exact, for up to some thousands of
    observations. `degrees_of_freedom` is the trace of the gain as observed.

    Source: Cohn et al. (1998), Mon. Wea. Rev. 126, 2913-2926 (physical-space analysis).
    """

    outer: int = eqx.field(static=True)

    def __init__(self, outer: int = 1):
        """Set the number of linearisations, at least 1; one is enough if all is linear.

        Raises:
            ValueError: `outer` is below 1.
        """
        if outer < 1:
            raise ValueError(f"`outer` must be at least 1, got {outer}.")
        self.outer = outer

    def __call__(
        self,
        innovation: Callable[[Vector], Float[Array, "observation"]],
        log_likelihood: Callable[[Vector], Scalar],
        control: Vector,
    ) -> Minimum:
        """Return the minimum found from `control` on; only `innovation` is used."""

        def loop(control, _):
            departure, negative = jax.linearize(innovation, control)
            adjoint = jax.linear_transpose(negative, control)
            identity = jnp.eye(departure.size, dtype=departure.dtype)
            seen = -jax.vmap(adjoint)(identity)[0]
            total = matmul(seen, seen.T) + jnp.eye(len(seen), dtype=seen.dtype)
            factor = jnp.linalg.cholesky(total), True
            wanted = departure.astype(seen.dtype) + matmul(seen, control)
            step = matmul(jax.scipy.linalg.cho_solve(factor, wanted), seen) - control
            half = jax.scipy.linalg.solve_triangular(
                factor[0], jnp.eye(len(seen), dtype=seen.dtype), lower=True
            )
            freedom = len(seen) - jnp.sum(half**2)
            return control + step, (jnp.linalg.norm(step), freedom)

        end, (sizes, freedom) = jax.lax.scan(loop, control, None, length=self.outer)
        settled = sizes[-1] <= 1e-3 * sizes[0] if self.outer > 1 else jnp.asarray(True)
        settled = settled & jnp.all(jnp.isfinite(end))
        return Minimum(end, jnp.asarray(self.outer), settled, freedom[-1])


class TrueCost(eqx.Module):
    """The full cost, by a minimiser of optimistix; no linearisation, no reweighting.

    It sees the `log_prob` of the observation itself, whatever its law, normal or not,
    and may stop in one of several minima. Where minimisers stop early, start from
    `Incremental`'s answer by `first`.

    The derivative is that of the minimum (implicit function theorem), with the exact
    Hessian there; it is good where the minimum is found well.
    """

    solver: optx.AbstractMinimiser = eqx.field(static=True)  # it holds functions
    steps: int = eqx.field(static=True)
    first: Incremental | None

    def __init__(
        self,
        solver: optx.AbstractMinimiser | None = None,
        *,
        steps: int = 256,
        first: Incremental | None = None,
    ):
        """Set the `solver`, its largest number of `steps`, and what comes `first`.

        `optx.LBFGS(1e-5, 1e-5)` when not given.
        """
        self.solver = optx.LBFGS(1e-5, 1e-5) if solver is None else solver
        self.steps = steps
        self.first = first

    def __call__(
        self,
        innovation: Callable[[Vector], Float[Array, "observation"]],
        log_likelihood: Callable[[Vector], Scalar],
        control: Vector,
    ) -> Minimum:
        """Return the minimum found from `control` on."""
        if self.first is not None:
            control = self.first(innovation, log_likelihood, control).control
        cost = lambda v, _: jnp.sum(v**2) / 2 - log_likelihood(v).astype(v.dtype)
        solve = lx.CG(1e-8, 1e-8, max_steps=10 * control.size)
        found = optx.minimise(
            cost,
            self.solver,
            jax.lax.stop_gradient(control),
            max_steps=self.steps,
            adjoint=optx.ImplicitAdjoint(solve),
            throw=False,
            tags=frozenset({lx.positive_semidefinite_tag}),
        )
        steps = jnp.asarray(found.stats["num_steps"])
        fine = found.result == optx.RESULTS.successful
        return Minimum(found.value, steps, fine)
