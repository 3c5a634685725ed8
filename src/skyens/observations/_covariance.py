"""Covariance matrices of errors: checked once, factorised behind a mask.

Rows and columns of masked entries become those of the identity *before* a matrix is
factorised, which is the same as taking these entries away.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from skyens.observations._checks import check_values
from skyens.observations._precision import wide
from skyens.sphere._precision import as_float

Matrices = Float[Array, "*block size size"]


def check_covariance(name: str, covariance: Array | np.ndarray) -> Matrices:
    """Return one covariance matrix, or several, as an array.

    Raises:
        EquinoxRuntimeError: one is not finite, symmetric and positive definite, or so
            nearly singular that its factor would be rounding. The scales of the
            entries, which are those of their units, do not count.
    """
    if not jnp.issubdtype(covariance.dtype, jnp.inexact):
        covariance = as_float(covariance)
    array = check_values(name, "finite and symmetric", covariance, _symmetric)
    rounding = max(4, array.shape[-1]) * float(jnp.finfo(array.dtype).eps)
    message = f"`{name}` must be positive definite"
    if isinstance(covariance, Tracer):
        pivot = _diagonal(jnp.linalg.cholesky(_correlation(array))) ** 2
        return eqx.error_if(array, ~(pivot > rounding), message + ".")
    known = np.asarray(covariance, np.float64)
    if np.all(_diagonal(known) > 0):
        smallest = np.linalg.eigvalsh(_correlation(known))[..., 0]
    else:
        smallest = _diagonal(known).min(axis=-1)
    wrong = ~(smallest > rounding)
    if not wrong.any():
        return array
    first = tuple(np.argwhere(wrong)[0].tolist())
    complaint = _complain(known[first], float(smallest[first]))
    where = f" (block {first[0]}, the first of {int(wrong.sum())})" if first else ""
    return eqx.error_if(array, np.asarray(True), f"{message}{where}: {complaint}.")


def masked_factor(
    covariance: Matrices, keep: Bool[Array, "*block size"], dtype: np.dtype
) -> Matrices:
    """Return the lower Cholesky factor, of the identity where `keep` is False."""
    dtype = wide(dtype)
    both = keep[..., :, None] & keep[..., None, :]
    identity = jnp.broadcast_to(jnp.eye(keep.shape[-1], dtype=dtype), both.shape)
    return jnp.linalg.cholesky(jnp.where(both, covariance.astype(dtype), identity))


def whiten_by(
    factor: Matrices, residual: Float[Array, "*block size"]
) -> Float[Array, "*block size"]:
    """Return `factor^-1 residual`."""
    column = residual.astype(factor.dtype)[..., None]
    white = jax.lax.linalg.triangular_solve(factor, column, left_side=True, lower=True)
    return white[..., 0]


def log_determinant(factor: Matrices) -> Float[Array, ""]:
    """Return the logarithm of the determinant of the covariance of all blocks."""
    return 2 * jnp.sum(jnp.log(_diagonal(factor)))


def _complain(matrix: np.ndarray, smallest: float) -> str:
    """What is wrong with a matrix."""
    if np.any(np.diagonal(matrix) <= 0):
        return f"its smallest variance is {smallest:.3g}"
    correlation = _correlation(matrix)
    complaint = f"the smallest eigenvalue of its correlations is {smallest:.3g}"
    pairs = np.triu(np.abs(correlation), 1)
    one, other = np.unravel_index(np.argmax(pairs), pairs.shape)
    if abs(pairs[one, other] - 1) < 1e-6:
        complaint += (
            f"; entries {one} and {other} are duplicates, of correlation "
            f"{correlation[one, other]:.3g}: drop one, or give each an independent "
            "part"
        )
    return complaint


def _correlation(matrix):
    std = _diagonal(matrix) ** 0.5
    return matrix / (std[..., :, None] * std[..., None, :])


def _diagonal(matrix):
    return matrix.diagonal(axis1=-2, axis2=-1)


def _symmetric(matrix):
    variance = _diagonal(matrix)
    # Squared, what rounding may leave between two halves that were computed apart.
    slack = (64 * float(jnp.finfo(matrix.dtype).eps)) ** 2
    allowed = slack * abs(variance[..., :, None] * variance[..., None, :])
    return (matrix - matrix.swapaxes(-1, -2)) ** 2 <= allowed
