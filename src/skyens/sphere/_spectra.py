"""Spectra by degree: how much of a field lies at which scale, and shared with whom."""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Complex, Float

from skyens.sphere._coefficients import largest_degree, scale_degrees
from skyens.sphere._precision import as_float
from skyens.sphere._radius import check_radius


def power_spectrum(
    coefficients: Complex[Array, "*batch l m"],
) -> Float[Array, "*batch l"]:
    """Return the sum over both signs of m of `|c_lm|^2`, by degree.

    Summed over degrees it is the integral of the squared field over the unit sphere,
    `4 pi` times its mean square; no rotation changes it. What a synthesis ignores
    (entries with `m > l`, imaginary parts at `m = 0`) counts nothing here either.

    Raises:
        ValueError: the last two axes are not equally long.
    """
    return cross_spectrum(coefficients, coefficients)


def cross_spectrum(
    first: Complex[Array, "*batch l m"], second: Complex[Array, "..."]
) -> Float[Array, "*batch l"]:
    """Return the sum over both signs of m of `first_lm conj(second_lm)`, by degree.

    Summed over degrees it is the integral of the fields' product over the unit sphere.
    It is real, as orders of both signs belong to real fields: their quadrature parts
    cancel, and no rotation changes the rest.

    Raises:
        ValueError: the coefficients differ in shape or are not square.
    """
    first, second = _check_pair(first, second)
    real, imaginary = _order_weights(first)
    co = first.real * second.real * real + first.imag * second.imag * imaginary
    return co.sum(-1)


def degree_correlation(
    first: Complex[Array, "*batch l m"], second: Complex[Array, "..."]
) -> Float[Array, "*batch l"]:
    """Return the correlation of two fields' parts of each degree, in [-1, 1].

    The cross spectrum over the root of the product of the power spectra; 0, with
    gradient 0, where either field has no power. The units and the size of the fields
    do not matter, also where their squares would underflow.

    Raises:
        ValueError: the coefficients differ in shape or are not square.
    """
    first, second = _check_pair(first, second)
    return cross_spectrum(_unit_degrees(first), _unit_degrees(second))


def coherence(
    first: Complex[Array, "*batch l m"], second: Complex[Array, "..."]
) -> Float[Array, "*batch l"]:
    """Return the squared correlation of two fields by degree, in [0, 1].

    The share of the power of either field that is linear in the other; 0 where either
    has none (see `degree_correlation`).

    Raises:
        ValueError: the coefficients differ in shape or are not square.
    """
    return degree_correlation(first, second) ** 2


def kinetic_energy_spectrum(
    vorticity: Complex[Array, "*batch l m"],
    divergence: Complex[Array, "..."],
    *,
    radius: float = 1.0,
) -> tuple[Float[Array, "*batch l"], Float[Array, "*batch l"]]:
    """Return the kinetic energy of the rotational and of the divergent wind, by degree.

    In m2 s-2 (J per kg) for coefficients in s-1 and a `radius` in m. Summed over
    degrees and parts it is the global mean of `(u^2 + v^2) / 2`.

    Source: Koshyk & Hamilton (2001), J. Atmos. Sci. 58, 329-348, in orthonormal
    coefficients.

    Raises:
        ValueError: the coefficients differ in shape or are not square, or `radius` is
            not positive or looks like kilometres.
    """
    vorticity, divergence = _check_pair(vorticity, divergence)
    check_radius(radius)
    l = np.arange(vorticity.shape[-1])
    # The velocity of a unit of vorticity. Scaling before squaring stays in range.
    speed = radius / np.sqrt(8 * math.pi * np.maximum(l * (l + 1), 1)) * (l > 0)
    speed = jnp.asarray(speed, vorticity.real.dtype)
    energy = lambda c: power_spectrum(scale_degrees(c, speed))
    return energy(vorticity), energy(divergence)


def degree_to_wavelength(
    degree: ArrayLike, *, radius: float = 1.0
) -> Float[Array, "*shape"]:
    """Return the wavelength `2 pi radius / sqrt(l (l + 1))` of a degree.

    In the units of `radius`; infinite at degree 0. Degrees need not be whole.

    Source: Jeans (1923), Proc. R. Soc. Lond. A 102, 554-574.
    """
    l = as_float(degree)
    return 2 * math.pi * radius / jnp.sqrt(l * (l + 1))


def wavelength_to_degree(
    wavelength: ArrayLike, *, radius: float = 1.0
) -> Float[Array, "*shape"]:
    """Return the degree, not rounded, that has this wavelength.

    The inverse of `degree_to_wavelength`: in the units of `radius`, and 0 for an
    infinite wavelength.
    """
    wavenumber = 2 * math.pi * radius / as_float(wavelength)
    # The root of l^2 + l = wavenumber^2 in the form that does not cancel.
    return wavenumber**2 / (0.5 + jnp.sqrt(0.25 + wavenumber**2))


def _check_pair(first, second) -> tuple[Array, Array]:
    """Return both as arrays of JAX."""
    largest_degree(first)
    if first.shape != second.shape:
        raise ValueError(
            "Both fields' coefficients must have the same shape, got "
            f"{first.shape} and {second.shape}; truncate or pad one of them."
        )
    return jnp.asarray(first), jnp.asarray(second)


def _order_weights(coefficients) -> tuple[Array, Array]:
    """How often real and imaginary parts count: twice for the orders of both signs."""
    size = coefficients.shape[-1]
    real = np.tril(np.full((size, size), 2.0))
    imaginary = real.copy()
    real[:, 0], imaginary[:, 0] = 1, 0
    spread = lambda w: jnp.broadcast_to(
        jnp.asarray(w, coefficients.real.dtype), coefficients.shape
    )
    return spread(real), spread(imaginary)


def _unit_degrees(coefficients):
    """Scale each degree to power 1, or leave it at 0."""
    real, imaginary = _order_weights(coefficients)
    parts = jnp.maximum(
        jnp.where(real > 0, jnp.abs(coefficients.real), 0),
        jnp.where(imaginary > 0, jnp.abs(coefficients.imag), 0),
    )
    largest = lax.stop_gradient(parts.max(-1, keepdims=True))
    scale = jnp.where(largest > 0, largest, 1)
    c = lax.complex(coefficients.real / scale, coefficients.imag / scale)
    power = power_spectrum(c)[..., None]
    # Double where: the square root must never see the 0 it would differentiate.
    norm = jnp.sqrt(jnp.where(power > 0, power, 1))
    unit = lambda part: jnp.where(power > 0, part / norm, 0)
    return lax.complex(unit(c.real), unit(c.imag))
