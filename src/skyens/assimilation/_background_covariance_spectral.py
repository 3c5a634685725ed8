"""Spectral background covariances on the sphere: isotropic, one matrix per degree."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree

from skyens import sphere
from skyens.assimilation._background_covariance import precision, scaled
from skyens.assimilation._background_covariance_root import symmetric_root
from skyens.assimilation._ensemble import centre
from skyens.assimilation._localisation import gaspari_cohn


class SpectralCovariance(eqx.Module):
    """Background errors whose law no rotation of the sphere changes, but for `std`.

    The leaves of a state end in (latitude, longitude); the axes before, of one leaf
    after the other, are its channels (variables and levels). In spectral space errors
    of different harmonics are independent, and those of one degree l have the same
    covariance between channels at every order: `power[l]` over `2 l + 1`. So each
    channel has its own length scales, and each pair its own correlation at every scale
    (the balance of mass and wind, the coupling of levels).

    The control variables are `(channel, (lmax + 1)^2)` in the real orthonormal basis.

    Source: Courtier et al. (1998), Quart. J. Roy. Meteor. Soc. 124, 1783-1807; Derber &
    Bouttier (1999), Tellus 51A, 195-221.
    """

    sht: sphere.SphericalHarmonics
    factor: Float[Array, "l channel channel"]
    std: PyTree[Array] | None

    def __init__(
        self,
        sht: sphere.SphericalHarmonics,
        power: Float[Array | np.ndarray, "l channel channel"]
        | Float[Array | np.ndarray, "channel l"]
        | Float[Array | np.ndarray, "l"],
        std: PyTree[Any] | None = None,
    ):
        """Set the law.

        Args:
            sht: between the states' grid and degrees; what is beyond its `lmax` has no
                variance.
            power: expected `sphere.cross_spectrum` of the channels' errors, `(l,
                channel, channel)`; or of independent channels their `power_spectrum`,
                `(channel, l)`, one for all if `(l,)`. The variance at every point is
                `sum(power) / (4 pi)`.
            std: what the errors are then multiplied with, one number or arrays that
                broadcast to a state: where the errors are larger. With it, normalise
                `power` to a variance of 1.

        Raises:
            ValueError: `power` has not `lmax + 1` degrees.
            EquinoxRuntimeError: a degree's matrix is not positive semidefinite.
        """
        power = jnp.asarray(power)
        degrees = power.shape[0] if power.ndim == 3 else power.shape[-1]
        if degrees != sht.lmax + 1:
            raise ValueError(
                f"`power` must have one entry for each degree, {sht.lmax + 1}, got the "
                f"shape {power.shape}."
            )
        if power.ndim < 3:
            channels = power.T.reshape(degrees, -1)
            power = jax.vmap(jnp.diag)(channels)
        orders = jnp.asarray(2 * np.arange(degrees) + 1, power.dtype)
        each = power / orders[:, None, None]
        factor = jax.vmap(symmetric_root)(each)
        lost = jnp.abs(jnp.einsum("lij,ljk->lik", factor, factor) - each)
        slack = 1e3 * power.shape[-1] * float(jnp.finfo(power.dtype).eps)
        wrong = ~(lost <= slack * jnp.max(jnp.abs(each), axis=(1, 2), keepdims=True))
        message = "`power` must be positive semidefinite at every degree."
        self.factor = eqx.error_if(factor, wrong, message)
        self.sht = sht
        self.std = None if std is None else jax.tree.map(jnp.asarray, std)

    def control(self, state: PyTree[Array]) -> Float[Array, "channel basis"]:
        """Return zeros, `(lmax + 1)^2` for each channel of the state.

        Raises:
            ValueError: the state is on another grid, or has another number of channels
                than `power` has (one for all goes with any).
        """
        shape = (self.sht.grid.n_latitude, self.sht.grid.n_longitude)
        leaves = jax.tree.leaves(state)
        if wrong := [leaf.shape for leaf in leaves if leaf.shape[-2:] != shape]:
            raise ValueError(
                f"a leaf of shape {wrong[0]} does not end with (latitude, longitude) = "
                f"{shape}, the covariance's grid."
            )
        channels = sum(leaf.size // (shape[0] * shape[1]) for leaf in leaves)
        known = self.factor.shape[-1]
        if known not in (1, channels):
            raise ValueError(
                f"`power` is of {known} channels, the state has {channels}."
            )
        return jnp.zeros((channels, (self.sht.lmax + 1) ** 2), precision(state))

    def root(
        self, control: Float[Array, "channel basis"], state: PyTree[Array]
    ) -> PyTree[Array]:
        """Return the fields with these control variables."""
        coefficients = sphere.from_real(control)
        factor = self.factor.astype(control.dtype)
        if factor.shape[-1] == 1:  # one spectrum for all channels
            mix = lambda part: part * jnp.swapaxes(factor, 0, 1)
        else:
            mix = lambda part: jnp.einsum(
                "lij,jlm->ilm", factor, part, precision="highest"
            )
        mixed = lax.complex(mix(coefficients.real), mix(coefficients.imag))
        fields = self.sht.synthesis(mixed)
        leaves, structure = jax.tree.flatten(state)
        counts = [int(np.prod(leaf.shape[:-2])) for leaf in leaves]
        parts = jnp.split(fields, np.cumsum(counts)[:-1].tolist())
        increment = structure.unflatten(
            part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)
        )
        return increment if self.std is None else scaled(self.std, increment)


def degree_covariances(
    sht: sphere.SphericalHarmonics, samples: PyTree[Array]
) -> Float[Array, "l channel channel"]:
    """Return the cross spectra of an ensemble's anomalies: a `SpectralCovariance`'s.

    `samples` are background errors or what stands for them: the members of an ensemble,
    or `forecast_differences`; their mean is taken out. Leaves are `(member, ...,
    latitude, longitude)`. Estimates of several ensembles may be averaged. There are
    `(2 l + 1) (member - 1)` pieces of information for degree l, so large scales need
    more members than small ones.

    Raises:
        ValueError: there are fewer than two members.
    """
    leaves = jax.tree.leaves(samples)
    if (members := len(leaves[0])) < 2:
        raise ValueError(f"`samples` needs at least 2 members, got {members}.")
    dtype = precision(samples)
    channels = [
        centre(leaf.astype(dtype))[1].reshape(members, -1, *leaf.shape[-2:])
        for leaf in leaves
    ]
    c = sht.analysis(jnp.concatenate(channels, axis=1))
    # Orders of both signs: m = 0 counts once and is real, the others twice.
    weight = np.full(sht.lmax + 1, 2.0)
    weight[0] = 1
    weight = jnp.asarray(weight, dtype)[None, None, None, :]
    product = lambda part: jnp.einsum(
        "kilm,kjlm->lij", part * weight, part, precision="highest"
    )
    imaginary = c.imag.at[..., 0].set(0)
    return (product(c.real) + product(imaginary)) / (members - 1)


def gaspari_cohn_spectrum(
    lmax: int, length: float, *, radius: float = 6.371e6
) -> np.ndarray:
    """Return the power by degree, `(lmax + 1,)` float64, of Gaspari-Cohn correlations.

    The `power` of a `SpectralCovariance` of variance 1 that reaches 0 at a distance of
    twice `length`, as far as `lmax` resolves it. In great-circle distance the function
    is not quite a correlation: the tiny negative powers are set to 0.

    Args:
        lmax: the largest degree.
        length: in metres.
        radius: of the sphere, in metres.

    Raises:
        ValueError: `length` is not above 0.

    Source: Gaspari & Cohn (1999), Quart. J. Roy. Meteor. Soc. 125, 723-757.
    """
    if not length > 0:
        raise ValueError(f"`length` must be above 0, got {length}.")
    # Quadrature over the support alone, however short it is.
    edge = min(2 * length / radius, np.pi)
    points, weights = np.polynomial.legendre.leggauss(2 * lmax + 64)
    angle = edge * (points + 1) / 2
    r = angle * radius / length
    with jax.ensure_compile_time_eval():
        correlation = np.asarray(gaspari_cohn(jnp.asarray(r)), float)
    weights = weights * edge / 2 * np.sin(angle) * correlation
    legendre = np.polynomial.legendre.legvander(np.cos(angle), lmax)
    power = np.maximum((2 * np.arange(lmax + 1) + 1) * (weights @ legendre), 0)
    return power * (4 * np.pi / power.sum())
