"""The Kalman update with dense matrices: what other methods are measured against."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from skyens.assimilation._ensemble import matmul
from skyens.observations import Observation


def kalman_update(
    mean: PyTree[Any],
    covariance: Float[Array, "state state"],
    observation: Observation,
) -> tuple[PyTree[Any], Float[Array, "state state"]]:
    """Return mean and covariance of a Gaussian, given an observation of it.

    Exact for a linear operator; otherwise that of the extended Kalman filter, with the
    operator linearised at `mean`. The covariance is updated in Joseph's form, which
    stays symmetric and positive semidefinite in finite precision.

    Args:
        mean: the state, real leaves; its flattening in C order, leaf after leaf, orders
            the rows of `covariance`.
        covariance: in the state's units squared.
        observation: of the state; a masked entry changes nothing.

    Raises:
        ValueError: the covariance does not fit the mean, or the mean is complex.

    Source: Anderson & Moore (1979), Optimal Filtering, chapter 5; Bucy & Joseph (1968).
    """
    flat, unravel = ravel_pytree(mean)
    if covariance.shape[0] != flat.size:
        raise ValueError(
            f"`covariance` of shape {covariance.shape} does not fit a `mean` of "
            f"{flat.size} entries."
        )
    if not jnp.issubdtype(flat.dtype, jnp.floating):
        raise ValueError(
            f"`mean` must be real, got {flat.dtype}; update real and imaginary part as "
            "two leaves."
        )
    innovation, operator = observation.pullback(unravel).linearise(flat)
    matrix = operator.as_matrix()
    seen = matmul(matrix, covariance)
    total = matmul(seen, matrix.T) + jnp.eye(len(matrix), dtype=matrix.dtype)
    factor = jnp.linalg.cholesky(total)
    gain = jax.scipy.linalg.cho_solve((factor, True), seen).T
    kept = jnp.eye(flat.size, dtype=flat.dtype) - matmul(gain, matrix)
    analysis = flat + matmul(gain, innovation.reshape(-1))
    remaining = matmul(matmul(kept, covariance), kept.T) + matmul(gain, gain.T)
    return unravel(analysis), remaining
