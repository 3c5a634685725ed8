"""Roots of localisations: fields whose products sum to a correlation of places."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from skyens import sphere
from skyens.assimilation._background_covariance_spectral import gaspari_cohn_spectrum


def localisation_roots(
    correlation: Float[Array | np.ndarray, "size size"], share: float = 0.99
) -> tuple[Float[Array, "mode size"], float]:
    """Return the roots of a correlation matrix, and the share of it that they explain.

    They are the leading eigenvectors, times the roots of their eigenvalues: as many as
    it takes to explain the `share` of the matrix's trace. They are then scaled point by
    point so that their squares sum to 1, as variances must not be changed. On a
    periodic line of n points the matrix is, say,
    `gaspari_cohn(jnp.minimum(d, n - d) / length)` with the distance d in points.

    It is made in NumPy, for states of up to some thousand points.

    Args:
        correlation: symmetric, of concrete values, with ones on the diagonal.
        share: of the trace that is to be explained, above 0, at most 1: all.

    Raises:
        ValueError: `share` is out of range, or the matrix is not a correlation.
    """
    if not 0 < share <= 1:
        raise ValueError(f"`share` must lie in (0, 1], got {share}.")
    matrix = np.asarray(correlation, float)
    if matrix.shape[0] != matrix.shape[1] or not np.allclose(matrix, matrix.T):
        raise ValueError("`correlation` must be a symmetric matrix.")
    if not np.allclose(np.diagonal(matrix), 1):
        raise ValueError("`correlation` must have ones on its diagonal.")
    values, vectors = np.linalg.eigh(matrix)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    explained = np.cumsum(values) / np.sum(values)
    modes = 1 + int(np.searchsorted(explained, share - 1e-12))
    modes = min(modes, len(values))
    roots = (vectors[:, :modes] * np.sqrt(values[:modes])).T
    roots = roots / np.sqrt(np.sum(roots**2, axis=0))
    dtype = jnp.asarray(correlation).dtype
    return jnp.asarray(roots, dtype), float(explained[modes - 1])


def sphere_roots(
    sht: sphere.SphericalHarmonics,
    length: float,
    share: float = 0.99,
    *,
    radius: float = 6.371e6,
) -> tuple[Float[Array, "mode latitude longitude"], float]:
    """Return roots of Gaspari-Cohn localisation on the sphere, and what they explain.

    They are the spherical harmonics of the lowest degrees, times the roots of the
    localisation's power there, on the grid of `sht`: `(degree + 1)^2` of them, scaled
    so that their squares sum to 1 at every point.

    Args:
        sht: the transform, whose `lmax` is the largest degree there may be.
        length: the localisation reaches 0 at twice this distance, in metres.
        share: of the power that is to be explained, above 0, at most 1: all degrees.
        radius: of the sphere, in metres.

    Raises:
        ValueError: `share` is out of range, `length` is not above 0, or degrees up to
            `lmax` do not explain the share.
    """
    if not 0 < share <= 1:
        raise ValueError(f"`share` must lie in (0, 1], got {share}.")
    # The share is of the whole: the power beyond lmax counts as well.
    beyond = 4 * sht.lmax + 64
    power = gaspari_cohn_spectrum(beyond, length, radius=radius) / (4 * np.pi)
    explained = np.cumsum(power)[: sht.lmax + 1]
    if share == 1:
        largest = sht.lmax
    elif explained[-1] < share:
        raise ValueError(
            f"degrees up to {sht.lmax} explain {explained[-1]:.3f} of this "
            f"localisation, less than the `share` {share}: take a larger lmax."
        )
    else:
        largest = int(np.searchsorted(explained, share))
    # The degree of each entry of the real basis, see `sphere.to_real`.
    several = np.tril_indices(sht.lmax)[0] + 1
    degree = np.concatenate([np.arange(sht.lmax + 1), several, several])
    modes = np.flatnonzero(degree <= largest)
    factor = np.sqrt(4 * np.pi * power[degree[modes]] / (2 * degree[modes] + 1))

    def root(mode):
        unit = jnp.zeros((sht.lmax + 1) ** 2).at[mode].set(1)
        return sht.synthesis(sphere.from_real(unit))

    fields = jax.lax.map(root, jnp.asarray(modes))
    fields = fields * jnp.asarray(factor, fields.dtype)[:, None, None]
    total = jnp.sqrt(jnp.sum(fields**2, axis=0, keepdims=True))
    return fields / total, float(explained[largest])
