"""Isotropic Gaussian random fields on the sphere, from any spectrum."""

import math

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float, Key

from skyens.sphere._coefficients import degrees_and_orders, from_real
from skyens.sphere._harmonics import SphericalHarmonics


class GaussianRandomField(eqx.Module):
    """A Gaussian random field whose law no rotation changes.

    `power` is the expected `power_spectrum` of a sample, so the variance is
    `sum(power) / (4 pi)` at every point, the poles included. Rows of `power` make a
    field of several independent channels.

    Source: Lang & Schwab (2015), Ann. Appl. Probab. 25, 3047-3094.
    """

    sht: SphericalHarmonics
    power: Float[Array, "*channel l"] = eqx.field(metadata={"trainable": False})

    def __init__(self, sht: SphericalHarmonics, power: Float[Array, "*channel l"]):
        """Set the transform and the expected power by degree, `(..., lmax + 1)`.

        Raises:
            ValueError: `power` does not have one entry per degree.
            EquinoxRuntimeError: `power` has a negative entry.
        """
        power = jnp.asarray(power)
        if power.shape[-1:] != (sht.lmax + 1,):
            raise ValueError(
                f"`power` must have one entry for each degree, {sht.lmax + 1}, on its "
                f"last axis, got shape {power.shape}."
            )
        self.sht = sht
        self.power = eqx.error_if(power, power < 0, "`power` must not be negative.")

    def coefficients(
        self, key: Key[Array, ""], shape: tuple[int, ...] = ()
    ) -> Complex[Array, "*shape_and_channel l m"]:
        """Return the coefficients of one sample, in the precision of `power`.

        A `shape` draws that many independent ones at once, on leading axes.
        """
        degree = np.arange(self.sht.lmax + 1)
        # m = 0 is real with the full variance of a degree's every real coordinate;
        # halving it, as some codes do, makes the poles quieter than the equator.
        l, _ = degrees_and_orders(self.sht.lmax)
        each = (self.power / _like(2 * degree + 1, self.power))[
            ..., np.concatenate([degree, l, l])
        ]
        std = jnp.where(each > 0, jnp.sqrt(jnp.where(each > 0, each, 1)), 0)
        normal = jr.normal(key, (*shape, *each.shape), each.dtype)
        return from_real(jnp.broadcast_to(std, normal.shape) * normal)

    def sample(
        self, key: Key[Array, ""], shape: tuple[int, ...] = ()
    ) -> Float[Array, "*shape_and_channel latitude longitude"]:
        """Return one sample on the grid, in the precision of `power`.

        A `shape` draws that many independent ones in one transform.
        """
        return self.sht.synthesis(self.coefficients(key, shape))

    def covariance(
        self, distance: Float[Array, "*points"]
    ) -> Float[Array, "*channel_and_points"]:
        """Return the covariance of the values at two points, by their distance.

        `sum_l power_l / (4 pi) P_l(cos(distance))`; see `great_circle_distance`.

        Args:
            distance: angle between the points in radians.
        """
        cosine = jnp.cos(distance)
        lead = (1,) * cosine.ndim
        weight = jnp.moveaxis(self.power, -1, 0).astype(distance.dtype) / (4 * math.pi)
        weight = weight.reshape(weight.shape + lead)

        def add_degree(carry, degree_and_weight):
            total, before, now = carry
            l, w = degree_and_weight
            after = ((2 * l + 1) * cosine * now - l * before) / (l + 1)
            channels = (1,) * (w.ndim - now.ndim)
            return (total + w * now.reshape(channels + now.shape), now, after), None

        degree = jnp.arange(self.sht.lmax + 1, dtype=distance.dtype)
        shape = (*self.power.shape[:-1], *distance.shape)
        start = (
            jnp.zeros(shape, distance.dtype),
            jnp.zeros_like(cosine),
            jnp.ones_like(cosine),
        )
        (total, _, _), _ = lax.scan(add_degree, start, (degree, weight))
        return total


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
        ValueError: `length_scale` or `smoothness` is not positive, `variance` is
            negative or `lmax` below 1.
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
        ValueError: `length_scale` is not positive, `variance` is negative or `lmax`
            below 1.
    """
    if length_scale <= 0:
        raise ValueError(f"`length_scale` (radians) must be positive: {length_scale}.")
    l = np.arange(lmax + 1)
    # Relative to degree 1, so that broad fields do not underflow altogether.
    above = np.maximum(l * (l + 1) - 2, 0)
    return _normalise((2 * l + 1) * np.exp(-0.5 * length_scale**2 * above), variance)


def power_law_spectrum(
    lmax: int, exponent: float, *, variance: float = 1.0
) -> np.ndarray:
    """Return the power by degree, `(lmax + 1,)` float64, of a scale-free field.

    Proportional to `l^-exponent` from degree 1, so that samples have zero mean; 3 is
    the slope of kinetic energy at large scales of the atmosphere, 5/3 of the mesoscale
    (Nastrom & Gage 1985, J. Atmos. Sci. 42, 950-960).

    Raises:
        ValueError: `variance` is negative or `lmax` below 1.
    """
    l = np.arange(lmax + 1)
    return _normalise(np.maximum(l, 1.0) ** -exponent, variance)


def _normalise(power: np.ndarray, variance: float) -> np.ndarray:
    """Scale to the pointwise `variance`, without degree 0."""
    if power.size < 2 or variance < 0:
        raise ValueError(
            "`lmax` must be at least 1, as degree 0 is left out, and `variance` not "
            f"negative, got {power.size - 1} and {variance}."
        )
    power[0] = 0
    return power * (4 * np.pi * variance / power.sum())


def _like(values: np.ndarray, power: Array) -> Array:
    """`values` in the dtype of `power`, along its last axis."""
    return jnp.asarray(values, power.dtype).reshape((1,) * (power.ndim - 1) + (-1,))
