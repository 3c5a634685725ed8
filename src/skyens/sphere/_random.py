"""Isotropic Gaussian random fields on the sphere, and the real basis they live in."""

import math

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float, Key

from skyens.sphere._harmonics import SphericalHarmonics


def to_real(
    coefficients: Complex[Array, "*batch l m"],
) -> Float[Array, "*batch basis"]:
    """Return the coordinates of a field in the real orthonormal basis.

    One vector of `(lmax + 1)^2` numbers whose Euclidean norm is the field's norm on
    the unit sphere: the `m = 0` coefficients, then `sqrt(2)` times the real parts and
    `-sqrt(2)` times the imaginary parts of the others, by degree and order.
    """
    size = coefficients.shape[-1]
    l, m = _pairs(size)
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
    l, m = _pairs(size)
    zonal, real, imaginary = jnp.split(vector, [size, size + l.size], axis=-1)
    half = math.sqrt(0.5)
    zonal = lax.complex(zonal, jnp.zeros_like(zonal))
    table = jnp.zeros((*vector.shape[:-1], size, size), zonal.dtype)
    table = table.at[..., :, 0].set(zonal)
    return table.at[..., l, m].set(lax.complex(real * half, -imaginary * half))


class GaussianRandomField(eqx.Module):
    """A Gaussian random field whose law no rotation changes.

    `power` is the expected `power_spectrum` of a sample, so the variance is
    `sum(power) / (4 pi)` at every point, the poles included.

    Source: Lang & Schwab (2015), Ann. Appl. Probab. 25, 3047-3094.
    """

    sht: SphericalHarmonics
    power: Float[Array, " l"] = eqx.field(metadata={"trainable": False})

    def __init__(self, sht: SphericalHarmonics, power: Float[Array, " l"]):
        """Set the transform and the expected power by degree, `(lmax + 1,)`.

        Raises:
            ValueError: `power` does not have one entry per degree.
            EquinoxRuntimeError: `power` has a negative entry.
        """
        power = jnp.asarray(power)
        if power.shape != (sht.lmax + 1,):
            raise ValueError(
                f"`power` must have one entry for each degree, {sht.lmax + 1}, got "
                f"shape {power.shape}."
            )
        self.sht = sht
        self.power = eqx.error_if(power, power < 0, "`power` must not be negative.")

    def coefficients(self, key: Key[Array, ""]) -> Complex[Array, "l m"]:
        """Return the coefficients of one sample, in the precision of `power`."""
        size = self.sht.lmax + 1
        degree = np.arange(size)
        # m = 0 is real with the full variance of a degree's every real coordinate;
        # halving it, as some codes do, makes the poles quieter than the equator.
        variance = self.power / jnp.asarray(2 * degree + 1, self.power.dtype)
        l, _ = _pairs(size)
        each = variance[np.concatenate([degree, l, l])]
        std = jnp.where(each > 0, jnp.sqrt(jnp.where(each > 0, each, 1)), 0)
        return from_real(std * jr.normal(key, each.shape, each.dtype))

    def sample(self, key: Key[Array, ""]) -> Float[Array, "latitude longitude"]:
        """Return one sample on the grid, in the precision of `power`."""
        return self.sht.synthesis(self.coefficients(key))


class AutoregressiveField(eqx.Module):
    """Isotropic noise with a memory: a first-order autoregressive process in time.

    Its law at any one time is that of `field`; between times one step apart it
    correlates as `correlation`. The state is spectral coefficients.
    """

    field: GaussianRandomField
    correlation: Float[Array, ""] = eqx.field(metadata={"trainable": False})

    def __init__(
        self, field: GaussianRandomField, correlation: float | Float[Array, ""]
    ):
        """Set the law and the correlation from one step to the next.

        A memory of `tau` over steps of `dt` has correlation `exp(-dt / tau)`.

        Raises:
            EquinoxRuntimeError: `correlation` lies outside [0, 1].
        """
        value = jnp.asarray(correlation, field.power.dtype)
        outside = (value < 0) | (value > 1)
        message = "`correlation` must lie in [0, 1]."
        self.field = field
        self.correlation = eqx.error_if(value, outside, message)

    def start(self, key: Key[Array, ""]) -> Complex[Array, "l m"]:
        """Return coefficients drawn from the stationary law."""
        return self.field.coefficients(key)

    def __call__(
        self, coefficients: Complex[Array, "l m"], *, key: Key[Array, ""]
    ) -> Complex[Array, "l m"]:
        """Return the coefficients one step later."""
        fresh = self.field.coefficients(key)
        kept = self.correlation.astype(coefficients.dtype)
        return kept * coefficients + jnp.sqrt(1 - kept**2) * fresh


def matern_spectrum(
    lmax: int, length_scale: float, *, smoothness: float = 1.5, variance: float = 1.0
) -> np.ndarray:
    """Return the power by degree, `(lmax + 1,)` float64, of a Matern-like field.

    Proportional to `(2 l + 1) (2 nu / s^2 + l (l + 1))^(-nu - 1)` with `s` the
    `length_scale` in radians of arc, normalised to the given pointwise `variance`;
    degree 0 is left out, so that samples have zero mean.

    Source: Whittle-Matern fields as in Lindgren, Rue & Lindstrom (2011), J. R.
    Stat. Soc. B 73, 423-498, on the unit sphere.

    Raises:
        ValueError: `length_scale` or `smoothness` is not positive.
    """
    if length_scale <= 0 or smoothness <= 0:
        raise ValueError(
            "`length_scale` (radians) and `smoothness` must be positive, got "
            f"{length_scale} and {smoothness}."
        )
    l = np.arange(lmax + 1)
    decay = (2 * smoothness / length_scale**2 + l * (l + 1)) ** (-smoothness - 1)
    return _normalise((2 * l + 1) * decay, variance)


def squared_exponential_spectrum(
    lmax: int, length_scale: float, *, variance: float = 1.0
) -> np.ndarray:
    """Return the power by degree, `(lmax + 1,)` float64, of a very smooth field.

    Proportional to `(2 l + 1) exp(-s^2 l (l + 1) / 2)`, the heat kernel: near
    `exp(-d^2 / (2 s^2))` in the distance `d` where `length_scale` `s` (radians of arc)
    is small. Degree 0 is left out.

    Raises:
        ValueError: `length_scale` is not positive.
    """
    if length_scale <= 0:
        raise ValueError(f"`length_scale` (radians) must be positive: {length_scale}.")
    l = np.arange(lmax + 1)
    return _normalise(
        (2 * l + 1) * np.exp(-0.5 * length_scale**2 * l * (l + 1)), variance
    )


def _normalise(power: np.ndarray, variance: float) -> np.ndarray:
    power[0] = 0
    return power * (4 * np.pi * variance / power.sum())


def _pairs(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Degrees and orders of the coefficients with `1 <= m <= l < size`."""
    l, m = np.tril_indices(size - 1)
    return l + 1, m + 1
