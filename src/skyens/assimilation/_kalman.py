"""The Kalman filter with dense matrices: what other methods are measured against."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree, Scalar

from skyens.assimilation._ensemble import matmul
from skyens.observations import Observation

Matrix = Float[Array, "state state"]


class Gaussian(eqx.Module):
    """A normal law of states, by `mean` and `covariance`.

    The mean is one state; the flattening of its real leaves in C order, leaf after
    leaf, orders the rows of the covariance, in the state's units squared.
    """

    mean: PyTree[Any]
    covariance: Float[Array, "*batch state state"]


class Filtered(eqx.Module):
    """What `kalman_filter` knows at each time, arrays with a leading axis of times.

    `predicted` and `analysis` are the laws before and after the observation of that
    time; `log_evidence` is the log-density of this observation given those before, so
    its sum is that of all.
    """

    predicted: Gaussian
    analysis: Gaussian
    log_evidence: Float[Array, "time"]


class Seen(eqx.Module):
    """The whitened observation of a Gaussian, and what is expected of it.

    `innovation` d has the covariance `H P H' + I`, `factor` is its Cholesky factor;
    `operator` is H. The rows of masked entries are those of the identity, and 0.
    """

    innovation: Float[Array, "observation"]
    operator: Float[Array, "observation state"]
    factor: Float[Array, "observation observation"]
    log_density: Scalar  # of an error of 0

    @property
    def misfit(self) -> Scalar:
        """`d' (H P H' + I)^-1 d`."""
        half = jax.scipy.linalg.solve_triangular(
            self.factor, self.innovation, lower=True
        )
        return jnp.sum(half**2)

    @property
    def degrees_of_freedom(self) -> Scalar:
        """The trace of `H K`, that is of `I - (H P H' + I)^-1`."""
        identity = jnp.eye(len(self.factor), dtype=self.factor.dtype)
        half = jax.scipy.linalg.solve_triangular(self.factor, identity, lower=True)
        return len(self.factor) - jnp.sum(half**2)

    @property
    def log_evidence(self) -> Scalar:
        """The log-density of the observation, in its own units."""
        determinant = jnp.sum(jnp.log(jnp.diagonal(self.factor)))
        return self.log_density - determinant - self.misfit / 2


def kalman_update(
    mean: PyTree[Any], covariance: Matrix, observation: Observation
) -> tuple[PyTree[Any], Matrix]:
    """Return mean and covariance of a Gaussian, given an observation of it.

    Exact for a linear operator; otherwise that of the extended Kalman filter, with the
    operator linearised at `mean`. The covariance is updated in Joseph's form, which
    stays symmetric and positive semidefinite in finite precision.

    Args:
        mean: the state, real leaves; its flattening in C order, leaf after leaf, orders
            the rows of `covariance`. Integer leaves come back as they are.
        covariance: in the state's units squared.
        observation: of the state; a masked entry changes nothing.

    Raises:
        ValueError: the covariance does not fit the mean, or the mean is complex.

    Source: Anderson & Moore (1979), Optimal Filtering, chapter 5; Bucy & Joseph (1968).
    """
    return condition(mean, covariance, observation)[:2]


def kalman_filter(
    mean: PyTree[Any],
    covariance: Matrix,
    transition: Float[Array, "*time _ _"],
    noise: Float[Array, "*time_noise _ _"],
    observations: Observation,
) -> Filtered:
    """Return the Kalman filter of a chain `x_i+1 = transition_i x_i + noise`.

    The first transition comes before the first observation, as in `cycle`. It is exact
    for linear operators, with log-evidence; others are linearised at the prediction.

    Args:
        mean: the state before the first transition, all leaves real.
        covariance: of its error, in the state's units squared.
        transition: matrix of one step, or one for each time.
        noise: covariance of what each step adds, or one for each time.
        observations: one observation whose arrays have a leading axis of times, as
            `jax.vmap(observe)(data)` makes it; masked entries change nothing.

    Raises:
        ValueError: a matrix does not fit the mean or the times, or the mean is not
            real.

    Source: Anderson & Moore (1979), Optimal Filtering, chapter 3.
    """
    flat, unravel = flatten(mean, covariance)
    arrays, static = eqx.partition(observations, eqx.is_array)
    times = len(observations.value)
    transition = each_time("transition", transition, times, flat)
    noise = each_time("noise", noise, times, flat)

    def advance(carry, x):
        flat, covariance = carry
        transition, noise, arrays = x
        predicted, spread = predict(flat, covariance, transition, noise)
        analysis, remaining, seen = condition(
            predicted, spread, eqx.combine(arrays, static).pullback(unravel)
        )
        out = (predicted, spread), (analysis, remaining), seen.log_evidence
        return (analysis, remaining), out

    _, (predicted, analysis, evidence) = jax.lax.scan(
        advance, (flat, covariance), (transition, noise, arrays)
    )
    law = lambda mean, covariance: Gaussian(jax.vmap(unravel)(mean), covariance)
    return Filtered(law(*predicted), law(*analysis), evidence)


def condition(
    mean: PyTree[Any], covariance: Matrix, observation: Observation
) -> tuple[PyTree[Any], Matrix, Seen]:
    """Return what `kalman_update` does, and how the observation was seen.

    Raises:
        ValueError: as there.
    """
    flat, unravel = flatten(mean, covariance)
    observation = observation.pullback(unravel)
    innovation, operator = observation.linearise(flat)
    matrix = operator.as_matrix()
    seen = matmul(matrix, covariance)
    total = matmul(seen, matrix.T) + jnp.eye(len(matrix), dtype=matrix.dtype)
    factor = jnp.linalg.cholesky(total)
    gain = jax.scipy.linalg.cho_solve((factor, True), seen).T
    kept = jnp.eye(flat.size, dtype=flat.dtype) - matmul(gain, matrix)
    analysis = flat + matmul(gain, innovation.reshape(-1))
    remaining = matmul(matmul(kept, covariance), kept.T) + matmul(gain, gain.T)
    error = observation.gaussian_error(observation.predict(flat))
    density = error.log_prob(jnp.zeros_like(innovation), observation.mask)
    seen = Seen(innovation.reshape(-1), matrix, factor, density)
    return unravel(analysis), remaining, seen


def predict(
    flat: Float[Array, "state"], covariance: Matrix, transition: Matrix, noise: Matrix
) -> tuple[Float[Array, "state"], Matrix]:
    """Return mean and covariance one step later."""
    moved = matmul(matmul(transition, covariance), transition.T) + noise
    return matmul(transition, flat), (moved + moved.T) / 2


def flatten(mean: PyTree[Any], covariance: Matrix):
    """Return the real leaves as one vector, and the way back; integers stay.

    Raises:
        ValueError: the covariance does not fit the mean, or the mean is complex.
    """
    real, rest = eqx.partition(jax.tree.map(jnp.asarray, mean), eqx.is_inexact_array)
    flat, unravel = ravel_pytree(real)
    if covariance.shape[-1] != flat.size:
        raise ValueError(
            f"`covariance` of shape {covariance.shape} does not fit a `mean` of "
            f"{flat.size} entries."
        )
    if not jnp.issubdtype(flat.dtype, jnp.floating):
        raise ValueError(
            f"`mean` must be real, got {flat.dtype}; update real and imaginary part as "
            "two leaves."
        )
    return flat, lambda vector: eqx.combine(unravel(vector), rest)


def each_time(
    name: str, matrix: Float[Array, "..."], times: int, flat: Float[Array, "state"]
) -> Float[Array, "time state state"]:
    """Return one matrix for each time.

    Raises:
        ValueError: its shape is neither `(state, state)` nor `(time, state, state)`.
    """
    wanted = (times, flat.size, flat.size)
    if matrix.shape not in (wanted, wanted[1:]):
        raise ValueError(
            f"`{name}` must have the shape {wanted[1:]} or {wanted}, got "
            f"{matrix.shape}."
        )
    matrix = matrix.astype(flat.dtype)
    return jnp.broadcast_to(matrix if matrix.ndim == 3 else matrix[None], wanted)
