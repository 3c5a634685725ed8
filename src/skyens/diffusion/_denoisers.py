"""Closed-form priors: denoisers of Gaussian laws, exact at every noise level.

For a clean state with mean m and covariance C, seen as `x = clean + sigma * noise`,

    E[clean | x] = m + C (C + sigma^2 I)^-1 (x - m).

In the eigenbasis of C each coordinate shrinks by `v / (v + sigma^2)`, where nothing
cancels, however small or large sigma. States have any shape; they are flattened inside.
"""

from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Scalar = Float[Array, ""] | float


@runtime_checkable
class Denoiser(Protocol):
    """The contract: the expected clean state, given one noisy sample."""

    def __call__(
        self, x: Float[Array, "*state"], sigma: Scalar, *, condition: Any = None
    ) -> Float[Array, "*state"]:
        """Return `E[clean | x = clean + sigma * noise]`, in shape and dtype of `x`."""
        ...


class GaussianDenoiser(eqx.Module):
    """The denoiser of a Gaussian with a dense covariance.

    One eigendecomposition at construction, two products with its basis per call. It is
    differentiable in the `mean` and `covariance` it is built from, at repeated and zero
    eigenvalues too; `basis` and `variances` are tables that follow from these.
    """

    mean: Float[Array, "*state"]
    covariance: Float[Array, "size size"]
    basis: Float[Array, "size size"]
    variances: Float[Array, "size"]

    def __init__(
        self, mean: Float[Array, "*state"], covariance: Float[Array, "row column"]
    ):
        """Set the `mean`, in the state's units, and the `covariance` of the flat state.

        Raises:
            ValueError: the covariance does not have one row per entry of the mean.
            EquinoxRuntimeError: the covariance is not finite, not symmetric, or has an
                eigenvalue below zero beyond rounding.
        """
        if covariance.shape != (mean.size, mean.size):
            raise ValueError(
                f"`covariance` must be ({mean.size}, {mean.size}) for a mean of shape "
                f"{mean.shape}, got {covariance.shape}."
            )
        rounding = 10 * mean.size * float(jnp.finfo(covariance.dtype).eps)
        asymmetry = jnp.max(jnp.abs(covariance - covariance.T), initial=0)
        largest = jnp.max(jnp.abs(covariance), initial=0)
        covariance = eqx.error_if(
            covariance,
            ~(asymmetry <= rounding * largest),  # NaN fails too
            "`covariance` must be finite and symmetric.",
        )
        variances, basis = jnp.linalg.eigh(jax.lax.stop_gradient(covariance))
        self.mean = mean
        self.covariance = covariance
        self.basis = basis
        self.variances = eqx.error_if(
            jnp.maximum(variances, 0),
            jnp.any(variances < -rounding * largest),
            "`covariance` has a negative eigenvalue.",
        )

    def __call__(
        self, x: Float[Array, "*state"], sigma: Scalar, *, condition: Any = None
    ) -> Float[Array, "*state"]:
        """Return the expected clean state, in the shape, units and dtype of `x`.

        Raises:
            ValueError: `x` is not of the mean's shape, or a `condition` is given.
        """
        mean, sigma = _prepare(self.mean, x, sigma, condition)
        covariance, basis = self.covariance.astype(x.dtype), self.basis.astype(x.dtype)
        variances, residual = self.variances.astype(x.dtype), (x - mean).ravel()
        moved = _shrink(covariance, basis, variances, residual, sigma)
        return mean + moved.reshape(x.shape)


class DiagonalGaussianDenoiser(eqx.Module):
    """The denoiser of independent Gaussians: one mean and variance per entry.

    The natural prior for states that are already coefficients of orthonormal functions,
    such as real spherical harmonics, Fourier modes or principal components.
    """

    mean: Float[Array, "*state"]
    variances: Float[Array, "*state"]

    def __init__(self, mean: Float[Array, "*state"], variances: Float[Array, "*same"]):
        """Set the `mean`, in the state's units, and the `variances`, in their square.

        Raises:
            ValueError: the two differ in shape.
            EquinoxRuntimeError: a variance is negative or NaN.
        """
        if variances.shape != mean.shape:
            raise ValueError(
                f"`variances` must have the mean's shape {mean.shape}, "
                f"got {variances.shape}."
            )
        self.mean, self.variances = mean, _nonnegative(variances, "variances")

    def __call__(
        self, x: Float[Array, "*state"], sigma: Scalar, *, condition: Any = None
    ) -> Float[Array, "*state"]:
        """Return the expected clean state, in the shape, units and dtype of `x`.

        Raises:
            ValueError: `x` is not of the mean's shape, or a `condition` is given.
        """
        mean, sigma = _prepare(self.mean, x, sigma, condition)
        return mean + _gain(self.variances.astype(x.dtype), sigma) * (x - mean)


class LowRankGaussianDenoiser(eqx.Module):
    """The denoiser of a Gaussian known by its leading directions.

    The covariance is `B diag(variances) B^T + remainder (I - B B^T)`, with orthonormal
    columns B: variances along the directions kept, one small variance in all others.
    Never forms a matrix of the state's size squared.

    Source: Tipping & Bishop (1999), J. R. Stat. Soc. B 61, 611-622.
    """

    mean: Float[Array, "*state"]
    basis: Float[Array, "size rank"]
    variances: Float[Array, "rank"]
    remainder: Float[Array, ""]

    def __init__(
        self,
        mean: Float[Array, "*state"],
        basis: Float[Array, "size rank"],
        variances: Float[Array, "same_rank"],
        remainder: Scalar = 0.0,
    ):
        """Set the `mean`, orthonormal `basis` columns and variances in squared units.

        Raises:
            ValueError: shapes do not fit each other.
            EquinoxRuntimeError: a variance is negative or NaN, or the columns of
                `basis` are not orthonormal.
        """
        if basis.shape != (mean.size, *variances.shape):
            raise ValueError(
                f"`basis` must be {(mean.size, *variances.shape)} for a mean of shape "
                f"{mean.shape} and variances {variances.shape}, got {basis.shape}."
            )
        overlap = jnp.matmul(basis.T, basis, precision="highest")
        defect = jnp.abs(overlap - jnp.eye(basis.shape[1], dtype=basis.dtype))
        rounding = 10 * mean.size * float(jnp.finfo(basis.dtype).eps)
        self.mean = mean
        self.basis = eqx.error_if(
            basis,
            ~(jnp.max(defect, initial=0) <= rounding),
            "The columns of `basis` must be orthonormal.",
        )
        self.variances = _nonnegative(variances, "variances")
        self.remainder = _nonnegative(
            jnp.asarray(remainder, variances.dtype), "remainder"
        )

    def __call__(
        self, x: Float[Array, "*state"], sigma: Scalar, *, condition: Any = None
    ) -> Float[Array, "*state"]:
        """Return the expected clean state, in the shape, units and dtype of `x`.

        Raises:
            ValueError: `x` is not of the mean's shape, or a `condition` is given.
        """
        mean, sigma = _prepare(self.mean, x, sigma, condition)
        basis, residual = self.basis.astype(x.dtype), (x - mean).ravel()
        rest = _gain(self.remainder.astype(x.dtype), sigma)
        kept = _gain(self.variances.astype(x.dtype), sigma) - rest
        along = jnp.matmul(basis.T, residual, precision="highest")
        moved = rest * residual + jnp.matmul(basis, kept * along, precision="highest")
        return mean + moved.reshape(x.shape)


def _prepare(mean, x, sigma, condition):
    if condition is not None:
        raise ValueError("A closed-form prior takes no `condition`.")
    if x.shape != mean.shape:
        raise ValueError(f"`x` must have the mean's shape {mean.shape}, got {x.shape}.")
    return mean.astype(x.dtype), jnp.asarray(sigma, x.dtype)


def _nonnegative(values, name):
    return eqx.error_if(values, jnp.any(~(values >= 0)), f"`{name}` must be >= 0.")


def _gain(variances, sigma):
    """Return `v / (v + sigma^2)`, 0 where both are 0."""
    total = variances + sigma * sigma
    return jnp.where(total > 0, variances / jnp.where(total > 0, total, 1), 0)


def _precision(variances, sigma):
    """Return `1 / (v + sigma^2)`, 0 where both are 0."""
    total = variances + sigma * sigma
    return jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1), 0)


def _shrink(covariance, basis, variances, vector, sigma):
    """Return `C K vector` with `K = (C + sigma^2 I)^-1`, with its derivatives in C.

    The derivative of an eigendecomposition is infinite at repeated eigenvalues, that of
    this function is not. It is the second half of the solution of a linear system,
    `(C + sigma^2 I) w = vector` and `u - C w = 0`: the tables, which carry no
    derivative, solve it, and the system gives the derivatives, of every order.
    """
    multiply = lambda matrix, v: jnp.matmul(matrix, v, precision="highest")
    gain, precision = _gain(variances, sigma), _precision(variances, sigma)

    def system(unknown):
        solved, shrunk = unknown
        seen = multiply(covariance, solved)
        return jnp.stack([seen + sigma * sigma * solved, shrunk - seen])

    def solve(_, right):
        first, second = right
        along = multiply(basis.T, first)
        shrunk = second + multiply(basis, gain * along)
        return jnp.stack([multiply(basis, precision * along), shrunk])

    def solve_transposed(_, right):
        first, second = right
        along = precision * multiply(basis.T, first) + gain * multiply(basis.T, second)
        return jnp.stack([multiply(basis, along), second])

    right = jnp.stack([vector, jnp.zeros_like(vector)])
    return jax.lax.custom_linear_solve(system, right, solve, solve_transposed)[1]
