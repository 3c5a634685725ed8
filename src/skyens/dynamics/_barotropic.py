"""The equivalent-barotropic model that made the first numerical forecasts."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from skyens.dynamics._checks import check_coefficients, check_steps
from skyens.dynamics._runge_kutta import runge_kutta
from skyens.sphere import SphericalHarmonics, check_radius

EARTH_RADIUS = 6.371e6
EARTH_ROTATION = 7.292e-5

_fixed = lambda: eqx.field(metadata={"trainable": False})


class BarotropicVorticity(eqx.Module):
    """One step of the equivalent-barotropic vorticity equation on the sphere.

    `dq/dt + J(psi, q) = 0` with `q = lap psi - psi / R^2 + f + f topography / depth`,
    for the streamfunction `psi` (m2 s-1) whose spectral coefficients `(l, m)` are the
    state. The second term is the free surface's, R the deformation radius; the last
    lets columns of air spin up where they leave high ground. Advection is computed on
    the transform's grid and is free of aliasing where that grid resolves three halves
    of `lmax`; classical Runge-Kutta in time, then hyperdiffusion exactly.

    A `forcing`, where given, is added to the tendency of `lap psi - psi / R^2`
    (s-2, coefficients), constant over the step.

    Source: Charney, Fjortoft & von Neumann (1950), Tellus 2, 237-254; the deformation
    radius as in Cressman (1958), Mon. Wea. Rev. 86, 293-297; topography, Charney &
    Eliassen (1949), Tellus 1, 38-54.
    """

    sht: SphericalHarmonics
    mean_depth: Float[Array, ""]
    deformation_radius: Float[Array, ""]
    hyperdiffusion: Float[Array, ""]
    time_step: float = eqx.field(static=True)
    substeps: int = eqx.field(static=True)
    radius: float = eqx.field(static=True)
    rotation: float = eqx.field(static=True)
    topography: Complex[Array, "l m"] | None = _fixed()

    def __init__(
        self,
        sht: SphericalHarmonics,
        *,
        topography: Float[Array, "latitude longitude"]
        | Complex[Array, "l m"]
        | None = None,
        mean_depth: float = 1e4,
        deformation_radius: float = 1.5e6,
        hyperdiffusion: float = 2e16,
        time_step: float = 3600.0,
        substeps: int = 2,
        radius: float = EARTH_RADIUS,
        rotation: float = EARTH_ROTATION,
    ):
        """Set the world.

        Args:
            sht: transform whose grid holds the products; about `3 lmax / 2` rows.
            topography: height of the ground in m, on the grid or as coefficients.
            mean_depth: of the layer that flows over it, in m.
            deformation_radius: R in m; infinity gives the purely barotropic model.
            hyperdiffusion: coefficient of `lap^2` in m4 s-1.
            time_step: the length of one call, in s.
            substeps: Runge-Kutta steps per call.
            radius: of the planet, in m.
            rotation: of the planet, in s-1.

        Raises:
            ValueError: `time_step`, `substeps`, `radius` or `mean_depth` is not
                positive, `radius` looks like kilometres, or
                `topography` does not belong to `sht`.
        """
        check_steps(time_step, substeps)
        check_radius(radius)
        if mean_depth <= 0:
            raise ValueError(f"`mean_depth` (m) must be positive, got {mean_depth}.")
        self.sht = sht
        if topography is not None and not jnp.iscomplexobj(topography):
            topography = sht.analysis(topography)
        if topography is not None:
            check_coefficients(topography, sht.lmax, "topography")
        self.topography = topography
        self.mean_depth = jnp.asarray(mean_depth, float)
        self.deformation_radius = jnp.asarray(deformation_radius, float)
        self.hyperdiffusion = jnp.asarray(hyperdiffusion, float)
        self.time_step, self.substeps = float(time_step), substeps
        self.radius, self.rotation = radius, rotation

    def __call__(
        self,
        state: Complex[Array, "l m"],
        forcing: Complex[Array, "l m"] | None = None,
        *,
        key=None,
    ) -> Complex[Array, "l m"]:
        """Return the streamfunction coefficients one `time_step` later.

        Raises:
            ValueError: the coefficients belong to another `lmax`.
        """
        state = check_coefficients(state, self.sht.lmax, "state")
        dtype = state.dtype  # complex: the factors multiply coefficients
        laplacian = jnp.asarray(self.sht.laplacian_eigenvalues(self.radius), dtype)
        # The square comes last: its derivative exists at infinity.
        helmholtz = laplacian - ((1 / self.deformation_radius) ** 2).astype(dtype)
        # The mean streamfunction is arbitrary and stays. Double where: its operator is
        # 0 without a deformation radius.
        moves = jnp.arange(laplacian.size) > 0
        invert = jnp.where(moves, 1 / jnp.where(moves, helmholtz, 1), 0)[:, None]
        damping = self.hyperdiffusion.astype(dtype) * laplacian**2
        delta = self.time_step / self.substeps
        damp = jnp.exp(-delta * damping)[:, None]

        background = self._background_slope(dtype)

        def tendency(psi):
            change = self._advection(psi, laplacian, background)
            if forcing is not None:
                change = change + forcing
            return invert * change

        return runge_kutta(tendency, state, step=delta, steps=self.substeps, damp=damp)

    def potential_vorticity(
        self, state: Complex[Array, "l m"]
    ) -> Complex[Array, "l m"]:
        """Return the coefficients (s-1) of the `q` that the flow carries.

        Raises:
            ValueError: the coefficients belong to another `lmax`.
        """
        state = check_coefficients(state, self.sht.lmax, "state")
        stretching = ((1 / self.deformation_radius) ** 2).astype(state.dtype)
        laplacian = jnp.asarray(
            self.sht.laplacian_eigenvalues(self.radius), state.dtype
        )
        own = (laplacian - stretching)[:, None] * state
        sine = jnp.asarray(self._sine(), state.real.dtype)
        ground = self._ground(state.dtype)
        field = 2 * self.rotation * sine * jnp.ones(self.sht.grid.shape, sine.dtype)
        background = self.sht.analysis(field)
        return own + background + (0 if ground is None else ground)

    def _sine(self) -> np.ndarray:
        """Of latitude, one row each."""
        return np.cos(self.sht.grid.colatitude)[:, None]

    def _ground(self, dtype):
        """The coefficients (s-1) of `f topography / depth`."""
        if self.topography is None:
            return None
        height = self.sht.synthesis(self.topography.astype(dtype))
        height = height / self.mean_depth.astype(height.dtype)
        sine = jnp.asarray(2 * self.rotation * self._sine(), height.dtype)
        return self.sht.analysis(sine * height)

    def _background_slope(self, dtype):
        """The eastward and northward slope of the `q` of an atmosphere at rest."""
        cosine = np.sin(self.sht.grid.colatitude)[:, None]  # of latitude
        beta = 2 * self.rotation / self.radius * cosine
        ground = self._ground(dtype)
        if ground is None:
            return None, jnp.asarray(beta, jnp.finfo(dtype).dtype)
        east, north = self.sht.gradient_synthesis(ground, radius=self.radius)
        return east, north + jnp.asarray(beta, north.dtype)

    def _advection(self, psi, laplacian, background):
        """`-J(psi, q)`: how the wind carries potential vorticity."""
        vorticity = laplacian[:, None] * psi
        both = jnp.stack([psi, vorticity])
        east, north = self.sht.gradient_synthesis(both, radius=self.radius)
        eastward, northward = background
        eastward = east[1] if eastward is None else east[1] + eastward
        # u = -psi_y and v = psi_x.
        return self.sht.analysis(north[0] * eastward - east[0] * (north[1] + northward))


class LinearBalance(eqx.Module):
    """Linear balance between geopotential and streamfunction, in spectral space.

    `lap phi = div(f grad psi)` with `f = 2 Omega sin(latitude)`. From streamfunction
    to geopotential it is a sum of neighbouring degrees; back, it is singular at the
    equator, and solved by least squares with a penalty that grows with degree.

    Source: Daley (1983), Tellus 35A, 27-36; the couplings of neighbouring degrees from
    the recurrence of `sin(latitude) Y_lm`.
    """

    lmax: int = eqx.field(static=True)
    rotation: float = eqx.field(static=True)
    _to_geopotential: Float[Array, "m l k"] = _fixed()
    _to_streamfunction: Float[Array, "m l k"] = _fixed()

    def __init__(
        self, lmax: int, *, penalty: float = 1e-2, rotation: float = EARTH_ROTATION
    ):
        """Build one small matrix for each order, in float64.

        Args:
            lmax: largest degree.
            penalty: strength of the equatorial regularisation, relative to the largest
                entries of the operator.
            rotation: of the planet, in s-1.

        Raises:
            ValueError: `penalty` is not positive.
        """
        if penalty <= 0:
            raise ValueError(
                f"`penalty` must be positive, or the equator is singular: {penalty}."
            )
        self.lmax, self.rotation = lmax, rotation
        size = lmax + 1
        l, m = np.arange(size), np.arange(size)[:, None]
        # sin(latitude) Y_l = e_{l+1} Y_{l+1} + e_l Y_{l-1}
        e = np.sqrt(np.maximum(l**2 - m**2, 0) / np.maximum(4 * l**2 - 1, 1))
        couple = np.zeros((size, size, size))
        couple[:, l[1:], l[:-1]] = -(l[:-1] * (l[:-1] + 2)) * e[:, 1:]
        couple[:, l[:-1], l[1:]] = -((l[1:] - 1) * (l[1:] + 1)) * e[:, 1:]
        inside = (l >= m) & (l > 0)
        couple = couple * inside[:, :, None] * inside[:, None, :]
        eigenvalues = -(l * (l + 1.0))
        inverse = np.where(l > 0, 1 / np.where(l > 0, eigenvalues, 1), 0)
        self._to_geopotential = jnp.asarray(inverse[None, :, None] * couple)
        ridge = np.where(inside, penalty * size * (l + 1), 1)
        # Normal equations would square the condition: small penalties would be lost.
        rows = np.concatenate([couple, ridge[:, :, None] * np.eye(size)], axis=1)
        q, r = np.linalg.qr(rows)
        right = q[:, :size].transpose(0, 2, 1) * eigenvalues
        self._to_streamfunction = jnp.asarray(np.linalg.solve(r, right))

    def geopotential(
        self, streamfunction: Complex[Array, "*batch l m"]
    ) -> Complex[Array, "*batch l m"]:
        """Return the geopotential (m2 s-2), of zero mean, that balances (m2 s-1)."""
        return self._apply(self._to_geopotential, streamfunction) * (2 * self.rotation)

    def streamfunction(
        self, geopotential: Complex[Array, "*batch l m"]
    ) -> Complex[Array, "*batch l m"]:
        """Return the streamfunction (m2 s-1), of zero mean, that balances (m2 s-2)."""
        psi = self._apply(self._to_streamfunction, geopotential)
        return psi / (2 * self.rotation)

    def _apply(self, table, coefficients):
        table = table.astype(coefficients.real.dtype)
        # The default precision would round to TF32 on a GPU.
        apply = lambda part: jnp.einsum(
            "mlk,...km->...lm", table, part, precision=jax.lax.Precision.HIGHEST
        )
        return jax.lax.complex(apply(coefficients.real), apply(coefficients.imag))
