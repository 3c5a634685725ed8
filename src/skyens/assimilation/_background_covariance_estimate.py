"""Estimating background covariances from ensembles and from forecast differences."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Inexact, PyTree

from skyens import sphere
from skyens.assimilation._background_covariance import (
    DenseCovariance,
    DiagonalCovariance,
    precision,
)
from skyens.assimilation._background_covariance_spectral import (
    SpectralCovariance,
    degree_covariances,
)
from skyens.assimilation._ensemble import centre, matmul
from skyens.assimilation._inflation import ensemble_spread


def forecast_differences(
    longer: PyTree[Array], shorter: PyTree[Array], *, scale: float = 0.5
) -> PyTree[Array]:
    """Return what stands for background errors: differences of forecasts (NMC).

    Two forecasts from different starts (48 and 24 hours ahead, say) for the same time
    differ by errors like those of a background. If these are independent and alike the
    covariance of differences is twice that of errors, so `scale` is a half.

    Args:
        longer: forecasts of the longer lead, leaves `(time, ...)`, and
        shorter: of the shorter lead, for the same times.
        scale: of the covariance; smaller where a background is shorter still.

    Raises:
        ValueError: the shapes differ, or `scale` is not above 0.

    Source: Parrish & Derber (1992), Mon. Wea. Rev. 120, 1747-1763.
    """
    if not scale > 0:
        raise ValueError(f"`scale` must be above 0, got {scale}.")

    def difference(a: Inexact[Array, "..."], b: Inexact[Array, "..."]):
        if a.shape != b.shape:
            raise ValueError(
                f"`longer` of shape {a.shape} does not fit `shorter` of {b.shape}."
            )
        return scale**0.5 * (a - b)

    return jax.tree.map(difference, longer, shorter)


def estimate_dense(samples: PyTree[Array]) -> DenseCovariance:
    """Return the unbiased sample covariance, a matrix, for small states.

    `samples` have a leading member axis; their mean is taken out.
    """
    anomalies = jax.vmap(lambda state: ravel_pytree(state)[0])(_anomalies(samples))
    return DenseCovariance(matmul(anomalies.T, anomalies) / (len(anomalies) - 1))


def estimate_diagonal(samples: PyTree[Array]) -> DiagonalCovariance:
    """Return the covariance of independent errors with the samples' own spread."""
    return DiagonalCovariance(jax.tree.map(ensemble_spread, samples))


def estimate_spectral(
    sht: sphere.SphericalHarmonics,
    samples: PyTree[Array],
    *,
    std: PyTree[Any] | None = None,
) -> SpectralCovariance:
    """Return the isotropic covariance with the samples' spectra, channel by channel.

    Leaves of `samples` are `(member, ..., latitude, longitude)`. With a map `std` of
    standard deviations (`ensemble_spread` of enough samples, smoothed), spectra and
    correlations are those of `samples / std`, normalised to a variance of 1, and the
    errors keep the map's size. It is one number, or arrays of a state above 0.
    """
    if std is None:
        return SpectralCovariance(sht, degree_covariances(sht, samples))
    if jax.tree_util.all_leaves([std]):
        std = jax.tree.map(lambda _: jnp.asarray(std), samples)
    divide = lambda leaf, std: (
        leaf / jnp.broadcast_to(std.astype(leaf.dtype), leaf.shape[1:])[None]
    )
    power = degree_covariances(sht, jax.tree.map(divide, samples, std))
    variance = jnp.diagonal(jnp.sum(power, axis=0)) / (4 * jnp.pi)
    scale = jnp.where(variance > 0, jnp.where(variance > 0, variance, 1) ** -0.5, 0)
    power = power * scale[None, :, None] * scale[None, None, :]
    return SpectralCovariance(sht, power, std)


def _anomalies(samples):
    dtype = precision(samples)
    return jax.tree.map(lambda leaf: centre(leaf.astype(dtype))[1], samples)
