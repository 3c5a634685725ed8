"""The evidence of a sparse prior, its slopes and its curvature, without cancellation.

Columns and target have norm 1 here. The prior variances are `ratio * noise variance`
and pruned terms have ratio 0; so a free noise variance has its optimum in closed form,
`misfit / rows`, and only the ratios are left to find.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float


class System(NamedTuple):
    """A scaled regression: factor and target as `SparseProblem` has them."""

    factor: Float[Array, "term term"]
    target: Float[Array, "term"]
    rest: Float[Array, ""]
    rows: Float[Array, ""]
    variance: Float[Array, ""] | None  # of the noise, where it is known
    same: Float[Array, "term term"] | None  # 1 where two terms are of one group

    def noise(self, misfit):
        """Return the noise variance: the known one, or the best."""
        return misfit / self.rows if self.variance is None else self.variance

    def share(self, values):
        """Return for every term the sum over the terms of its group."""
        return values if self.same is None else self.same @ values


class Statistics(NamedTuple):
    """What a set of ratios implies; `K = I + Phi diag(ratio) Phi^T`."""

    mean: Float[Array, "term"]
    shape: Float[Array, "term term"]  # the covariance over the noise variance
    pull: Float[Array, "term"]  # Phi^T K^-1 y
    bend: Float[Array, "term term"]  # Phi^T K^-1 Phi
    misfit: Float[Array, ""]  # y^T K^-1 y
    log_determinant: Float[Array, ""]  # of K


def scaled(
    factor: Float[Array, "term term"],
    target: Float[Array, "term"],
    rest: Float[Array, ""],
    rows: Float[Array, ""],
    noise: float | Float[Array, ""] | None,
    same: Float[Array, "term term"] | None = None,
) -> tuple[System, Float[Array, "term"], Float[Array, ""]]:
    """Return a regression on unit columns and target, with the norms they had.

    Raises:
        EquinoxRuntimeError: `noise` is not positive.
    """
    size = _norm(factor)
    height = jnp.sqrt(jnp.sum(target**2) + rest)
    height = lax.stop_gradient(jnp.where(height > 0, height, 1))
    variance = None
    if noise is not None:
        known = jnp.asarray(noise, target.dtype)
        known = eqx.error_if(known, ~(known > 0), "`noise` must be positive.")
        variance = (known / height) ** 2
    least = jnp.finfo(target.dtype).eps ** 2
    rest = jnp.maximum(rest / height**2, least)
    factor, target = factor / size[None], target / height
    return System(factor, target, rest, rows, variance, same), size, height


def _norm(factor):
    """Return the columns' norms without a squared overflow, 1 for empty ones."""
    largest = lax.stop_gradient(jnp.max(jnp.abs(factor), axis=0))
    safe = jnp.where(largest > 0, largest, 1)
    norm = safe * jnp.sqrt(jnp.sum((factor / safe[None]) ** 2, axis=0))
    return lax.stop_gradient(jnp.where(largest > 0, norm, 1))


def statistics(system: System, ratio: Float[Array, "term"]) -> Statistics:
    """Return the posterior and the slopes' parts at these ratios.

    A QR factorisation of `[Phi S; I]`, with S the roots of the ratios, never sees a
    value below 1: any collinear columns will do.
    """
    factor, target = system.factor, system.target
    active = ratio > 0
    root = jnp.where(active, jnp.sqrt(jnp.where(active, ratio, 1)), 0)
    terms = len(ratio)
    eye = jnp.eye(terms, dtype=factor.dtype)
    scaled = factor * root[None]
    q, upper = jnp.linalg.qr(jnp.concatenate([scaled, eye]))
    both = jnp.concatenate([factor, target[:, None]], axis=1)
    sides = jnp.concatenate([q[:terms].T @ both, eye], axis=1)
    solved = lax.linalg.triangular_solve(upper, sides, left_side=True, lower=False)
    shift, weights = solved[:, :terms], solved[:, terms]
    inverse = solved[:, terms + 1 :]
    left = factor - scaled @ shift  # K^-1 Phi
    residue = target - scaled @ weights  # K^-1 y
    slope = factor.T @ residue
    return Statistics(
        mean=root * weights,
        shape=(root[:, None] * inverse) @ (root[:, None] * inverse).T,
        pull=jnp.where(active, weights / jnp.where(active, root, 1), slope),
        bend=left.T @ left + shift.T @ shift,  # sums of squares keep their digits
        misfit=jnp.sum(residue**2) + jnp.sum(weights**2) + system.rest,
        log_determinant=2 * jnp.sum(jnp.log(jnp.abs(jnp.diagonal(upper)))),
    )


def log_evidence(system: System, now: Statistics) -> Float[Array, ""]:
    """Return the log-density of the target, at the best noise where it is free."""
    variance = system.noise(now.misfit)
    normal = system.rows * jnp.log(2 * jnp.pi * variance)
    return -0.5 * (normal + now.log_determinant + now.misfit / variance)


def slope(system: System, now: Statistics) -> Float[Array, "term"]:
    """Return the derivative of the log-evidence by each ratio (by its group's)."""
    pulled = now.pull**2 / system.noise(now.misfit)
    return 0.5 * system.share(pulled - jnp.diagonal(now.bend))


def newton_step(
    system: System, ratio: Float[Array, "term"], now: Statistics
) -> Float[Array, "term"]:
    """Return the change of the active ratios' logarithms to the nearest optimum.

    The curvature is a constant to derivatives: at an optimum, one step with it makes
    the derivative by the data that of the optimum itself (implicit function theorem).
    """
    gradient = ratio * slope(system, now)
    fixed, still = lax.stop_gradient((now, gradient))
    kept = lax.stop_gradient(ratio)
    variance = system.noise(fixed.misfit)
    outer = fixed.pull[:, None] * fixed.pull[None]
    curvature = 0.5 * fixed.bend**2 - outer * fixed.bend / variance
    if system.variance is None:
        curvature += outer**2 / (2 * variance * fixed.misfit)
    curvature *= kept[:, None] * kept[None]
    if system.same is not None:
        # Of the terms of a group one stands for all, the others follow.
        curvature = system.share(system.share(curvature).T)
        chief = jnp.argmax(system.same, axis=1) == jnp.arange(len(kept))
    else:
        chief = jnp.ones(len(kept), bool)
    active = chief & (kept > 0)
    curvature = jnp.where(active[:, None] & active[None], curvature, 0)
    curvature += jnp.diag(jnp.where(active, still, 0))
    # Damped a little: duplicates leave a direction without curvature.
    size = jnp.finfo(kept.dtype).eps ** 0.75 * jnp.max(jnp.abs(curvature))
    curvature -= jnp.diag(jnp.where(active, size, 1))
    change = -jnp.linalg.solve(curvature, jnp.where(active, gradient, 0)[:, None])[:, 0]
    return jnp.clip(system.share(change), -1, 1)


def moved(ratio, change, active: Bool[Array, "term"]):
    """Return the ratios with their logarithms changed where `active`."""
    return jnp.where(active, ratio * jnp.exp(jnp.where(active, change, 0)), 0)


@jax.custom_jvp
def at_optimum(
    system: System, ratio: Float[Array, "term"], now: Statistics
) -> tuple[Float[Array, "term"], Statistics]:
    """Return ratio and statistics as they are; their derivatives are the optimum's.

    They follow the system through the stationarity of the evidence (implicit function
    theorem), with the support as it is.
    """
    return ratio, now


@at_optimum.defjvp
def _at_optimum(primals, tangents):
    system, ratio, now = primals
    moving, *_ = tangents
    _, change = jax.linearize(statistics, system, ratio)
    still = change(moving, jnp.zeros_like(ratio))
    step = lambda system, now: newton_step(system, ratio, now)
    _, along = jax.jvp(step, (system, now), (moving, still))
    flow = ratio * along
    return (ratio, now), (flow, change(moving, flow))
