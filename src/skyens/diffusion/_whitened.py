"""Gaussian algebra of few observations, in the units of their errors.

Near one state an observation is `innovation = rows @ change + noise`, all divided by
the errors' standard deviations, so that the noise has covariance one. Products of the
rows with each other are dense matrices of observations: no matrix of the state's size.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from skyens.observations import Observation

Number = Float[Array, ""]
Vector = Float[Array, "observation"]
Matrix = Float[Array, "observation observation"]


class Whitened(eqx.Module):
    """An observation about one state, whitened and flat; masked entries are 0.

    `level` is the log-density of the errors, in the value's units, where they are 0.
    """

    innovation: Vector
    rows: Float[Array, "observation *state"]
    level: Number

    def gram(self, rows: Float[Array, "observation *state"] | None = None) -> Matrix:
        """Return the products of these rows with others, or with themselves."""
        other = self.rows if rows is None else rows
        return matmul(_flat(self.rows), _flat(other).T)

    def back(self, vector: Vector) -> Float[Array, "*state"]:
        """Return the sum of the rows, each times an entry of the vector."""
        return jnp.tensordot(vector, self.rows, 1, precision="highest")

    def along(self, change: Float[Array, "*state"]) -> Vector:
        """Return the change of the whitened prediction with that of the state."""
        return matmul(_flat(self.rows), change.ravel())

    def log_density(self, spread: Matrix, residual: Vector | None = None) -> Number:
        """Return the log-density of the values, if `spread` adds to the errors.

        `spread` is a covariance in the errors' units; `residual` stands in place of the
        innovation.
        """
        residual = self.innovation if residual is None else residual
        factor = factorise(spread)
        white = jax.scipy.linalg.solve_triangular(factor, residual, lower=True)
        return self.level - jnp.sum(white**2) / 2 - jnp.sum(jnp.log(jnp.diag(factor)))


def whiten(observation: Observation, state: Float[Array, "*state"]) -> Whitened:
    """Return the observation about `state`, with the Gaussian law of its errors."""
    innovation, operator = observation.linearise(state)
    size = innovation.size
    unit = jnp.eye(size, dtype=innovation.dtype).reshape(size, *innovation.shape)
    rows = jax.vmap(operator.transpose().mv)(unit)
    law = observation.gaussian_error(observation.predict(state))
    # At no residual, where nothing large cancels against the square of the innovation.
    level = law.log_prob(jnp.zeros_like(innovation), observation.mask)
    return Whitened(innovation.ravel(), rows, level)


def factorise(spread: Matrix) -> Matrix:
    """Return the Cholesky factor of `I + spread`.

    What is not a covariance, that of a network whose Jacobian is none, say, gives way
    to its diagonal, as far as that is positive.
    """
    identity = jnp.eye(len(spread), dtype=spread.dtype)
    diagonal = jnp.diag(spread)
    factor = jnp.linalg.cholesky(identity + (spread + spread.T) / 2)
    good = jnp.all(jnp.isfinite(factor)) | ~jnp.all(jnp.isfinite(spread))
    # Double where: a factor that failed must not reach a derivative.
    sound = jnp.where(good, spread, jnp.diag(jnp.maximum(diagonal, 0)))
    return jnp.linalg.cholesky(identity + (sound + sound.T) / 2)


def solve(spread: Matrix, vector: Vector) -> Vector:
    """Return `(I + spread)^-1 vector`."""
    return jax.scipy.linalg.cho_solve((factorise(spread), True), vector)


def condition(
    white: Whitened, variance: Number, inflation: Number, *, key: PRNGKeyArray
) -> tuple[Float[Array, "*state"], Number]:
    """Draw a change of the state given the observation, and tell how it fits.

    The change has white noise of `variance` before it is observed, with errors of
    covariance `I + inflation * rows rows^T`. The second value returned is the
    log-density of the values, linearised, once the change is known.

    Source: Hoffman & Ribak (1991), Astrophys. J. 380, L5-L8: a draw from the prior,
    moved by the gain times what it misses of values with a draw of the errors.
    """
    first, second = jr.split(key)
    dtype = white.innovation.dtype
    gram = white.gram()
    wander = jr.normal(first, white.rows.shape[1:], dtype) * jnp.sqrt(variance)
    error = jr.normal(second, white.innovation.shape, dtype)
    error = matmul(factorise(inflation * gram), error)
    missed = white.innovation + error - white.along(wander)
    change = wander + variance * white.back(
        solve((inflation + variance) * gram, missed)
    )
    left = white.innovation - white.along(change)
    return change, white.log_density(inflation * gram, left)


def matmul(a: Any, b: Any) -> Array:
    """Return the product, in full precision."""
    return jnp.matmul(a, b, precision="highest")


def _flat(rows):
    return rows.reshape(len(rows), -1)
