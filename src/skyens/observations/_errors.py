"""Observation errors: laws of the difference between a value and its prediction.

Everything that weighs observations meets an error through its whitening, a map
`R^-1/2` that gives errors of covariance R a covariance of one. After it, a Kalman
filter, a variational cost and a diffusion posterior all see the same problem.
"""

from typing import Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Key, Scalar

from skyens.observations._checks import check_values
from skyens.observations._precision import wide

_LOG_2PI = float(np.log(2 * np.pi))


@runtime_checkable
class Error(Protocol):
    """The contract of an observation error; residuals have the shape of the value.

    A masked entry changes nothing: its whitened residual is 0, it adds nothing to the
    log-density, and its gradient is 0, whatever number the residual holds there.
    """

    @property
    def independent(self) -> bool:
        """Whether errors of different entries are independent.

        Whitening is then entry by entry, which is what lets a filter localise it.
        """
        ...

    def whiten(
        self, residual: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        """Return `R^-1/2 residual`, dimensionless, 0 where `mask` is False."""
        ...

    def log_prob(
        self, residual: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
    ) -> Scalar:
        """Return the log-density of the residuals that `mask` keeps."""
        ...

    def sample(
        self, prediction: Float[Array, "*shape"], *, key: Key[Array, ""]
    ) -> Float[Array, "*shape"]:
        """Return one error, in the shape, dtype and units of `prediction`."""
        ...


class Diagonal(eqx.Module):
    """Independent Gaussian errors of standard deviation `std`, in the value's units."""

    std: Float[Array, "*std"]

    def __init__(self, std: float | int | Float[Array | np.ndarray, "*std"]):
        """Set `std`, one number or an array that broadcasts to the value's shape.

        Entries that will be masked need a positive number too; which is of no matter.

        Raises:
            EquinoxRuntimeError: `std` is not finite and above 0 everywhere.
        """
        if isinstance(std, int | float):
            std = np.asarray(std, float)
        fine = lambda std: (std > 0) & (std < np.inf)
        self.std = check_values("std", "finite and above 0", std, fine)

    @property
    def independent(self) -> bool:
        """True: whitening is entry by entry."""
        return True

    def whiten(
        self, residual: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        """Return `residual / std`, 0 where `mask` is False.

        Raises:
            ValueError: `std` does not broadcast to the residual's shape.
        """
        return jnp.where(mask, residual, 0) / self._std(residual)

    def log_prob(
        self, residual: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
    ) -> Scalar:
        """Return the Gaussian log-density of the residuals that `mask` keeps."""
        terms = jnp.square(self.whiten(residual, mask)) + _LOG_2PI
        terms = terms + 2 * jnp.log(self._std(residual))
        return -jnp.sum(jnp.where(mask, terms, 0)) / 2

    def sample(
        self, prediction: Float[Array, "*shape"], *, key: Key[Array, ""]
    ) -> Float[Array, "*shape"]:
        """Return `std` times white noise, in the prediction's shape and dtype."""
        noise = jr.normal(key, prediction.shape, prediction.dtype)
        return self._std(prediction) * noise

    def _std(self, residual):
        shape = residual.shape
        if self.std.ndim > len(shape) or any(
            s not in (1, n)
            for s, n in zip(self.std.shape[::-1], shape[::-1], strict=False)
        ):
            raise ValueError(
                f"`std` of shape {self.std.shape} does not broadcast to the "
                f"observation's shape {shape}."
            )
        return jnp.broadcast_to(self.std.astype(residual.dtype), shape)


class Dense(eqx.Module):
    """Gaussian errors with a full covariance matrix, in the value's units squared.

    Rows and columns of masked entries become those of the identity *before* the
    matrix is factorised, which is the same as taking these entries away. Whitening is
    by the inverse of the Cholesky factor.
    """

    covariance: Float[Array, "size size"]

    def __init__(self, covariance: Float[Array | np.ndarray, "size size"]):
        """Set `covariance`, `(size, size)`, of the value's entries in C order.

        Raises:
            EquinoxRuntimeError: it is not finite, symmetric and positive definite.
        """
        array = check_values(
            "covariance", "finite and symmetric", covariance, _symmetric
        )
        message = "`covariance` must be positive definite"
        if isinstance(covariance, Tracer):
            # The factor of a matrix that is not positive definite is NaN.
            wrong = ~jnp.isfinite(jnp.linalg.cholesky(array))
        else:
            smallest = np.linalg.eigvalsh(np.asarray(covariance))[0]
            message += f": its smallest eigenvalue is {smallest:.3g}"
            wrong = np.asarray(not smallest > 0)
        self.covariance = eqx.error_if(array, wrong, message + ".")

    @property
    def independent(self) -> bool:
        """False: whitening mixes entries."""
        return False

    def whiten(
        self, residual: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        """Return `L^-1 residual`, 0 where `mask` is False; L is the Cholesky factor.

        Raises:
            ValueError: the covariance has not one row for each entry of the residual.
        """
        return self._whiten(residual, mask)[0]

    def log_prob(
        self, residual: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
    ) -> Scalar:
        """Return the Gaussian log-density of the residuals that `mask` keeps."""
        white, factor = self._whiten(residual, mask)
        log_determinant = 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))
        count = jnp.sum(mask).astype(residual.dtype)
        return -(jnp.sum(white**2) + log_determinant + count * _LOG_2PI) / 2

    def sample(
        self, prediction: Float[Array, "*shape"], *, key: Key[Array, ""]
    ) -> Float[Array, "*shape"]:
        """Return `L` times white noise, in the prediction's shape and dtype."""
        everything = jnp.ones(prediction.shape, bool)
        factor = self._factor(prediction, everything)
        noise = jr.normal(key, (prediction.size,), factor.dtype)
        error = jnp.matmul(factor, noise, precision="highest")
        return error.reshape(prediction.shape).astype(prediction.dtype)

    def _whiten(self, residual, mask):
        factor = self._factor(residual, mask)
        flat = jnp.where(mask, residual, 0).reshape(-1)
        white = jax.scipy.linalg.solve_triangular(factor, flat, lower=True)
        return white.reshape(residual.shape), factor

    def _factor(self, residual, mask):
        if residual.size != self.covariance.shape[0]:
            raise ValueError(
                f"`covariance` of shape {self.covariance.shape} does not fit an "
                f"observation of shape {residual.shape}, {residual.size} entries."
            )
        keep = mask.reshape(-1)
        both = keep[:, None] & keep[None, :]
        dtype = wide(residual.dtype)
        identity = jnp.eye(residual.size, dtype=dtype)
        return jnp.linalg.cholesky(
            jnp.where(both, self.covariance.astype(dtype), identity)
        )


def _symmetric(matrix):
    variance = matrix.diagonal()
    # Squared, what rounding may leave between two halves that were computed apart.
    slack = (64 * float(jnp.finfo(matrix.dtype).eps)) ** 2
    allowed = slack * abs(variance[:, None] * variance[None, :])
    return (matrix - matrix.T) ** 2 <= allowed
