"""The log score of a multivariate normal forecast, from a Cholesky factor."""

import math

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from skyens.scores._members import (
    score_dtype,
    wide_dtype,
)
from skyens.scores._parameters import positive


def log_score_multivariate_normal(
    mean: Float[Array, "..."],
    cholesky: Float[Array, "..."],
    truth: Float[Array, "..."],
) -> Float[Array, "..."]:
    """Return minus the log density of multivariate normals; lower is better.

    `sum_i log L_ii + |L^-1 (y - mu)|^2 / 2 + (d / 2) log(2 pi)`. One factor for many
    truths is never copied. Half precision is computed in float32.

    Args:
        mean: of the distribution, `(..., d)`, in any units; its leading axes, those of
            `cholesky` and those of `truth` broadcast.
        cholesky: the lower triangular factor `L` of the covariance `L L^T`,
            `(..., d, d)`, in the same units; what stands above its diagonal is ignored.
        truth: what happened, `(..., d)`, in the same units.

    Returns:
        The score in nats, NaN where the diagonal of `cholesky` is not positive.

    Raises:
        ValueError: `cholesky` is no square of the event's size, or the shapes do not
            broadcast.
    """
    shapes = {"mean": mean.shape, "cholesky": cholesky.shape, "truth": truth.shape}
    size = cholesky.shape[-1] if cholesky.ndim > 1 else 0
    try:
        shape = jnp.broadcast_shapes(mean.shape, cholesky.shape[:-1], truth.shape)
    except ValueError:
        shape = ()
    if cholesky.shape[-2:] != (size, size) or shape[-1:] != (size,):
        raise ValueError(
            "`mean` (..., d), `cholesky` (..., d, d) and `truth` (..., d) do not "
            f"broadcast: {shapes}."
        )
    dtype = score_dtype(mean, cholesky, truth)
    wide = wide_dtype(dtype)
    mean, truth = (jnp.broadcast_to(x.astype(wide), shape) for x in (mean, truth))
    factor = cholesky.astype(wide)
    error = truth - mean
    if factor.ndim == 2:
        columns = error.reshape(-1, size).T
        white = solve_triangular(factor, columns, lower=True).T.reshape(shape)
    else:
        square = jnp.broadcast_to(factor, (*shape, size))
        white = solve_triangular(square, error[..., None], lower=True)[..., 0]
    diagonal = positive(jnp.diagonal(factor, axis1=-2, axis2=-1))
    volume = jnp.sum(jnp.log(diagonal), axis=-1)
    distance = jnp.sum(white**2, axis=-1)
    volume = jnp.broadcast_to(volume, distance.shape)
    constant = size / 2 * math.log(2 * math.pi)
    return (volume + distance / 2 + constant).astype(dtype)
