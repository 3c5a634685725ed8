"""Random fields with a memory: autoregressive processes in spectral space."""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Key

from skyens.sphere._harmonics import SphericalHarmonics
from skyens.sphere._random import GaussianRandomField, squared_exponential_spectrum


class AutoregressiveField(eqx.Module):
    """Isotropic noise with a memory: a first-order autoregressive process in time.

    Its law at any one time is that of `field`; between times one step apart it
    correlates as `correlation`. The state is spectral coefficients, of several
    independent channels where `field` has some; `field.sht.synthesis` shows it on the
    grid.
    """

    field: GaussianRandomField
    correlation: Float[Array, "*channel"] = eqx.field(metadata={"trainable": False})

    def __init__(
        self, field: GaussianRandomField, correlation: float | Float[Array, "*channel"]
    ):
        """Set the law and the correlation from one step to the next.

        A memory of `tau` over steps of `dt` has correlation `exp(-dt / tau)`.

        Raises:
            ValueError: `correlation` is neither one number nor one for each channel.
            EquinoxRuntimeError: `correlation` lies outside [0, 1].
        """
        value = jnp.asarray(correlation, field.power.dtype)
        if value.ndim and value.shape != field.power.shape[:-1]:
            raise ValueError(
                "`correlation` must be one number or one for each channel of the "
                f"field, {field.power.shape[:-1]}, got shape {value.shape}."
            )
        outside = (value < 0) | (value > 1)
        message = "`correlation` must lie in [0, 1]."
        self.field = field
        self.correlation = eqx.error_if(value, outside, message)

    def start(self, key: Key[Array, ""]) -> Complex[Array, "*channel l m"]:
        """Return coefficients drawn from the stationary law."""
        return self.field.coefficients(key)

    def __call__(
        self, coefficients: Complex[Array, "*channel l m"], *, key: Key[Array, ""]
    ) -> Complex[Array, "*channel l m"]:
        """Return the coefficients one step later."""
        fresh = self.field.coefficients(key)
        kept = self.correlation
        lost = 1 - kept**2
        # Double where: the square root must never see the 0 it would differentiate.
        new = jnp.where(lost > 0, jnp.sqrt(jnp.where(lost > 0, lost, 1)), 0)
        spread = lambda x: x.astype(coefficients.dtype).reshape(
            x.shape + (1,) * (coefficients.ndim - x.ndim)
        )
        return spread(kept) * coefficients + spread(new) * fresh.astype(
            coefficients.dtype
        )


def multiscale_noise(
    sht: SphericalHarmonics,
    *,
    length_scales: Sequence[float] | None = None,
    decay: float | Sequence[float] = 1.0,
    std: float | Sequence[float] = 1.0,
) -> AutoregressiveField:
    """Return the noise of FourCastNet 3: one channel for each of several scales.

    Each channel has a heat-kernel spectrum, `(2 l + 1) exp(-kT l (l + 1))` from degree
    1, with `kT = length_scale^2 / 2`, and correlates as `exp(-decay)` from one step to
    the next: an Ornstein-Uhlenbeck process seen at equal steps. It starts in its
    stationary law, where each channel has the variance `std^2` everywhere, the poles
    included. By default there are eight channels, from 50 km to 6,400 km on the Earth
    by factors of 2 (`kT` from 3.08e-5 to 0.505 by factors of 4).

    Source: Bonev et al. (2025), arXiv:2507.12144, after Palmer et al. (2009), ECMWF
    Technical Memorandum 598, section 8.1; here the orders m = 0 have their full
    variance, without which the noise would not be isotropic.

    Args:
        sht: the transform of the grid, with the `lmax` of the noise.
        length_scales: of the channels, in radians of arc.
        decay: length of a step over the memory, `dt / tau`; one number, or one for
            each channel.
        std: standard deviation at a point; one number, or one for each channel.

    Raises:
        ValueError: a length scale is not positive, a decay or standard deviation is
            negative, or there is another number of them than of channels.
    """
    scales = np.asarray(_SCALES if length_scales is None else length_scales, float)
    rates = _per_channel("decay", decay, scales.size)
    sizes = _per_channel("std", std, scales.size)
    spectra = [
        squared_exponential_spectrum(sht.lmax, scale, variance=size**2)
        for scale, size in zip(scales, sizes, strict=True)
    ]
    dtype = jnp.result_type(float)
    field = GaussianRandomField(sht, jnp.asarray(np.stack(spectra), dtype))
    return AutoregressiveField(field, jnp.asarray(np.exp(-rates), dtype))


# 50 km to 6,400 km over the radius 6,370 km.
_SCALES = 50 / 6370 * 2.0 ** np.arange(8)


def _per_channel(name: str, values, channels: int) -> np.ndarray:
    values = np.asarray(values, float)
    if values.shape not in [(), (channels,)] or np.any(values < 0):
        raise ValueError(
            f"`{name}` must be one number, or one for each of the {channels} channels, "
            f"and not negative, got {values}."
        )
    return np.broadcast_to(values, (channels,))
