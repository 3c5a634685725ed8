"""The shallow-water equations on the rotating sphere, by spherical harmonics."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float

from skyens.dynamics._barotropic import EARTH_RADIUS, EARTH_ROTATION
from skyens.dynamics._checks import check_coefficients, check_steps
from skyens.dynamics._gravity_waves import (
    ExponentialRungeKutta,
    GravityWaves,
    ImplicitExplicit,
)
from skyens.dynamics._height import STANDARD_GRAVITY
from skyens.dynamics._shallow_water_state import ShallowWaterState
from skyens.sphere import SphericalHarmonics, check_radius

_fixed = lambda: eqx.field(metadata={"trainable": False})
_MEAN = math.sqrt(4 * math.pi)  # the mean of a field times this is its coefficient 0


class ShallowWater(eqx.Module):
    """One step of the shallow-water equations on the sphere.

        d(vorticity)/dt  = -div((vorticity + f) v)
        d(divergence)/dt = curl((vorticity + f) v) - lap(g h + |v|^2 / 2)
        dh/dt            = -div((h - orography) v)

    with hyperdiffusion of all three and, where a `target` is given, relaxation of
    their zonal means: an unstable jet that is restored again and again is chaotic for
    ever. Products are free of aliasing where the grid resolves three halves of `lmax`.
    The mass is conserved to the last bit, and a surface at rest stays at rest over any
    orography.

    `method` steps over gravity waves, which are linear about the depth that the state
    has on average. `ExponentialRungeKutta` resolves them: at T42 and half an hour,
    heights err ten times less than by `ImplicitExplicit`. That one slows and damps the
    waves that a step does not resolve, and is the more accurate for vorticity where
    winds are strong and steps long, of an hour and more.

    A `forcing`, where given, is added to the tendencies (in s-2, s-2 and m s-1),
    constant over the step.

    Source: Hack & Jakob (1992), NCAR Technical Note TN-343+STR, the equations;
    Galewsky, Scott & Polvani (2004), Tellus 56A, 429-440, the jet to relax to.
    """

    sht: SphericalHarmonics
    relaxation_time: Float[Array, ""]
    hyperdiffusion: Float[Array, ""]
    method: ExponentialRungeKutta | ImplicitExplicit
    time_step: float = eqx.field(static=True)
    substeps: int = eqx.field(static=True)
    radius: float = eqx.field(static=True)
    rotation: float = eqx.field(static=True)
    gravity: float = eqx.field(static=True)
    tilt: float = eqx.field(static=True)
    # One degree more: winds times the cosine of latitude reach it.
    _wide: SphericalHarmonics
    orography: Complex[Array, "l m"] | None = _fixed()
    target: ShallowWaterState | None = _fixed()

    def __init__(
        self,
        sht: SphericalHarmonics,
        *,
        orography: Float[Array, "latitude longitude"]
        | Complex[Array, "l m"]
        | None = None,
        target: ShallowWaterState | None = None,
        relaxation_time: float = 86_400.0,
        hyperdiffusion: float = 5e15,
        method: ExponentialRungeKutta | ImplicitExplicit | None = None,
        time_step: float = 3600.0,
        substeps: int = 2,
        radius: float = EARTH_RADIUS,
        rotation: float = EARTH_ROTATION,
        gravity: float = STANDARD_GRAVITY,
        tilt: float = 0.0,
    ):
        """Set the world.

        Args:
            sht: transform whose Gauss-Legendre grid holds the products; about
                `3 lmax / 2` rows.
            orography: height of the ground in m, on the grid or as coefficients.
            target: the state whose zonal mean is relaxed to; its mean height is not.
            relaxation_time: in which the difference falls by e, in s.
            hyperdiffusion: coefficient of `lap^2` in m4 s-1; 5e15 suits T42.
            method: how to step; `ExponentialRungeKutta()` where None.
            time_step: the length of one call, in s.
            substeps: steps of the method per call.
            radius: of the planet, in m.
            rotation: of the planet, in s-1.
            gravity: in m s-2.
            tilt: of the planet's axis against the grid's, in degrees, towards
                longitude 180; for tests of the poles.

        Raises:
            ValueError: `time_step`, `substeps`, `radius` or `gravity` is not positive,
                `radius` looks like kilometres, the grid is not Gauss-Legendre or holds
                no degree `lmax + 1`, or `orography` or `target` do not belong to `sht`.
        """
        check_steps(time_step, substeps)
        check_radius(radius)
        if gravity <= 0:
            raise ValueError(f"`gravity` (m s-2) must be positive, got {gravity}.")
        if sht.grid.kind != "gauss-legendre":
            raise ValueError(
                "`sht` must have a Gauss-Legendre grid, whose quadrature integrates "
                f"products exactly, got {sht.grid.kind}; start from fields on others "
                "by `ShallowWaterState.from_fields`."
            )
        if sht.lmax >= sht.grid.largest_lmax:
            raise ValueError(
                f"the grid of `sht` must resolve degree lmax + 1 = {sht.lmax + 1}, but "
                f"ends at {sht.grid.largest_lmax}; about 3 lmax / 2 rows are best."
            )
        self.sht = sht
        self._wide = SphericalHarmonics(sht.grid, sht.lmax + 1, precision=sht.precision)
        if orography is not None and not jnp.iscomplexobj(orography):
            orography = sht.analysis(orography)
        self.orography, self.target = orography, target
        for name, part in (("orography", orography), ("target", target)):
            for leaf in jax.tree.leaves(part):
                check_coefficients(leaf, sht.lmax, name)
        self.relaxation_time = jnp.asarray(relaxation_time, float)
        self.hyperdiffusion = jnp.asarray(hyperdiffusion, float)
        self.method = ExponentialRungeKutta() if method is None else method
        self.time_step, self.substeps = float(time_step), substeps
        self.radius, self.rotation = radius, rotation
        self.gravity, self.tilt = gravity, tilt

    def __call__(
        self,
        state: ShallowWaterState,
        forcing: ShallowWaterState | None = None,
        *,
        key=None,
    ) -> ShallowWaterState:
        """Return the state one `time_step` later.

        Raises:
            ValueError: the coefficients belong to another `lmax`.
        """
        x, push = self._inputs(state, forcing)
        waves = self._waves(x)
        tendency = lambda x: self._products(x, push)
        delta = self.time_step / self.substeps
        step = self.method.stepper(waves, tendency, delta)
        x = lax.scan(lambda x, _: (step(x), None), x, None, length=self.substeps)[0]
        return self._unstack(x)

    def tendency(
        self, state: ShallowWaterState, forcing: ShallowWaterState | None = None
    ) -> ShallowWaterState:
        """Return the rates of change (s-2, s-2 and m s-1).

        Raises:
            ValueError: the coefficients belong to another `lmax`.
        """
        x, push = self._inputs(state, forcing)
        return self._unstack(self._products(x, push) + self._waves(x)(x))

    def balanced(
        self, vorticity: Complex[Array, "l m"], mean_height: float | Float[Array, ""]
    ) -> ShallowWaterState:
        """Return the state of this `vorticity` (s-1) in nonlinear balance.

        It has no divergence, and a height (m) that lets none arise, so that gravity
        waves start small.

        Raises:
            ValueError: the coefficients belong to another `lmax`.

        Source: Charney (1955), Tellus 7, 22-26.
        """
        zero = jnp.zeros_like(vorticity)
        state = ShallowWaterState(vorticity, zero, zero)
        x = self._stack(state, "vorticity")
        pull = self._waves(x).pull
        rises = pull > 0
        push = self._products(x, None)[1]
        height = jnp.where(rises, -push / jnp.where(rises, pull, 1), 0)
        height = self._unstack(jnp.stack([x[0], jnp.zeros_like(height), height]))
        mean = jnp.asarray(mean_height * _MEAN, vorticity.dtype)
        return ShallowWaterState(vorticity, zero, height.height.at[0, 0].set(mean))

    def mass(self, state: ShallowWaterState) -> Float[Array, ""]:
        """Return the mean depth of the layer, in m: the mass over its density."""
        return self._mean(self._fields(state)[2])

    def energy(self, state: ShallowWaterState) -> Float[Array, ""]:
        """Return the mean energy of a column over its density, in m3 s-2.

        `depth |v|^2 / 2 + g (h^2 - orography^2) / 2`, as in Williamson et al. (1992).
        """
        u, v, depth, ground = self._fields(state)
        kinetic = depth * (u**2 + v**2)
        return self._mean(kinetic + self.gravity * depth * (depth + 2 * ground)) / 2

    def potential_enstrophy(self, state: ShallowWaterState) -> Float[Array, ""]:
        """Return the mean of `(vorticity + f)^2 / (2 depth)`, in m-1 s-2."""
        depth = self._fields(state)[2]
        vorticity = self.sht.synthesis(state.vorticity)
        absolute = vorticity + jnp.asarray(self._coriolis(), vorticity.dtype)
        return self._mean(absolute**2 / depth) / 2

    # ------------------------------------------------------------------ the equations

    def _waves(self, x) -> GravityWaves:
        """The linear part, about the mean depth of `x`."""
        eigenvalue = -self._wide.laplacian_eigenvalues(self.radius)[None, :, None]
        pull = jnp.asarray(self.gravity * eigenvalue, x.dtype)
        depth = x[2, 0, 0, 0] / _MEAN
        if self.orography is not None:
            depth = depth - self.orography[0, 0].real.astype(x.dtype) / _MEAN
        damping = self.hyperdiffusion.astype(x.dtype)
        return GravityWaves(pull, depth, damping * jnp.asarray(eigenvalue**2, x.dtype))

    def _products(self, x, push):
        """The tendency that is left: products, the planet's rotation, what is given.

        Nine scalar transforms in two calls, the fewest there are: winds times the
        cosine of latitude are scalar sums of neighbouring degrees.
        """
        like = lambda table: jnp.asarray(table, x.dtype)
        up, down, order, to_above, to_below, east, eigenvalue = map(
            like, _couplings(self.sht.lmax, self.radius)
        )
        cosine2 = np.cos(np.deg2rad(self.sht.grid.latitude))[:, None] ** 2
        secant2 = like(1 / cosine2)
        turning = x[:2]  # streamfunction and potential, once divided by -lap
        slope = up * _shift(turning, -1) - down * _shift(turning, 1)
        along = order * _turn(turning)
        depth = x[2]
        if self.orography is not None:
            depth = depth - self._parts(self.orography).astype(x.dtype)
        depth = depth.at[0, 0, 0].set(0)  # the mean moves in the linear part
        inside = jnp.stack([along[1] - slope[0], along[0] + slope[1], x[0], depth])
        u, v, vorticity, depth = self._wide.synthesis(
            lax.complex(inside[:, 0], inside[:, 1])
        )
        absolute = (vorticity + like(self._coriolis())) * secant2
        depth = depth * secant2
        products = self._wide.analysis(
            jnp.stack(
                [
                    absolute * v,
                    -absolute * u,
                    depth * v,
                    -depth * u,
                    (u**2 + v**2) * (secant2 / 2),
                ]
            )
        )
        p, q, r, s, energy = jnp.stack([products.real, products.imag], 1)
        # curl, divergence, and minus the divergence of the flux
        across, beside = jnp.stack([p, -q, r]), jnp.stack([q, p, s])
        change = to_above * _shift(across, 1) - to_below * _shift(across, -1)
        change = change + east * _turn(beside)
        change = change.at[1].add(eigenvalue[0] * energy)
        if self.target is not None:
            goal = self._stack(self.target, "target").astype(x.dtype)
            rate = 1 / self.relaxation_time.astype(x.dtype)
            pull = rate * (goal[..., 1:, 0] - x[..., 1:, 0])
            change = change.at[..., 1:, 0].add(pull)
        return change if push is None else change + push

    def _coriolis(self) -> np.ndarray:
        latitude = np.deg2rad(self.sht.grid.latitude)[:, None]
        longitude = np.deg2rad(self.sht.grid.longitude)[None]
        tilt = np.deg2rad(self.tilt)
        sine = np.sin(latitude) * np.cos(tilt)
        tipped = np.cos(latitude) * np.cos(longitude) * np.sin(tilt)
        return 2 * self.rotation * (sine - tipped)

    # ---------------------------------------------------------------------- the layout

    def _parts(self, coefficients):
        """`[part, l, m]`, with a degree and an order more, which stay 0."""
        parts = jnp.stack([coefficients.real, coefficients.imag])
        return jnp.pad(parts, ((0, 0), (0, 1), (0, 1)))

    def _stack(self, state: ShallowWaterState, name: str):
        fields = state.vorticity, state.divergence, state.height
        for field in fields:
            check_coefficients(field, self.sht.lmax, name)
        return jnp.stack([self._parts(field) for field in fields])

    def _inputs(self, state: ShallowWaterState, forcing: ShallowWaterState | None):
        x = self._stack(state, "state")
        if forcing is None:
            return x, None
        return x, self._stack(forcing, "forcing").astype(x.dtype)

    def _unstack(self, x) -> ShallowWaterState:
        x = x[..., :-1, :-1]
        return ShallowWaterState(*lax.complex(x[:, 0], x[:, 1]))

    def _fields(self, state: ShallowWaterState):
        """Wind, depth and ground, on the grid."""
        u, v, surface = state.to_fields(self.sht, radius=self.radius)
        ground = jnp.zeros_like(surface)
        if self.orography is not None:
            ground = self.sht.synthesis(self.orography.astype(state.height.dtype))
        return u, v, surface - ground, ground

    def _mean(self, field):
        weights = jnp.asarray(self.sht.grid.weights / (4 * np.pi), field.dtype)
        return (weights[:, None] * field).sum()


def _turn(x):
    """Multiply by the imaginary unit."""
    return jnp.stack([-x[:, 1], x[:, 0]], 1)


def _shift(x, by: int):
    """Move entries to the next degree above (`by` 1) or below (-1)."""
    edge = jnp.zeros_like(x[..., :1, :])
    if by > 0:
        return jnp.concatenate([edge, x[..., :-1, :]], -2)
    return jnp.concatenate([x[..., 1:, :], edge], -2)


def _couplings(lmax: int, radius: float) -> tuple[np.ndarray, ...]:
    """Tables `(field, part, l, m)` of neighbouring degrees, to `lmax + 1`.

    From `e_l = sqrt((l^2 - m^2) / (4 l^2 - 1))` and `cos(latitude) dY_l / d(latitude)
    = (l + 1) e_l Y_{l - 1} - l e_{l + 1} Y_{l + 1}`. The first three make winds times
    the cosine of latitude of vorticity and divergence; the next three make curl and
    divergence of what was divided by it, and are 0 beyond `lmax`.
    """
    l, m = np.arange(lmax + 2.0)[:, None], np.arange(lmax + 2.0)
    e = lambda l: np.sqrt(np.maximum(l**2 - m**2, 0) / (4 * l**2 - 1))
    invert = lambda l: np.where(l > 0, -radius / np.maximum(l * (l + 1), 1), 0)
    kept = (l >= m) & (l <= lmax)
    tables = (
        (l + 2) * e(l + 1) * invert(l + 1) * (l < lmax + 1),
        (l - 1) * e(l) * invert(l - 1),
        m * invert(l) * kept,
        kept * (l + 1) * e(l) / radius,
        kept * l * e(l + 1) / radius,
        kept * m / radius,
        kept * l * (l + 1) / radius**2,
    )
    return tuple(table[None, None] for table in tables)
