"""Filters by degree: isotropic smoothing of spectral coefficients."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, Int

from skyens.sphere._coefficients import largest_degree, scale_degrees
from skyens.sphere._harmonics import SphericalHarmonics
from skyens.sphere._precision import as_float
from skyens.sphere._radius import check_radius


class SpectralFilter(eqx.Module):
    """A filter multiplies each degree of a field by its `response`.

    Call it on coefficients of any `lmax` and any leading axes. Settings are array
    leaves: they can be swept by `jax.vmap` and trained. Filters compose as functions
    do, and any `coefficients -> coefficients` may stand where one is asked for.
    """

    @abc.abstractmethod
    def response(self, lmax: int) -> Float[Array, " l"]:
        """Return the factors of degrees 0 to `lmax`, `(lmax + 1,)`."""

    def __call__(
        self, coefficients: Complex[Array, "*batch l m"]
    ) -> Complex[Array, "*batch l m"]:
        """Return the filtered coefficients, in their own dtype.

        Raises:
            ValueError: the last two axes are not equally long.
        """
        response = self.response(largest_degree(coefficients))
        return scale_degrees(coefficients, response)


def filter_field(
    sht: SphericalHarmonics,
    smooth: Callable[[Array], Array],
    field: Float[Array, "*batch latitude longitude"],
) -> Float[Array, "*batch latitude longitude"]:
    """Return `field` after a filter of its coefficients, on the same grid and dtype.

    What lies beyond the `lmax` of `sht` is cut off as well.

    Raises:
        ValueError: `field` does not lie on the grid of `sht`.
    """
    field = as_float(field)
    return sht.synthesis(smooth(sht.analysis(field))).astype(field.dtype)


class Truncation(SpectralFilter):
    """Keep degrees 0 to `lmax` and remove the rest, in an array of the same shape.

    `truncate` makes the array smaller instead.
    """

    lmax: Int[Array, ""]

    def __init__(self, lmax: int | Int[Array, ""]):
        """Set the last degree that stays.

        Raises:
            EquinoxRuntimeError: it is negative.
        """
        lmax = jnp.asarray(lmax)
        self.lmax = eqx.error_if(lmax, lmax < 0, "`lmax` must not be negative.")

    def response(self, lmax: int) -> Float[Array, " l"]:
        """Return 1 up to the last degree that stays and 0 beyond."""
        degrees = jnp.arange(lmax + 1, dtype=self.lmax.dtype)
        return (degrees <= self.lmax).astype(jnp.result_type(float))


class GaussianFilter(SpectralFilter):
    """Smooth with the heat kernel: the Gaussian of the sphere.

    `exp(-s^2 l (l + 1) / 2)` with the length scale `s`: where it is small, the
    convolution with `exp(-d^2 / (2 s^2))` in the distance `d`, normalised, in the
    tangent plane. Scales add in squares: `s1`, then `s2`, is `sqrt(s1^2 + s2^2)`.

    Source: Sardeshmukh & Hoskins (1984), Mon. Wea. Rev. 112, 2524-2529, order 1.
    """

    length_scale: Float[Array, ""]

    def __init__(self, length_scale: float | Float[Array, ""], *, radius: float = 1.0):
        """Set the length scale in the units of `radius` (by default, radians of arc).

        Raises:
            EquinoxRuntimeError: it is negative.
        """
        s = jnp.asarray(length_scale, float) / radius
        message = "`length_scale` must not be negative."
        self.length_scale = eqx.error_if(s, s < 0, message)

    def response(self, lmax: int) -> Float[Array, " l"]:
        """Return `exp(-s^2 l (l + 1) / 2)`."""
        l = _degrees(lmax)
        return jnp.exp(-0.5 * self.length_scale**2 * (l * (l + 1)))


class ExponentialFilter(SpectralFilter):
    """Damp the last degrees steeply and leave the first ones alone.

    `exp(-strength x^order)` with `x = (l / lmax - cutoff) / (1 - cutoff)` above the
    cutoff, 1 below, where `lmax` is the last degree of what is filtered. Spectral
    models apply it each step against the pile-up of energy there.

    Source: Hou & Li (2007), J. Comput. Phys. 226, 379-397 (strength and order 36).
    """

    order: Float[Array, ""]
    strength: Float[Array, ""]
    cutoff: Float[Array, ""]

    def __init__(
        self,
        order: float | Float[Array, ""] = 36.0,
        strength: float | Float[Array, ""] = 36.0,
        cutoff: float | Float[Array, ""] = 0.0,
    ):
        """Set the filter; the default removes the last degree to float64's rounding.

        Args:
            order: the power of the degree; the higher, the later and steeper.
            strength: the last degree is multiplied by `exp(-strength)`.
            cutoff: the fraction of `lmax` below which nothing changes, in [0, 1).

        Raises:
            EquinoxRuntimeError: `order` is not positive, `strength` is negative or
                `cutoff` lies outside [0, 1).
        """
        order, strength, cutoff = (
            jnp.asarray(x, float) for x in (order, strength, cutoff)
        )
        self.order = eqx.error_if(order, order <= 0, "`order` must be positive.")
        self.strength = eqx.error_if(
            strength, strength < 0, "`strength` must not be negative."
        )
        self.cutoff = eqx.error_if(
            cutoff, (cutoff < 0) | (cutoff >= 1), "`cutoff` must lie in [0, 1)."
        )

    def response(self, lmax: int) -> Float[Array, " l"]:
        """Return the factors, relative to the last degree `lmax`."""
        x = (_degrees(lmax) / max(lmax, 1) - self.cutoff) / (1 - self.cutoff)
        # Double where: a power of 0 has no finite gradient below order 1.
        power = jnp.where(x > 0, x, 1) ** self.order
        return jnp.where(x > 0, jnp.exp(-self.strength * power), 1)


class Hyperdiffusion(SpectralFilter):
    """Advance `dc/dt = -nu (-lap)^order c` by `time_step`, exactly.

    `exp(-time_step / time_scale * (l (l + 1) / (L (L + 1)))^order)`: degree `L` decays
    with the e-folding time `time_scale`, whatever the `lmax` of what is filtered.
    Order 1 is diffusion, 2 the usual `lap^2`.

    Source: Sardeshmukh & Hoskins (1984), Mon. Wea. Rev. 112, 2524-2529.
    """

    time_step: Float[Array, ""]
    time_scale: Float[Array, ""]
    order: Float[Array, ""]
    degree: int = eqx.field(static=True)

    def __init__(
        self,
        time_step: float | Float[Array, ""],
        time_scale: float | Float[Array, ""],
        *,
        degree: int,
        order: float | Float[Array, ""] = 2.0,
    ):
        """Set the decay by its time scale at one degree, as a rule the last.

        Args:
            time_step: the time one call advances, in the units of `time_scale`.
            time_scale: the e-folding time of `degree`.
            degree: that degree, at least 1.
            order: of the Laplacian's power.

        Raises:
            ValueError: `degree` is below 1.
            EquinoxRuntimeError: `time_step` is negative, or `time_scale` or `order` is
                not positive.
        """
        if degree < 1:
            raise ValueError(
                f"`degree` must be at least 1, as the mean never decays, got {degree}."
            )
        step, scale, order = (
            jnp.asarray(x, float) for x in (time_step, time_scale, order)
        )
        self.degree = degree
        self.time_step = eqx.error_if(
            step, step < 0, "`time_step` must not be negative."
        )
        self.time_scale = eqx.error_if(
            scale, scale <= 0, "`time_scale` must be positive."
        )
        self.order = eqx.error_if(order, order <= 0, "`order` must be positive.")

    @classmethod
    def from_coefficient(
        cls,
        time_step: float | Float[Array, ""],
        coefficient: float,
        *,
        radius: float,
        order: float = 2.0,
    ) -> "Hyperdiffusion":
        """Return the filter of diffusivity `nu = coefficient`.

        Args:
            time_step: the time one call advances, in s.
            coefficient: `nu`, in m^(2 order) s-1.
            radius: of the sphere, in m.
            order: of the Laplacian's power.

        Raises:
            ValueError: `coefficient` or `radius` is not positive, or `radius` looks
                like kilometres.
        """
        check_radius(radius)
        if coefficient <= 0:
            raise ValueError(f"`coefficient` must be positive, got {coefficient}.")
        # Set at the degree that decays in about a second: any other one's rate would
        # leave float32's range at high orders.
        eigenvalue = radius**2 * coefficient ** (-1 / order)
        degree = max(1, round(eigenvalue**0.5))
        time_scale = (eigenvalue / (degree * (degree + 1))) ** order
        return cls(time_step, time_scale, degree=degree, order=order)

    def response(self, lmax: int) -> Float[Array, " l"]:
        """Return the factors of one `time_step`."""
        l, scale = _degrees(lmax), float(self.degree * (self.degree + 1))
        # Double where, as 0 to a power has no gradient in that power.
        ratio = jnp.where(l > 0, l * (l + 1), 1) / scale
        decay = self.time_step / self.time_scale * ratio**self.order
        return jnp.where(l > 0, jnp.exp(-decay), 1)


def _degrees(lmax: int) -> Float[Array, " l"]:
    return jnp.arange(lmax + 1, dtype=jnp.result_type(float))
