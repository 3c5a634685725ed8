"""Advection: a tracer that a steady wind carries."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from skyens.dynamics._barotropic import EARTH_RADIUS
from skyens.dynamics._checks import check_coefficients, check_steps
from skyens.dynamics._runge_kutta import runge_kutta
from skyens.sphere import SphericalHarmonics, check_radius


class Advection(eqx.Module):
    """One step of `dq/dt = -div(q v)`, for a tracer q of spectral coefficients.

    The amount of tracer is conserved to the last bit; classical Runge-Kutta in time,
    then hyperdiffusion exactly. A `forcing`, where given, is added to the tendency
    (the tracer's unit per second), constant over the step.

    Source: the first of the tests of Williamson et al. (1992), J. Comput. Phys. 102,
    211-224.
    """

    sht: SphericalHarmonics
    wind: Float[Array, "2 latitude longitude"]
    hyperdiffusion: Float[Array, ""]
    time_step: float = eqx.field(static=True)
    substeps: int = eqx.field(static=True)
    radius: float = eqx.field(static=True)

    def __init__(
        self,
        sht: SphericalHarmonics,
        u: Float[Array, "latitude longitude"],
        v: Float[Array, "latitude longitude"],
        *,
        hyperdiffusion: float = 0.0,
        time_step: float = 3600.0,
        substeps: int = 2,
        radius: float = EARTH_RADIUS,
    ):
        """Set the wind.

        Args:
            sht: transform whose grid holds the products; about `3 lmax / 2` rows.
            u: eastward wind in m s-1, on the grid.
            v: northward wind in m s-1, on the grid.
            hyperdiffusion: coefficient of `lap^2` in m4 s-1.
            time_step: the length of one call, in s.
            substeps: Runge-Kutta steps per call.
            radius: of the planet, in m.

        Raises:
            ValueError: `time_step`, `substeps` or `radius` is not positive, `radius`
                looks like kilometres, or the wind does not lie on the grid of `sht`.
        """
        check_steps(time_step, substeps)
        check_radius(radius)
        sht.grid.check(u, "u")
        sht.grid.check(v, "v")
        self.sht, self.wind = sht, jnp.stack([u, v])
        self.hyperdiffusion = jnp.asarray(hyperdiffusion, float)
        self.time_step, self.substeps = float(time_step), substeps
        self.radius = radius

    def __call__(
        self,
        state: Complex[Array, "l m"],
        forcing: Complex[Array, "l m"] | None = None,
        *,
        key=None,
    ) -> Complex[Array, "l m"]:
        """Return the tracer's coefficients one `time_step` later.

        Raises:
            ValueError: the coefficients belong to another `lmax`.
        """
        state = check_coefficients(state, self.sht.lmax, "state")
        delta = self.time_step / self.substeps
        eigenvalues = self.sht.laplacian_eigenvalues(self.radius)
        damping = self.hyperdiffusion.astype(state.dtype)
        damp = jnp.exp(-delta * damping * jnp.asarray(eigenvalues**2, state.dtype))

        def tendency(tracer):
            field = self.sht.synthesis(tracer)
            u, v = field[None] * self.wind.astype(field.dtype)
            change = -self.sht.wind_analysis(u, v, radius=self.radius)[1]
            # The divergence of a flux has no mean: keep rounding from making one.
            change = change.at[0, 0].set(0)
            return change if forcing is None else change + forcing

        return runge_kutta(
            tendency, state, step=delta, steps=self.substeps, damp=damp[:, None]
        )
