"""Robust errors: laws with long tails, which a gross error does not carry away.

They are not Gaussian. `log_prob` and `sample` are exact; `gaussian` returns the
Gaussian law that stands for them about given residuals, in which each entry's variance
grows with its residual: iteratively reweighted least squares. `whiten` uses it, and is
not linear therefore. A method that analyses once trusts a value by how far it is from
the background; one that iterates asks again at each iterate, and ends at the maximum of
the law itself.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Key, Scalar

from skyens.observations._errors import Diagonal, unchecked
from skyens.observations._parameters import Positive, over, positive
from skyens.observations._precision import wide
from skyens.scores import log_score_student_t


class StudentT(eqx.Module):
    """Independent errors by Student's t: `residual / scale` has `degrees_of_freedom`.

    A residual far out loses all its weight: `(nu + 1) / (nu + (residual / scale)^2)`
    times that of a Gaussian error of standard deviation `scale`. Whitening, which every
    Gaussian analysis uses, is by these weights: iteratively reweighted least squares,
    of which a method that analyses once takes one step. `log_prob` is the law itself.

    Source: Lange, Little & Taylor (1989), J. Am. Stat. Assoc. 84, 881-896.
    """

    scale: Float[Array, "*scale"]
    degrees_of_freedom: Float[Array, "*degrees_of_freedom"]

    def __init__(self, scale: Positive, degrees_of_freedom: Positive = 4.0):
        """Set the law; numbers, or arrays that broadcast to the value's shape.

        Args:
            scale: in the value's units. The standard deviation is
                `scale * sqrt(nu / (nu - 2))`, for nu above 2 degrees of freedom.
            degrees_of_freedom: dimensionless; 1 is Cauchy's law, many are a Gaussian.

        Raises:
            EquinoxRuntimeError: one is not finite and above 0 everywhere.
        """
        self.scale = positive("scale", scale)
        self.degrees_of_freedom = positive("degrees_of_freedom", degrees_of_freedom)

    @property
    def independent(self) -> bool:
        """True: whitening is entry by entry."""
        return True

    def gaussian(
        self, residual: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
    ) -> Diagonal:
        """Return the Gaussian law that stands for this one about the residuals.

        Its standard deviation is `scale * sqrt((nu + (residual / scale)^2) / (nu + 1))`
        in the value's units, that of a residual of 0 where masked.
        """
        scale, freedom = self._parameters(residual)
        residual = jnp.where(mask, residual, 0)
        # Without squares that would overflow: a fill value of 1e36 is a residual too.
        far = jnp.hypot(scale * jnp.sqrt(freedom), residual)
        return unchecked(far / jnp.sqrt(freedom + 1))

    def whiten(
        self, residual: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        """Return the reweighted `residual / std`, 0 where `mask` is False.

        No derivative goes through the weights.
        """
        law = self.gaussian(jax.lax.stop_gradient(residual), mask)
        return law.whiten(residual, mask)

    def log_prob(
        self, residual: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
    ) -> Scalar:
        """Return the log-density of the residuals that `mask` keeps."""
        scale, freedom = self._parameters(residual)
        residual = jnp.where(mask, residual, 0)
        zero = jnp.zeros_like(residual)
        terms = log_score_student_t(freedom, zero, scale, residual)
        return -jnp.sum(jnp.where(mask, terms, 0))

    def sample(
        self, prediction: Float[Array, "*shape"], *, key: Key[Array, ""]
    ) -> Float[Array, "*shape"]:
        """Return draws of the law, in the prediction's shape and dtype."""
        dtype = wide(prediction.dtype)
        scale, freedom = self._parameters(prediction.astype(dtype))
        error = scale * jr.t(key, freedom, prediction.shape, dtype)
        return error.astype(prediction.dtype)

    def _parameters(self, residual):
        freedom = over("degrees_of_freedom", self.degrees_of_freedom, residual)
        return over("scale", self.scale, residual), freedom


class Huber(eqx.Module):
    """Independent errors, Gaussian within a threshold and exponential beyond it.

    With `z = residual / std` and c the threshold, minus the log-density is `z^2 / 2`
    where `|z| <= c` and `c |z| - c^2 / 2` beyond, plus a constant. A residual beyond
    keeps the weight `c / |z|`: its pull on an analysis stays what it is at the
    threshold. Whitening, which every Gaussian analysis uses, is by these weights:
    iteratively reweighted least squares, of which a method that analyses once takes one
    step. `log_prob` is the law itself.

    Sources: Huber (1964), Ann. Math. Stat. 35, 73-101; for weather observations,
    Tavolato & Isaksen (2015), Quart. J. Roy. Meteor. Soc. 141, 1514-1527.
    """

    std: Float[Array, "*std"]
    threshold: Float[Array, "*threshold"]

    def __init__(self, std: Positive, threshold: Positive = 1.345):
        """Set the law; numbers, or arrays that broadcast to the value's shape.

        Args:
            std: standard deviation of the Gaussian part, in the value's units.
            threshold: where the tails begin, in standard deviations. 1.345 costs 5
                percent of the efficiency where all errors are Gaussian.

        Raises:
            EquinoxRuntimeError: one is not finite and above 0 everywhere.
        """
        self.std = positive("std", std)
        self.threshold = positive("threshold", threshold)

    @property
    def independent(self) -> bool:
        """True: whitening is entry by entry."""
        return True

    def gaussian(
        self, residual: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
    ) -> Diagonal:
        """Return the Gaussian law that stands for this one about the residuals.

        Its standard deviation is `std * sqrt(max(1, |residual| / (c * std)))` in the
        value's units, `std` where masked.
        """
        std, threshold = self._parameters(residual)
        far = jnp.abs(jnp.where(mask, residual, 0)) / (threshold * std)
        return unchecked(std * jnp.sqrt(jnp.maximum(far, 1)))

    def whiten(
        self, residual: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        """Return the reweighted `residual / std`, 0 where `mask` is False.

        No derivative goes through the weights.
        """
        law = self.gaussian(jax.lax.stop_gradient(residual), mask)
        return law.whiten(residual, mask)

    def log_prob(
        self, residual: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
    ) -> Scalar:
        """Return the log-density of the residuals that `mask` keeps."""
        std, c = self._parameters(residual)
        z = jnp.where(mask, residual, 0) / std
        near = jnp.clip(z, -c, c)
        # Within, `near` is z; beyond, c |z| - c^2 / 2.
        terms = near * (z - near / 2)
        core, tails = _masses(c)
        terms = terms + jnp.log(core + tails) + jnp.log(std)
        return -jnp.sum(jnp.where(mask, terms, 0))

    def sample(
        self, prediction: Float[Array, "*shape"], *, key: Key[Array, ""]
    ) -> Float[Array, "*shape"]:
        """Return draws of the law, in the prediction's shape and dtype."""
        dtype, shape = wide(prediction.dtype), prediction.shape
        std, c = self._parameters(prediction.astype(dtype))
        core, tails = _masses(c)
        part, inner, outer, side = jr.split(key, 4)
        near = jr.truncated_normal(inner, -c, c, shape, dtype)
        far = c + jr.exponential(outer, shape, dtype) / c
        far = far * jr.rademacher(side, shape, dtype)
        within = jr.uniform(part, shape, dtype) * (core + tails) < core
        return (std * jnp.where(within, near, far)).astype(prediction.dtype)

    def _parameters(self, residual):
        threshold = over("threshold", self.threshold, residual)
        return over("std", self.std, residual), threshold


def _masses(threshold):
    """Integrals of Huber's function within the threshold and beyond, by z."""
    core = np.sqrt(2 * np.pi).item() * jax.lax.erf(threshold * np.sqrt(0.5).item())
    return core, 2 * jnp.exp(-(threshold**2) / 2) / threshold
