"""The closed-form prior with many modes: a mixture of Gaussians.

For components k of weight w, mean m and covariance C, seen as `clean + sigma * noise`,
the expected clean state is the mean of the components' own, weighted by the chance that
the sample came from each, `w_k N(x; m_k, C_k + sigma^2 I)`. An observation of a linear
function of the state, with Gaussian errors, leaves a mixture of Gaussians again.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from skyens.diffusion._denoisers import (
    DiagonalGaussianDenoiser,
    GaussianDenoiser,
    Scalar,
)
from skyens.observations import Observation

LOG_2PI = float(np.log(2 * np.pi))


class GaussianMixtureDenoiser(eqx.Module):
    """The denoiser of a mixture of Gaussians, exact at every noise level.

    With it come the log-density at every level, exact samples, and the exact posterior
    and evidence of linear observations: what a sampler or a network is held against.
    First derivatives in means, variances, covariances and weights are right, at
    repeated and zero eigenvalues too.
    """

    log_weights: Float[Array, "component"]
    components: GaussianDenoiser | DiagonalGaussianDenoiser  # stacked: they lead

    def __init__(
        self,
        means: Float[Array, "component *state"],
        variances: Float[Array, "..."] | float | None = None,
        *,
        covariances: Float[Array, "matrix row column"] | None = None,
        weights: Float[Array, "weight"] | None = None,
    ):
        """Set the components, by `variances` or by `covariances`.

        Args:
            means: in the state's units.
            variances: of independent entries, in squared units: one number, one for
                each component `(component,)`, or one for each entry of each mean.
            covariances: of the flat states, one dense matrix for each component.
            weights: positive, of any sum; equal if None.

        Raises:
            ValueError: not exactly one of `variances` and `covariances` is given, or
                shapes do not fit each other.
            EquinoxRuntimeError: a weight is not positive and finite, a variance is
                negative, or a covariance is not symmetric and positive semidefinite.
        """
        if means.ndim < 1 or means.shape[0] < 1:
            raise ValueError(
                "`means` needs a leading axis of at least 1 component, got shape "
                f"{means.shape}."
            )
        count = means.shape[0]
        if (variances is None) == (covariances is None):
            raise ValueError("Give exactly one of `variances` and `covariances`.")
        weights = jnp.ones(count, means.dtype) if weights is None else weights
        if weights.shape != (count,):
            raise ValueError(
                f"`weights` must be ({count},) for {count} means, got {weights.shape}."
            )
        good = jnp.all((weights > 0) & jnp.isfinite(weights))  # NaN fails too
        weights = eqx.error_if(weights, ~good, "`weights` must be positive and finite.")
        self.log_weights = jax.nn.log_softmax(
            jnp.log(jnp.asarray(weights, means.dtype))
        )
        if covariances is not None:
            if covariances.shape[0] != count:
                raise ValueError(
                    f"`covariances` must have {count} components, as `means`, got "
                    f"shape {covariances.shape}."
                )
            covariances = covariances.astype(means.dtype)
            self.components = jax.vmap(GaussianDenoiser)(means, covariances)
        else:
            variances = jnp.asarray(variances, means.dtype)
            if variances.shape not in ((), (count,), means.shape):
                raise ValueError(
                    f"`variances` must be one number, ({count},) or {means.shape}, "
                    f"got {variances.shape}."
                )
            if variances.ndim:
                missing = (1,) * (means.ndim - variances.ndim)
                variances = variances.reshape(variances.shape + missing)
            variances = jnp.broadcast_to(variances, means.shape)
            self.components = jax.vmap(DiagonalGaussianDenoiser)(means, variances)

    @property
    def means(self) -> Float[Array, "component *state"]:
        """The means of the components."""
        return self.components.mean

    @property
    def weights(self) -> Float[Array, "component"]:
        """The weights of the components, which add up to 1."""
        return jnp.exp(self.log_weights)

    def __call__(
        self, x: Float[Array, "*state"], sigma: Scalar, *, condition: Any = None
    ) -> Float[Array, "*state"]:
        """Return the expected clean state, in the shape, units and dtype of `x`.

        Raises:
            ValueError: `x` is not of the means' shape, or a `condition` is given.
        """
        denoise = lambda one: one(x, sigma, condition=condition)
        clean = jax.vmap(denoise)(self.components)
        chances = jax.nn.softmax(self._log_densities(x, sigma))
        # About the likeliest, so that large means cost no accuracy. As the chances add
        # up to 1 its derivative is 0, and is not asked for.
        first = jax.lax.stop_gradient(clean[jnp.argmax(chances)])
        moved = jnp.tensordot(chances, clean - first[None], 1, precision="highest")
        return first + moved

    def log_prob(self, x: Float[Array, "*state"], sigma: Scalar = 0.0) -> Scalar:
        """Return the log-density of clean states plus noise of level `sigma`.

        Raises:
            ValueError: `x` is not of the means' shape.
        """
        return jax.nn.logsumexp(self._log_densities(x, sigma))

    def sample(self, *, key: PRNGKeyArray) -> Float[Array, "*state"]:
        """Return one clean state, drawn exactly."""
        which, inside = jr.split(key)
        index = jr.categorical(which, self.log_weights)
        one = jax.tree.map(lambda leaf: leaf[index], self.components)
        noise = jr.normal(inside, one.mean.shape, one.mean.dtype)
        positive = one.variances > 0
        # Double where: the square root must never see the 0 it would differentiate.
        std = jnp.sqrt(jnp.where(positive, one.variances, 1))
        std = jnp.where(positive, std, 0)
        if isinstance(one, DiagonalGaussianDenoiser):
            return one.mean + std * noise
        moved = jnp.matmul(one.basis, std * noise.ravel(), precision="highest")
        return one.mean + moved.reshape(one.mean.shape)

    def posterior(self, observation: Observation) -> "GaussianMixtureDenoiser":
        """Return the law of the clean state given a linear observation of it.

        It is exact where the operator is linear, or affine, and the errors Gaussian.
        """
        log_weights, means, covariances = self._conditioned(observation)
        weights = jax.nn.softmax(log_weights)
        # A component that is ruled out beyond the range of numbers keeps the least.
        weights = jnp.maximum(weights, jnp.finfo(weights.dtype).tiny)
        return GaussianMixtureDenoiser(means, covariances=covariances, weights=weights)

    def log_evidence(self, observation: Observation) -> Scalar:
        """Return the log-density of the observed values, exact as `posterior` is."""
        return jax.nn.logsumexp(self._conditioned(observation)[0])

    def moments(self) -> tuple[Float[Array, "*state"], Float[Array, "size size"]]:
        """Return the mixture's mean, and the covariance of the flat state."""
        weights, means = self.weights, self.means
        mean = jnp.tensordot(weights, means, 1, precision="highest")
        apart = (means - mean[None]).reshape(len(means), -1)
        scaled = weights[:, None] * apart
        between = jnp.matmul(scaled.T, apart, precision="highest")
        within = jnp.tensordot(weights, self._covariances(), 1, precision="highest")
        return mean, between + within

    def _covariances(self):
        if isinstance(self.components, GaussianDenoiser):
            return self.components.covariance
        count = self.log_weights.size
        return jax.vmap(jnp.diag)(self.components.variances.reshape(count, -1))

    def _log_densities(self, x, sigma):
        """Return the log of each component's weight times its density of `x`."""
        if x.shape != self.means.shape[1:]:
            raise ValueError(
                f"`x` must have the mean's shape {self.means.shape[1:]}, got {x.shape}."
            )
        sigma = jnp.asarray(sigma, x.dtype)
        cast = lambda component: jax.tree.map(lambda a: a.astype(x.dtype), component)
        density = jax.vmap(lambda one: _log_density(cast(one), x, sigma))
        return self.log_weights.astype(x.dtype) + density(self.components)

    def _conditioned(self, observation):
        """Return log-weights (with the evidence), means and covariances given it."""

        def one(log_weight, mean, covariance):
            innovation, operator = observation.linearise(mean)
            size = innovation.size
            unit = jnp.eye(size, dtype=innovation.dtype)
            unit = unit.reshape(size, *innovation.shape)
            rows = jax.vmap(operator.transpose().mv)(unit).reshape(size, -1)
            multiply = lambda a, b: jnp.matmul(a, b, precision="highest")
            seen = multiply(rows, covariance)
            total = jnp.eye(size, dtype=seen.dtype) + multiply(seen, rows.T)
            factor = jnp.linalg.cholesky((total + total.T) / 2)
            solve = lambda b: jax.scipy.linalg.cho_solve((factor, True), b)
            gain = solve(seen).T
            moved = multiply(gain, innovation.ravel())
            # Joseph's form: symmetric and positive, whatever the rounding.
            kept = jnp.eye(mean.size, dtype=seen.dtype) - multiply(gain, rows)
            after = multiply(multiply(kept, covariance), kept.T)
            after = after + multiply(gain, gain.T)
            white = jax.scipy.linalg.solve_triangular(
                factor, innovation.ravel(), lower=True
            )
            law = observation.gaussian_error(observation.predict(mean))
            level = law.log_prob(jnp.zeros_like(innovation), observation.mask)
            fit = jnp.sum(white**2) / 2 + jnp.sum(jnp.log(jnp.diag(factor)))
            mean = mean + moved.reshape(mean.shape)
            return log_weight + level - fit, mean, (after + after.T) / 2

        return jax.vmap(one)(self.log_weights, self.means, self._covariances())


def _log_density(component, x, sigma):
    """Return the log-density of a Gaussian's clean states plus noise."""
    noise, residual = sigma * sigma, x - component.mean
    # A point mass seen without noise keeps a density of finite logarithm.
    least = float(jnp.finfo(x.dtype).tiny) ** 0.5
    total = jnp.maximum(component.variances + noise, least)
    if isinstance(component, DiagonalGaussianDenoiser):
        return -jnp.sum(residual**2 / total + jnp.log(total) + LOG_2PI) / 2
    multiply = lambda matrix, v: jnp.matmul(matrix, v, precision="highest")
    basis = component.basis
    along = multiply(basis.T, residual.ravel())
    # Tables give the value and carry no derivative; what is added is always 0, with the
    # first derivatives in the covariance of the square and of the determinant.
    change = component.covariance - jax.lax.stop_gradient(component.covariance)
    solved = multiply(basis, along / total)
    precision = multiply(basis / total[None], basis.T)
    slope = jnp.sum(solved * multiply(change, solved)) - jnp.sum(precision * change)
    return (slope - jnp.sum(along**2 / total + jnp.log(total) + LOG_2PI)) / 2
