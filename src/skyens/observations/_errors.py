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
from jaxtyping import Array, Bool, Float, Key, Scalar

from skyens.observations._covariance import (
    check_covariance,
    log_determinant,
    masked_factor,
    whiten_by,
)
from skyens.observations._parameters import Positive, over, positive

LOG_2PI = float(np.log(2 * np.pi))


@runtime_checkable
class Error(Protocol):
    """The contract of an observation error; residuals have the shape of the value.

    A masked entry changes nothing: its whitened residual is 0, it adds nothing to the
    log-density, and its gradient is 0, whatever number the residual holds there.

    Two more methods are for laws that are not one Gaussian; `Observation` asks whether
    they are there:

    - `gaussian(residual, mask) -> Error`, of a law that is not Gaussian: the Gaussian
      law that stands for it about these residuals. Its covariance W^-1 is such that
      `W residual` is the slope of the law's log-density (less its sign), so that a
      method which alternates between a Gaussian analysis and this choice finds the
      maximum of the law itself: iteratively reweighted least squares. See `StudentT`.
    - `at(prediction) -> Error`, of a law that depends on what is predicted: the law
      there. It gets finite predictions. See `Heteroscedastic`.

    One that is neither has a `whiten` that is linear in the residual.
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

    def __init__(self, std: Positive):
        """Set `std`, one number or an array that broadcasts to the value's shape.

        Entries that will be masked need a positive number too; which is of no matter.

        Raises:
            EquinoxRuntimeError: `std` is not finite and above 0 everywhere.
        """
        self.std = positive("std", std)

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
        return jnp.where(mask, residual, 0) / self._std(residual, mask)

    def log_prob(
        self, residual: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
    ) -> Scalar:
        """Return the Gaussian log-density of the residuals that `mask` keeps."""
        terms = jnp.square(self.whiten(residual, mask)) + LOG_2PI
        terms = terms + 2 * jnp.log(self._std(residual, mask))
        return -jnp.sum(jnp.where(mask, terms, 0)) / 2

    def sample(
        self, prediction: Float[Array, "*shape"], *, key: Key[Array, ""]
    ) -> Float[Array, "*shape"]:
        """Return `std` times white noise, in the prediction's shape and dtype."""
        noise = jr.normal(key, prediction.shape, prediction.dtype)
        return over("std", self.std, prediction) * noise

    def _std(self, residual, mask):
        # A masked entry may have any: the derivative of a quotient needs a sound one.
        return jnp.where(mask, over("std", self.std, residual), 1)


def unchecked(std: Float[Array, "*std"]) -> Diagonal:
    """Return `Diagonal(std)` where a NaN must go on to its own member, and no further.

    The check of the constructor stops everything.
    """
    return eqx.tree_at(lambda law: law.std, Diagonal(1.0), std)


class Dense(eqx.Module):
    """Gaussian errors with a full covariance matrix, in the value's units squared.

    Masked entries are as good as taken away. Whitening is by the inverse of the
    Cholesky factor, of `size^3 / 3` operations; for errors that are correlated in equal
    groups only, `Block` is cheaper.
    """

    covariance: Float[Array, "size size"]

    def __init__(self, covariance: Float[Array | np.ndarray, "size size"]):
        """Set `covariance`, `(size, size)`, of the value's entries in C order.

        Raises:
            EquinoxRuntimeError: it is not finite, symmetric and positive definite.
        """
        self.covariance = check_covariance("covariance", covariance)

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
        return gaussian_log_prob(*self._whiten(residual, mask), mask)

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
        white = whiten_by(factor, jnp.where(mask, residual, 0).reshape(-1))
        return white.reshape(residual.shape), factor

    def _factor(self, residual, mask):
        if residual.size != self.covariance.shape[0]:
            raise ValueError(
                f"`covariance` of shape {self.covariance.shape} does not fit an "
                f"observation of shape {residual.shape}, {residual.size} entries."
            )
        return masked_factor(self.covariance, mask.reshape(-1), residual.dtype)


def gaussian_log_prob(
    white: Float[Array, "*shape"],
    factor: Float[Array, "..."],
    mask: Bool[Array, "*shape"],
) -> Scalar:
    """Return the log-density of whitened residuals, by the factor that whitened."""
    count = jnp.sum(mask).astype(white.dtype)
    return -(jnp.sum(white**2) + log_determinant(factor) + count * LOG_2PI) / 2


def solve(
    error: Error, residual: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Return `R^-1 residual`, 0 where `mask` is False, of a Gaussian law.

    It is the whitening followed by its transpose, so that any law has it.
    """
    white, transpose = jax.vjp(lambda r: error.whiten(r, mask), residual)
    (solution,) = transpose(white)
    return solution
