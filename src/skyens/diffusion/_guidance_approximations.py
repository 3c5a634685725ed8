"""Guidance that guesses the covariance of the clean state, where `MMPS` computes it.

With D the denoised state, J = dD/dx and an observation `y = A clean + error` of
covariance R, each takes for the likelihood of x a Gaussian about A D and adds sigma^2
times its slope to D. They differ in what they add to R for the clean state's own
uncertainty, which `MMPS` takes to be `sigma^2 A J A^T`:

    DPS 0, SDA `gamma sigma^2`, PiGDM `r^2 A A^T`, TMPD the row sums of MMPS's.

One evaluation of the denoiser and one vector-Jacobian product of it are enough (TMPD:
two of each). All are biased, but for special priors, and no number of steps mends it;
as twists of a particle method they cost nothing but efficiency.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from skyens.diffusion._denoisers import Scalar
from skyens.diffusion._guidance import Linearisable, conjugate_gradients
from skyens.observations import Observation


class DPS(eqx.Module):
    """Diffusion posterior sampling: as if the denoised state were the clean one.

        E[clean | x, y] = D + scale * sigma^2 * d/dx log p(y | D(x))

    for any law of the errors. With sharp observations this slope is too steep for any
    sampler; when `normalised`, as in the paper, it is divided by the norm of the
    whitened innovation, and `scale` has to be tuned: near the ratio of the error's
    standard deviation to the prior's is a start.

    Source: Chung et al. (2023), ICLR, arXiv:2209.14687, algorithm 1, where the
    normalised slope is added once a step; here its weight does not depend on the steps.
    """

    scale: Float[Array, ""]
    normalised: bool = eqx.field(static=True)

    def __init__(self, scale: float | Float[Array, ""] = 1.0, normalised: bool = True):
        """Set the `scale`, dimensionless, and whether the slope is `normalised`.

        Raises:
            EquinoxRuntimeError: `scale` is negative or NaN.
        """
        self.scale = _at_least_zero("scale", scale)
        self.normalised = normalised

    def __call__(
        self,
        denoise: Callable,
        observation: Observation,
        x: Float[Array, "*state"],
        sigma: Scalar,
    ) -> Float[Array, "*state"]:
        """Return the expected clean state given `x` and the observation."""
        clean, pull = jax.vjp(denoise, x)
        slope = jax.grad(observation.log_prob)(clean)
        weight = self.scale.astype(x.dtype) * jnp.square(jnp.asarray(sigma, x.dtype))
        if self.normalised:
            square = jnp.sum(jnp.square(observation.innovation(clean)))
            # Double where: the square root must never see the 0 it would differentiate.
            norm = jnp.sqrt(jnp.where(square > 0, square, 1))
            weight = weight / norm.astype(x.dtype)
        return clean + weight * pull(slope)[0]


class SDA(eqx.Module):
    """Score-based data assimilation: a covariance `R + gamma sigma^2 I`.

    The clean state's uncertainty grows with the noise and is independent between the
    observations. Cheap and stable for whole trajectories of a `Windowed` denoiser;
    small `gamma` trusts the observations early, and diverges when too small.

    Source: Rozet & Louppe (2023), NeurIPS 36, arXiv:2306.10574, equation 15.
    """

    gamma: Float[Array, ""]

    def __init__(self, gamma: float | Float[Array, ""] = 1e-2):
        """Set `gamma`, in units of the value over those of the state, squared.

        Raises:
            EquinoxRuntimeError: `gamma` is negative or NaN.
        """
        self.gamma = _at_least_zero("gamma", gamma)

    def __call__(
        self,
        denoise: Callable,
        observation: Observation,
        x: Float[Array, "*state"],
        sigma: Scalar,
    ) -> Float[Array, "*state"]:
        """Return the expected clean state given `x` and the observation."""
        clean, pull = jax.vjp(denoise, x)
        innovation, operator = observation.linearise(clean)
        error = observation.gaussian_error(observation.predict(clean))
        whiten = lambda residual: error.whiten(residual, observation.mask)
        variance = jnp.square(jnp.asarray(sigma, innovation.dtype))
        added = self.gamma.astype(innovation.dtype) * variance
        ones = jnp.ones_like(innovation)
        if error.independent:
            solution = innovation / (1 + added * jnp.square(whiten(ones)))
        else:
            unwhiten = jax.linear_transpose(whiten, ones)
            matrix = lambda z: whiten(unwhiten(z)[0])  # R^-1, whitened on both sides
            solution = _solve(matrix, added, innovation, None)
        return _move(clean, pull, operator, solution, sigma)


class PiGDM(eqx.Module):
    """Pseudo-inverse guidance: a covariance `R + r^2 A A^T`.

    The clean state given x is taken to have the variance
    `r^2 = spread^2 sigma^2 / (spread^2 + sigma^2)` in all directions: exact for a prior
    of independent Gaussians of this one `spread`.

    Source: Song et al. (2023), ICLR, "Pseudoinverse-guided diffusion models for inverse
    problems", where the spread is 1.
    """

    spread: Float[Array, ""]
    solver: lx.AbstractLinearSolver | None

    def __init__(
        self,
        spread: float | Float[Array, ""] = 1.0,
        solver: lx.AbstractLinearSolver | None = None,
    ):
        """Set the standard deviation of clean states, in their units.

        Without a `solver`: conjugate gradients, as for `MMPS`.

        Raises:
            EquinoxRuntimeError: `spread` is not above 0.
        """
        spread = jnp.asarray(spread, float)
        self.spread = eqx.error_if(spread, ~(spread > 0), "`spread` must be above 0.")
        self.solver = solver

    def __call__(
        self,
        denoise: Callable,
        observation: Linearisable,
        x: Float[Array, "*state"],
        sigma: Scalar,
    ) -> Float[Array, "*state"]:
        """Return the expected clean state given `x` and the observation."""
        clean, pull = jax.vjp(denoise, x)
        innovation, operator = observation.linearise(clean)
        adjoint = operator.transpose()
        sigma = jnp.asarray(sigma, x.dtype)
        # Written so that neither a huge level nor a huge spread overflows.
        ratio = sigma / self.spread.astype(x.dtype)
        variance = jnp.square(sigma) / (1 + jnp.square(ratio))
        matrix = lambda z: operator.mv(adjoint.mv(z))
        added = variance.astype(innovation.dtype)
        solution = _solve(matrix, added, innovation, self.solver)
        return _move(clean, pull, operator, solution, sigma)


class TMPD(eqx.Module):
    """Tweedie moment projection: MMPS's covariance made diagonal by its row sums.

    Whitened, `(I + sigma^2 diag(A J A^T 1)) z = innovation`: nothing to solve. Exact
    for one observation. A row sum below 0, which no diagonal covariance has, counts
    as 0.

    Source: Boys et al. (2024), TMLR, arXiv:2310.06721, section 3.
    """

    def __call__(
        self,
        denoise: Callable,
        observation: Linearisable,
        x: Float[Array, "*state"],
        sigma: Scalar,
    ) -> Float[Array, "*state"]:
        """Return the expected clean state given `x` and the observation."""
        clean, pull = jax.vjp(denoise, x)
        innovation, operator = observation.linearise(clean)
        adjoint = operator.transpose()
        variance = jnp.square(jnp.asarray(sigma, innovation.dtype))
        sums = operator.mv(pull(adjoint.mv(jnp.ones_like(innovation)))[0])
        solution = innovation / (1 + variance * jnp.maximum(sums, 0))
        return _move(clean, pull, operator, solution, sigma)


def _move(clean, pull, operator, solution, sigma):
    """Return `D + sigma^2 J^T A^T z`, whitened."""
    variance = jnp.square(jnp.asarray(sigma, clean.dtype))
    return clean + variance * pull(operator.transpose().mv(solution))[0]


def _solve(matrix, factor, innovation, solver):
    """Return z of `(I + factor * matrix) z = innovation`, as near as it gets."""
    system = lx.FunctionLinearOperator(
        lambda z: z + factor * matrix(z),
        jax.eval_shape(lambda: innovation),
        lx.positive_semidefinite_tag,
    )
    solver = solver or conjugate_gradients(innovation)
    return lx.linear_solve(system, innovation, solver, throw=False).value


def _at_least_zero(name, value):
    value = jnp.asarray(value, float)
    return eqx.error_if(value, ~(value >= 0), f"`{name}` must not be negative.")
