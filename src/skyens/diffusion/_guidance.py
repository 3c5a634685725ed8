"""Guidance: turn a prior's denoiser and an observation into the posterior's denoiser.

Guidance returns a denoiser again, so every sampler takes it, and so does `guide`.
Several sources guide together, or one after the other, each by its own method.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from skyens.diffusion._denoisers import Denoiser, Scalar
from skyens.diffusion._units import InUnits, in_terms_of
from skyens.observations import Observation, stack


@runtime_checkable
class Linearisable(Protocol):
    """What guidance asks of an observation; `observations.Observation` has it."""

    def linearise(self, state: Any) -> tuple[Any, lx.AbstractLinearOperator]:
        """Return the whitened innovation and the whitened operator's derivative."""
        ...


class MMPS(eqx.Module):
    """Moment matching posterior sampling: exact where everything is Gaussian.

    With D the denoised state, J = dD/dx and the observation y = A clean + error of
    covariance R, the covariance of the clean state given x is sigma^2 J, and

        E[clean | x, y] = D + sigma^2 J^T A^T (R + sigma^2 A J A^T)^-1 (y - A D).

    Solved whitened, `(I + sigma^2 A J A^T) z = innovation`, without any matrix, one
    vector-Jacobian product of the denoiser per iteration. A masked observation is a
    row of zeros, which changes nothing. A nonlinear operator is linearised at D.

    J of an exact denoiser is a covariance: symmetric, positive semidefinite. That of a
    network is so only nearly, least so in strong noise: choose a schedule whose
    `sigma_max` is some ten times the prior's spread, not more. The system of a
    covariance has a solution z no longer than the innovation; one that is longer is
    shortened to that, so that a system that is nearly singular leads no sample astray.
    `symmetric=False` with `solver=lx.GMRES(...)` does not take J to be symmetric.

    Source: Rozet et al. (2024), NeurIPS 37, arXiv:2405.13712.
    """

    solver: lx.AbstractLinearSolver | None
    symmetric: bool = eqx.field(static=True)

    def __init__(
        self, solver: lx.AbstractLinearSolver | None = None, symmetric: bool = True
    ):
        """Set the `solver`, and whether the denoiser's Jacobian counts as symmetric.

        Without a solver: conjugate gradients to a whitened residual of `eps^(3/4)` of
        the state's dtype, in at most as many iterations as there are observations and
        ten more. One that stops early returns what it has. `lx.Cholesky()` forms the
        matrix, good for few observations.
        """
        self.solver = solver
        self.symmetric = symmetric

    def __call__(
        self,
        denoise: Callable,
        observation: Linearisable,
        x: Float[Array, "*state"],
        sigma: Scalar,
    ) -> Float[Array, "*state"]:
        """Return the expected clean state given `x` and the observation.

        `denoise(x)` is the prior's denoiser at the level `sigma`.
        """
        clean, pull = jax.vjp(denoise, x)
        innovation, operator = observation.linearise(clean)
        adjoint = operator.transpose()
        variance = jnp.square(jnp.asarray(sigma, x.dtype))
        spread = lambda z: variance * pull(adjoint.mv(z))[0]  # sigma^2 J^T A^T z
        system = lx.FunctionLinearOperator(
            lambda z: jax.tree.map(jnp.add, z, operator.mv(spread(z))),
            jax.eval_shape(lambda: innovation),
            lx.positive_semidefinite_tag if self.symmetric else (),
        )
        # A solve that has not converged still guides; it must not stop the others.
        solver = self.solver or conjugate_gradients(innovation)
        solution = lx.linear_solve(system, innovation, solver, throw=False).value
        return clean + spread(_no_longer(solution, innovation))


class GuidedDenoiser(eqx.Module):
    """The denoiser of a prior guided by an observation; made by `guide`."""

    denoiser: Denoiser
    observation: Linearisable
    method: Callable

    def __call__(
        self, x: Float[Array, "*state"], sigma: Scalar, *, condition: Any = None
    ) -> Float[Array, "*state"]:
        """Return the expected clean state given `x` and the observation.

        `condition` goes to the prior's denoiser.
        """
        denoise = lambda x: self.denoiser(x, sigma, condition=condition)
        return self.method(denoise, self.observation, x, sigma)


_MMPS = MMPS()


def guide(
    denoiser: Denoiser,
    observation: Linearisable | InUnits | Sequence[Observation | InUnits],
    method: Callable = _MMPS,
) -> GuidedDenoiser:
    """Return the denoiser of the posterior, given an `observation` of the clean state.

    The observation must be one of the state that the denoiser knows, in its units: if
    that is normalised or a latent, `observation.pullback(decode)` makes it so, or both
    state their units, as `Normalised` and `InUnits`. Several observations of
    independent errors count as one, see `observations.stack`.

    `method(denoise, observation, x, sigma)` returns the guided state, as `MMPS()` does.

    Raises:
        ValueError: the sequence of observations is empty, or units are stated by one of
            prior and observation only, or differ.
    """
    own: Linearisable
    if isinstance(observation, Sequence):
        own = stack([in_terms_of(denoiser, one) for one in observation])
    else:
        own = in_terms_of(denoiser, observation)
    return GuidedDenoiser(denoiser, own, method)


def _no_longer(solution, innovation):
    """Return the solution, shortened to the innovation's length if it is longer."""
    leaves = jax.tree.leaves
    square = lambda tree: sum(jnp.sum(jnp.square(leaf)) for leaf in leaves(tree))
    longest, found = square(innovation), square(solution)
    # Double where: the square root must never see the 0 it would differentiate.
    long = found > longest
    ratio = jnp.where(long, longest, 1) / jnp.where(long, found, 1)
    factor = jnp.where(ratio > 0, jnp.sqrt(jnp.where(ratio > 0, ratio, 1)), 0)
    return jax.tree.map(lambda leaf: factor.astype(leaf.dtype) * leaf, solution)


def conjugate_gradients(innovation: Any) -> lx.CG:
    """Return the solver of `(I + a covariance) z = innovation`, whitened."""
    leaves = jax.tree.leaves(innovation)
    size = sum(leaf.size for leaf in leaves)
    # Whitened, every eigenvalue of the system is at least 1: the residual bounds the
    # error. `atol` is needed besides `rtol`, which is per entry and may meet a 0.
    tolerance = float(max(jnp.finfo(leaf.dtype).eps for leaf in leaves)) ** 0.75
    return lx.CG(rtol=tolerance, atol=tolerance, max_steps=size + 10)
