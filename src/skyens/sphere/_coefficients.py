"""Arrays of spectral coefficients: their size, other sizes, and the real basis."""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float


def largest_degree(coefficients) -> int:
    """Return the `lmax` of `coefficients`, from their last two axes.

    Raises:
        ValueError: these are not equally long.
    """
    if coefficients.ndim < 2 or coefficients.shape[-2] != coefficients.shape[-1]:
        raise ValueError(
            "`coefficients` must end in two axes (l, m) of lmax + 1 entries each, got "
            f"shape {coefficients.shape}."
        )
    return coefficients.shape[-1] - 1


def truncate(
    coefficients: Complex[Array, "*batch l m"], lmax: int
) -> Complex[Array, "*batch l_kept m_kept"]:
    """Return the coefficients of degrees 0 to `lmax`, as the smaller array.

    Raises:
        ValueError: there are fewer degrees than that.
    """
    old = largest_degree(coefficients)
    if not 0 <= lmax <= old:
        raise ValueError(
            f"`lmax` must lie between 0 and {old}, the largest degree there is, got "
            f"{lmax}; use `pad` to go to more degrees."
        )
    return coefficients[..., : lmax + 1, : lmax + 1]


def pad(
    coefficients: Complex[Array, "*batch l m"], lmax: int
) -> Complex[Array, "*batch l_padded m_padded"]:
    """Return the same field's coefficients to `lmax`, zero beyond the old degrees.

    Raises:
        ValueError: there are more degrees already.
    """
    if lmax < (old := largest_degree(coefficients)):
        raise ValueError(
            f"`lmax` must be at least {old}, the largest degree there is, got {lmax}; "
            "use `truncate` to go to fewer degrees."
        )
    more = (0, lmax - old)
    return jnp.pad(coefficients, [(0, 0)] * (coefficients.ndim - 2) + [more, more])


def scale_degrees(
    coefficients: Complex[Array, "*batch l m"], factors: Float[Array, " degree"]
) -> Complex[Array, "*batch l m"]:
    """Multiply each degree by its factor: a convolution with an isotropic kernel.

    The result keeps the coefficients' dtype.

    Raises:
        ValueError: there is another number of factors than of degrees.
    """
    if factors.shape != (largest_degree(coefficients) + 1,):
        raise ValueError(
            "`factors` must have one entry for each degree, "
            f"{largest_degree(coefficients) + 1}, got shape {factors.shape}."
        )
    factors = factors.astype(coefficients.real.dtype)
    factors = factors.reshape((1,) * (coefficients.ndim - 2) + (-1, 1))
    # Part by part: real times complex, without the zeros of a complex factor.
    return lax.complex(coefficients.real * factors, coefficients.imag * factors)


def to_real(
    coefficients: Complex[Array, "*batch l m"],
) -> Float[Array, "*batch basis"]:
    """Return the coordinates of a field in the real orthonormal basis.

    One vector of `(lmax + 1)^2` numbers whose Euclidean norm is the field's norm on
    the unit sphere: the `m = 0` coefficients, then `sqrt(2)` times the real parts and
    `-sqrt(2)` times the imaginary parts of the others, by degree and order.

    Raises:
        ValueError: the last two axes are not equally long.
    """
    l, m = degrees_and_orders(largest_degree(coefficients))
    zonal = coefficients[..., :, 0].real
    rest = coefficients[..., l, m] * math.sqrt(2)
    return jnp.concatenate([zonal, rest.real, -rest.imag], axis=-1)


def from_real(
    vector: Float[Array, "*batch basis"],
) -> Complex[Array, "*batch l m"]:
    """Return the coefficients of the field with these real coordinates (`to_real`).

    Raises:
        ValueError: the length is no `(lmax + 1)^2`.
    """
    size = round(vector.shape[-1] ** 0.5)
    if size**2 != vector.shape[-1]:
        raise ValueError(
            "`vector` must have (lmax + 1)^2 entries on its last axis, got "
            f"{vector.shape[-1]}."
        )
    l, m = degrees_and_orders(size - 1)
    # Gathers, not scatters: entry `size^2` is the zero of all other places.
    real, imaginary = np.full((2, size, size), size**2)
    real[:, 0] = np.arange(size)
    real[l, m] = size + np.arange(l.size)
    imaginary[l, m] = size + l.size + np.arange(l.size)
    half = math.sqrt(0.5)
    vector = jnp.concatenate(
        [
            vector[..., :size],
            vector[..., size:] * half,
            jnp.zeros_like(vector[..., :1]),
        ],
        axis=-1,
    )
    return lax.complex(vector[..., real], -vector[..., imaginary])


def degrees_and_orders(lmax: int) -> tuple[np.ndarray, np.ndarray]:
    """Degrees and orders of the coefficients with `1 <= m <= l <= lmax`."""
    l, m = np.tril_indices(lmax)
    return l + 1, m + 1
