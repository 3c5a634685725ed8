"""Derivatives of fields for candidate terms, on periodic domains and on the sphere."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from skyens.sparse._library import Library, Term
from skyens.sphere import SphericalHarmonics


class SpectralDerivative(eqx.Module):
    """Derivatives along one periodic axis, exact for every wave but the shortest.

    The shortest wave of an even number of points has no odd derivative there.
    """

    length: float = eqx.field(static=True)
    axis: int = eqx.field(static=True)

    def __init__(self, length: float, *, axis: int = -1):
        """Set the domain's length, in m or as the coordinate is measured, and the axis.

        Raises:
            ValueError: `length` is not positive and finite.
        """
        if not 0 < length < float("inf"):
            raise ValueError(f"`length` must be positive and finite, got {length}.")
        self.length, self.axis = float(length), axis

    def __call__(self, field: Float[Array, "*shape"], order: int = 1):
        """Return the derivative of this order, in the field's units per length^order.

        Raises:
            ValueError: `order` is negative, or the field has not this axis.
        """
        if order < 0:
            raise ValueError(f"`order` must not be negative, got {order}.")
        if not -field.ndim <= self.axis < field.ndim:
            raise ValueError(
                f"the field must have an axis {self.axis}, its shape is {field.shape}."
            )
        if order == 0:
            return field
        size = field.shape[self.axis]
        wave = 2 * np.pi / self.length * np.arange(size // 2 + 1)
        factor = (1j * wave) ** order
        if size % 2 == 0 and order % 2:
            factor[-1] = 0
        coefficients = jnp.fft.rfft(jnp.moveaxis(field, self.axis, -1))
        shape = (1,) * (field.ndim - 1) + factor.shape
        factor = jnp.asarray(factor, coefficients.dtype).reshape(shape)
        slope = jnp.fft.irfft(coefficients * factor, size).astype(field.dtype)
        return jnp.moveaxis(slope, -1, self.axis)


def sphere_jacobian(
    sht: SphericalHarmonics,
    a: Float[Array, "latitude longitude"],
    b: Float[Array, "latitude longitude"],
    *,
    radius: float = 1.0,
) -> Float[Array, "latitude longitude"]:
    """Return the Jacobian `a_x b_y - a_y b_x` on a sphere of this radius.

    With a streamfunction `a` it is the advection of `b` by the flow: the wind is
    `(-a_y, a_x)`.
    """
    a_x, a_y = sht.gradient(a, radius=radius)
    b_x, b_y = sht.gradient(b, radius=radius)
    return a_x * b_y - a_y * b_x


def sphere_terms(
    sht: SphericalHarmonics, *, radius: float = 1.0, variable: str = "u"
) -> Library:
    """Return candidate terms of one field on the sphere, by spectral derivatives.

    They are the field, its Laplacian and bi-Laplacian (drag and diffusions), and its
    eastward and northward derivative (a mean wind, and beta for a streamfunction).
    """
    laplacian = lambda field: sht.laplacian(field, radius=radius)
    return Library(
        [
            Term(variable, lambda field: field, variable),
            Term(f"lap {variable}", laplacian, rf"\nabla^2 {variable}"),
            Term(
                f"lap^2 {variable}",
                lambda field: laplacian(laplacian(field)),
                rf"\nabla^4 {variable}",
            ),
            Term(
                f"{variable}_x",
                lambda field: sht.gradient(field, radius=radius)[0],
                f"{variable}_{{x}}",
            ),
            Term(
                f"{variable}_y",
                lambda field: sht.gradient(field, radius=radius)[1],
                f"{variable}_{{y}}",
            ),
        ]
    )
