"""Relevance vector machine: sparse regression at the optimum of the evidence."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from skyens.sparse._ascent import Found
from skyens.sparse._compress import SparseProblem, collinear
from skyens.sparse._constraints import Constraints, Reduction, reduce
from skyens.sparse._evidence import System, at_optimum, log_evidence, scaled
from skyens.sparse._updates import Sequential


@runtime_checkable
class Update(Protocol):
    """A way to the evidence optimum."""

    def solve(self, system: System) -> Found:
        """Return the prior variances, over the noise variance, at the optimum."""
        ...


class SparseFit(eqx.Module):
    """A posterior of coefficients; those not in the support are 0 for certain."""

    mean: Float[Array, "term"]
    covariance: Float[Array, "term term"]
    prior_variance: Float[Array, "term"]  # 0 where pruned
    noise: Float[Array, ""]  # the standard deviation, known or found
    log_evidence: Float[Array, ""]
    support: Bool[Array, "term"]
    converged: Bool[Array, ""]
    steps: Int[Array, ""]
    problem: SparseProblem

    @property
    def z(self) -> Float[Array, "term"]:
        """The mean over the standard deviation; 0 where pruned."""
        variance = jnp.diagonal(self.covariance)
        safe = jnp.where(variance > 0, variance, 1)
        return jnp.where(variance > 0, self.mean / jnp.sqrt(safe), 0)

    @property
    def collinear(self) -> Int[Array, "term"]:
        """Groups of terms that the data cannot tell apart, as `collinear` says."""
        return collinear(self.problem)


def rvm(
    problem: SparseProblem,
    *,
    noise: float | Float[Array, ""] | None = None,
    update: Update | None = None,
    groups: Sequence[int] | ArrayLike | None = None,
    constraints: Constraints | None = None,
) -> SparseFit:
    """Return the sparse posterior where the evidence is largest.

    Each coefficient has a normal prior of its own variance; those of a useless term go
    to 0, and it leaves the support. The answer does not depend on the columns' scales.
    It is differentiable by the data, through the optimum, at a fixed support.

    The evidence is no test of significance. Where noise is white it keeps a useless
    term about one time in three, with `abs(fit.z)` of 1 to 3: choose by `abs(fit.z) >
    4`. Where residuals have structure (they do when the model error is found from
    analyses, or a term is missing from the library) z too trusts useless terms: choose
    by `elbow` of the `backward_path`.

    Args:
        problem: as `compress` makes it.
        noise: the standard deviation of a row of weight 1, in the target's units, if
            known; found together with the rest if None.
        update: the way to the optimum, `Sequential()`, `MacKay()` or `EM()`; None
            takes the first.
        groups: one number for each term; terms with the same number share one prior
            variance (of coefficients times their columns' root mean square) and are
            kept or pruned together.
        constraints: linear equations that the coefficients satisfy exactly.

    Raises:
        ValueError: `groups` or `constraints` does not fit the terms.
        EquinoxRuntimeError: `noise` is not positive, or it is None and there are no
            more rows than terms: then some set of terms explains everything and the
            evidence has no upper limit; give `noise`.
    """
    terms = len(problem.target)
    same = None
    if groups is not None:
        groups = jnp.asarray(groups)
        if groups.shape != (terms,):
            raise ValueError(
                f"`groups` must have the shape ({terms},), got {groups.shape}."
            )
        same = (groups[:, None] == groups[None]).astype(problem.target.dtype)
    if update is None:
        update = Sequential()
    count = problem.rows
    if noise is None:
        count = eqx.error_if(
            count,
            count <= terms,
            "`noise` is free and there are no more rows than terms: some set of terms "
            "explains every row and the evidence degenerates (it has no upper limit). "
            "Give `noise`, more rows or fewer terms.",
        )
    if constraints is None:
        reduction = Reduction.none(problem)
    else:
        reduction = reduce(problem, constraints)
    system, size, height = scaled(
        reduction.factor, reduction.target, problem.rest, count, noise, same
    )
    found = lax.stop_gradient(update.solve(lax.stop_gradient(system)))
    ratio, now = at_optimum(system, found.ratio, found.now)
    spread = system.noise(now.misfit) * height**2
    mean, covariance, support = reduction.expand(
        jnp.where(ratio > 0, now.mean * height / size, 0),
        now.shape * spread / (size[:, None] * size[None]),
        ratio > 0,
    )
    log_scale = count * jnp.log(height) - 0.5 * problem.log_weights
    return SparseFit(
        mean=mean,
        covariance=covariance,
        prior_variance=ratio * spread / size**2,
        noise=jnp.sqrt(spread),
        log_evidence=log_evidence(system, now) - log_scale,
        support=support,
        converged=found.converged,
        steps=found.steps,
        problem=problem,
    )
