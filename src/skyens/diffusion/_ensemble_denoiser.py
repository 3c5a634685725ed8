"""A prior known by some of its members: their kernel density, as a denoiser."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from skyens.diffusion._denoisers import Scalar


class EnsembleDenoiser(eqx.Module):
    """The denoiser of a mixture of equal Gaussians, one about each member.

    With the members' mean m, anomalies Z `(member, state)` and covariance P, the
    components have the centres `m + (1 - h^2)^1/2 z_j` and the covariance

        h^2 ((1 - shrinkage) P + shrinkage v I),

    h the `bandwidth` and v the mean variance of an entry. So the mixture has the
    members' mean and total variance at any h: 1 is one Gaussian, small h many points.
    `shrinkage` makes up for directions that a small ensemble has missed, and for the
    chance correlations that it shows.

    The cost of a call is linear in the size of the state, after one solve of the size
    of the ensemble for each level, which samples of a batch share.

    Source: West (1993), J. R. Stat. Soc. B 55, 409-422, for the shrunk centres.
    """

    mean: Float[Array, "*state"]
    anomalies: Float[Array, "member size"]
    gram: Float[Array, "member member"]
    basis: Float[Array, "member member"]
    spectrum: Float[Array, "member"]
    bandwidth: Float[Array, ""]
    shrinkage: Float[Array, ""]

    def __init__(
        self,
        members: Float[Array, "member *state"],
        bandwidth: Scalar = 1.0,
        shrinkage: Scalar = 0.0,
    ):
        """Set the members, in the state's units, and two numbers without any.

        Raises:
            ValueError: there are fewer than two members.
            EquinoxRuntimeError: `bandwidth` is not in (0, 1] or `shrinkage` in [0, 1].
        """
        if (count := members.shape[0]) < 2:
            raise ValueError(f"`members` must be at least 2, got {count}.")
        bandwidth, shrinkage = (
            jnp.asarray(bandwidth, float),
            jnp.asarray(shrinkage, float),
        )
        good = (bandwidth > 0) & (bandwidth <= 1) & (shrinkage >= 0) & (shrinkage <= 1)
        self.bandwidth = eqx.error_if(
            bandwidth,
            ~good,
            "`bandwidth` must lie in (0, 1] and `shrinkage` in [0, 1].",
        )
        self.shrinkage = shrinkage
        self.mean = jnp.mean(members, axis=0)
        self.anomalies = (members - self.mean[None]).reshape(count, -1)
        # Over N - 1, so that its eigenvalues are the variances in their directions.
        self.gram = _matmul(self.anomalies, self.anomalies.T) / (count - 1)
        spectrum, self.basis = jnp.linalg.eigh(jax.lax.stop_gradient(self.gram))
        self.spectrum = jnp.maximum(spectrum, 0)

    def __call__(
        self, x: Float[Array, "*state"], sigma: Scalar, *, condition: Any = None
    ) -> Float[Array, "*state"]:
        """Return the expected clean state, in the shape, units and dtype of `x`.

        Raises:
            ValueError: `x` is not of the members' shape, or a `condition` is given.
        """
        if condition is not None:
            raise ValueError("A closed-form prior takes no `condition`.")
        if x.shape != self.mean.shape:
            raise ValueError(
                f"`x` must have the members' shape {self.mean.shape}, got {x.shape}."
            )
        dtype = x.dtype
        shrunk, kept, rest = (part.astype(dtype) for part in self._kernel())
        anomalies, gram = self.anomalies.astype(dtype), self.gram.astype(dtype)
        noise = jnp.square(jnp.asarray(sigma, dtype))
        # With S = (kernel + sigma^2 I)^-1 and T = (total I + kept gram)^-1 it holds
        # that S Z' = Z' T: all is in the space of the members, and nothing cancels.
        total = rest + noise
        residual = (x - self.mean.astype(dtype)).ravel()
        seen = _matmul(anomalies, residual)
        solved = self._solve(total, kept, seen)
        own = jnp.diagonal(self._solve(total, kept, gram))
        spread = len(anomalies) - 1
        logits = shrunk * solved - jnp.square(shrunk) * spread * own / 2
        weights = jax.nn.softmax(logits)
        centre = shrunk * self._solve(total, kept, weights)
        share = jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1), 0)
        inside = noise * (share * kept / spread * solved + centre)
        moved = share * rest * residual + _matmul(inside, anomalies)
        return self.mean.astype(dtype) + moved.reshape(x.shape)

    def sample(self, *, key: PRNGKeyArray) -> Float[Array, "member *state"]:
        """Return one draw from the Gaussian about each member, in their order."""
        shrunk, kept, rest = (p.astype(self.anomalies.dtype) for p in self._kernel())
        first, second = jr.split(key)
        count, dtype = len(self.anomalies), self.anomalies.dtype
        mixed = jr.normal(first, (count, count), dtype) * _root(kept / (count - 1))
        mixed = mixed + shrunk * jnp.eye(count, dtype=dtype)
        white = _root(rest) * jr.normal(second, self.anomalies.shape, dtype)
        moved = _matmul(mixed, self.anomalies) + white
        return self.mean[None] + moved.reshape(count, *self.mean.shape)

    def _kernel(self):
        """Factors of the centres, of P and of the identity."""
        square = jnp.square(self.bandwidth)
        size = self.anomalies.shape[1]
        variance = (jnp.trace(self.gram) / max(size, 1)).astype(square.dtype)
        kept, rest = square * (1 - self.shrinkage), square * self.shrinkage * variance
        return _root(1 - square), kept, rest

    def _solve(self, total, kept, right):
        """Return `(total I + kept gram)^-1 right`, 0 where nothing divides.

        The eigenvectors give the value, and carry no derivative: theirs is infinite
        where eigenvalues repeat, and that of the solve is not.
        """
        dtype = right.dtype
        gram, basis = self.gram.astype(dtype), self.basis.astype(dtype)
        factor = total + kept * self.spectrum.astype(dtype)
        factor = jnp.where(factor > 0, 1 / jnp.where(factor > 0, factor, 1), 0)
        factor = factor.reshape(-1, *(1,) * (right.ndim - 1))
        return jax.lax.custom_linear_solve(
            lambda v: total * v + kept * _matmul(gram, v),
            right,
            solve=lambda _, v: _matmul(basis, factor * _matmul(basis.T, v)),
            symmetric=True,
        )


def _root(value):
    return jnp.where(value > 0, jnp.sqrt(jnp.where(value > 0, value, 1)), 0)


def _matmul(a, b):
    return jnp.matmul(a, b, precision="highest")
