"""Spherical harmonic analysis and synthesis, exact on every grid of ours."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float

from skyens.sphere import _legendre, _transform, _winds
from skyens.sphere._grid import Grid
from skyens.sphere._precision import as_float, at_least_single
from skyens.sphere._radius import check_radius
from skyens.sphere._spectra import power_spectrum
from skyens.sphere._transform import Tables

Field = Float[Array, "*batch latitude longitude"]
Coefficients = Complex[Array, "*batch l m"]

_fixed = lambda: eqx.field(metadata={"trainable": False})


class SphericalHarmonics(eqx.Module):
    """The spherical harmonic transform between a grid and degrees 0 to `lmax`.

    Coefficients are complex `(..., l, m)` with `0 <= m <= l <= lmax`, orthonormal on
    the unit sphere with the Condon-Shortley phase, zero where `m > l`; fields are real
    `(..., latitude, longitude)`. A field band-limited to `lmax` makes the round trip
    to rounding. Where the grid's quadrature alone would lose that exactness (above half
    of `grid.largest_lmax` on grids without Gaussian latitudes) the analysis has tables
    of its own, which interpolate trigonometrically to Gaussian latitudes.

    Everything is linear in its fields or coefficients, for `jax.jit`, `vmap`, `jvp` and
    `vjp`; a reverse derivative costs what its transforms cost. Fields of half precision
    are transformed in float32. The tables are never trained.

    Source: Schaeffer (2013), Geochem. Geophys. Geosyst. 14, 751-758 (parity folding);
    Driscoll & Healy (1994), Adv. Appl. Math. 15, 202-250 (exact latitude quadrature);
    for winds, Temperton (1991), Mon. Wea. Rev. 119, 1303-1307.
    """

    grid: Grid = eqx.field(static=True)
    lmax: int = eqx.field(static=True)
    precision: lax.Precision = eqx.field(static=True)
    _harmonics: Tables
    # What takes fields, and the components of vectors, to degrees; where None, it is
    # the quadrature-weighted harmonics.
    _scalar: Tables | None
    _vector: Tables | None
    _weights: Float[Array, " latitude"] = _fixed()

    def __init__(
        self,
        grid: Grid,
        lmax: int,
        *,
        precision: lax.Precision = lax.Precision.HIGHEST,
    ):
        """Build the tables in float64 and keep them in JAX's default float type.

        Args:
            grid: the grid fields lie on.
            lmax: the largest degree, at most `grid.largest_lmax`.
            precision: of the matrix products; the default never rounds to TF32.

        Raises:
            ValueError: `lmax` is negative, above what the grid resolves, or above
                1,900, where the recurrence of the tables would underflow.
        """
        largest = min(grid.largest_lmax, _legendre.LARGEST_LMAX)
        if not 0 <= lmax <= largest:
            raise ValueError(
                f"`lmax` must lie between 0 and {largest} on this "
                f"{grid.n_latitude} x {grid.n_longitude} {grid.kind} grid, got {lmax}."
            )
        self.grid, self.lmax, self.precision = grid, lmax, precision
        blocks = _legendre.order_blocks(lmax)
        half = grid.colatitude[: (grid.n_latitude + 1) // 2]
        self._harmonics = Tables.build(blocks, _legendre.legendre(lmax, half, blocks))
        own = [None, None]
        exact = grid.kind == "gauss-legendre" or 2 * lmax <= grid.n_latitude - 1
        if not exact:
            own = [
                Tables.build(
                    blocks, _legendre.analysis_tables(grid, lmax, blocks, vector=v)
                )
                for v in (False, True)
            ]
        self._scalar, self._vector = own
        self._weights = jnp.asarray(grid.weights, float)

    # ------------------------------------------------------------------------- scalars

    def analysis(self, field: Field) -> Coefficients:
        """Return the coefficients of `field`.

        Raises:
            ValueError: the last two axes of `field` are not the grid's.
            EquinoxRuntimeError: a value is not finite; under tracing it propagates.
        """
        field = at_least_single(as_float(self.grid.check_finite(field)))
        if self._scalar is None:
            return self._analyse(self._weigh(field), self._harmonics)
        return self._analyse(field, self._scalar)

    def synthesis(self, coefficients: Coefficients) -> Field:
        """Return the field with these `coefficients` (those with `m > l` are ignored).

        Raises:
            ValueError: the coefficients belong to another `lmax`.
        """
        return self._synthesise(self._check(coefficients))

    def gradient_synthesis(
        self, coefficients: Coefficients, *, radius: float = 1.0
    ) -> tuple[Field, Field]:
        """Return the eastward and northward derivative of the field, per unit `radius`.

        At a pole they are the limits along each meridian.

        Raises:
            ValueError: the coefficients belong to another `lmax`.
        """
        return self._flow(None, self._check(coefficients), radius)

    def gradient(self, field: Field, *, radius: float = 1.0) -> tuple[Field, Field]:
        """Return the eastward and northward derivatives, per unit `radius`."""
        field = as_float(field)
        east, north = self.gradient_synthesis(self.analysis(field), radius=radius)
        return east.astype(field.dtype), north.astype(field.dtype)

    def laplacian(self, field: Field, *, radius: float = 1.0) -> Field:
        """Return the Laplacian of `field`, per squared unit of `radius`."""
        return self._scale_degrees(field, self.laplacian_eigenvalues(radius))

    def inverse_laplacian(self, field: Field, *, radius: float = 1.0) -> Field:
        """Return the field of zero mean whose Laplacian is `field` less its mean."""
        return self._scale_degrees(field, self._inverse_eigenvalues(radius)[:, 0])

    def laplacian_eigenvalues(self, radius: float = 1.0) -> np.ndarray:
        """Return `-l (l + 1) / radius^2` for each degree, `(lmax + 1,)`, float64."""
        check_radius(radius)
        l = np.arange(self.lmax + 1)
        return -l * (l + 1) / radius**2

    def power_spectrum(self, field: Field) -> Float[Array, "*batch l"]:
        """Return the sum over both signs of m of `|c_lm|^2`, by degree.

        Summed over degrees it is the integral of the squared field over the unit
        sphere: `4 pi` times its mean square.
        """
        field = as_float(field)
        return power_spectrum(self.analysis(field)).astype(field.dtype)

    # ------------------------------------------------------------------------- vectors

    def wind_synthesis(
        self,
        vorticity: Coefficients,
        divergence: Coefficients,
        *,
        radius: float = 1.0,
    ) -> tuple[Field, Field]:
        """Return the eastward and northward wind of these coefficients.

        Means of vorticity and divergence are ignored: no wind has them. At a pole the
        components are the limits along each meridian.

        Raises:
            ValueError: the coefficients belong to another `lmax`, or their batches
                differ.
        """
        vorticity = self._check(vorticity, "vorticity")
        divergence = self._check(divergence, "divergence")
        if vorticity.shape != divergence.shape:
            raise ValueError(
                f"`vorticity` {vorticity.shape} and `divergence` {divergence.shape} "
                "must have one shape; broadcast them first."
            )
        invert = _winds.like(self._inverse_eigenvalues(radius), vorticity)
        return self._flow(invert * vorticity, invert * divergence, radius)

    def wind_analysis(
        self,
        u: Field,
        v: Field,
        *,
        radius: float = 1.0,
    ) -> tuple[Coefficients, Coefficients]:
        """Return the vorticity and divergence coefficients of a wind.

        Exact for winds whose vorticity and divergence are band-limited to `lmax`.

        Raises:
            ValueError: the last two axes of `u` or `v` are not the grid's.
            EquinoxRuntimeError: a value is not finite; under tracing it propagates.
        """
        check_radius(radius)
        both = jnp.stack(
            [self.grid.check_finite(u, "u"), self.grid.check_finite(v, "v")]
        )
        both = at_least_single(as_float(both))
        if self._vector is None:
            both = self._weigh(both)
            divided = both * _winds.like(_winds.inverse_sine(self.grid)[:, None], both)
            x, y = self._analyse(divided, self._harmonics, beyond=True)
        else:
            x, y = self._analyse(both, self._vector, beyond=True)
        east = lambda c: _winds.eastward(c[..., :-1, :])
        vorticity = _winds.slope_adjoint(x) - east(y)
        divergence = -east(x) - _winds.slope_adjoint(y)
        if self._vector is None and self._poles:
            more = _winds.from_poles(self.grid, both, self.lmax, self.precision)
            vorticity = vorticity.at[..., 1].add(more[0])
            divergence = divergence.at[..., 1].add(more[1])
        return vorticity * (-1 / radius), divergence * (-1 / radius)

    def wind(
        self,
        vorticity: Field,
        divergence: Field,
        *,
        radius: float = 1.0,
    ) -> tuple[Field, Field]:
        """Return the wind (m s-1) of vorticity and divergence (s-1, radius in m)."""
        vorticity = as_float(vorticity)
        both = self.analysis(jnp.stack([vorticity, divergence]))
        u, v = self.wind_synthesis(both[0], both[1], radius=radius)
        return u.astype(vorticity.dtype), v.astype(vorticity.dtype)

    def vorticity_divergence(
        self,
        u: Field,
        v: Field,
        *,
        radius: float = 1.0,
    ) -> tuple[Field, Field]:
        """Return vorticity and divergence (s-1) of a wind (m s-1, radius in m)."""
        u = as_float(u)
        both = jnp.stack(self.wind_analysis(u, v, radius=radius))
        vorticity, divergence = self.synthesis(both).astype(u.dtype)
        return vorticity, divergence

    def helmholtz(
        self,
        u: Field,
        v: Field,
        *,
        radius: float = 1.0,
    ) -> tuple[Field, Field]:
        """Return streamfunction and velocity potential (m2 s-1), of zero mean.

        The wind is the gradient of the potential plus the gradient of the
        streamfunction turned left: `u = dchi/dx - dpsi/dy`, `v = dchi/dy + dpsi/dx`.
        """
        u = as_float(u)
        both = jnp.stack(self.wind_analysis(u, v, radius=radius))
        invert = _winds.like(self._inverse_eigenvalues(radius), both)
        streamfunction, potential = self.synthesis(both * invert).astype(u.dtype)
        return streamfunction, potential

    # ------------------------------------------------------------------- what they use

    def _flow(self, streamfunction, potential, radius):
        """The wind of two potentials (coefficients); `None` is zero."""
        check_radius(radius)
        more = ((0, 0),) * (potential.ndim - 2) + ((0, 1), (0, 0))
        u = jnp.pad(_winds.eastward(potential), more)
        v = -_winds.slope(potential)
        zonal = [jnp.zeros_like(potential[..., 0].real), -potential[..., 0].real]
        if streamfunction is not None:
            u = u + _winds.slope(streamfunction)
            v = v + jnp.pad(_winds.eastward(streamfunction), more)
            zonal[0] = streamfunction[..., 0].real
        # Rows of order m >= 1 fall towards a pole as sin(theta)^m at least, term by
        # term, so that dividing keeps their precision. Order 0 falls by cancellation.
        fields = self._synthesise(jnp.stack([u, v]).at[..., 0].set(0))
        divide = _winds.like(_winds.inverse_sine(self.grid)[:, None], fields)
        fields = fields * divide + self._zonal_slope(jnp.stack(zonal))[..., None]
        if self._poles:
            ends = _winds.at_poles(self.grid, streamfunction, potential, self.precision)
            fields = fields.at[..., jnp.asarray([0, -1]), :].set(ends)
        fields = fields * (1 / radius)
        return fields[0], fields[1]

    def _zonal_slope(self, c):
        """`d/dtheta` of zonal coefficients `(..., l)` by row: a sum over order 1."""
        if self.lmax == 0:
            return jnp.zeros((*c.shape[:-1], self.grid.n_latitude), c.dtype)
        l = np.arange(self.lmax + 1)
        c = c * _winds.like(np.sqrt(l * (l + 1)), c)
        c = jnp.pad(c, ((0, 0),) * (c.ndim - 1) + ((0, c.shape[-1] % 2),))
        c = c.reshape(*c.shape[:-1], -1, 2)
        table = lax.stop_gradient(self._harmonics.up[0][1]).astype(c.dtype)
        rows = jnp.einsum("...rs,srj->s...j", c, table, precision=self.precision)
        # Order 1 is odd about the equator for even degrees.
        first, last = rows[1] + rows[0], jnp.flip(rows[1] - rows[0], -1)
        return jnp.concatenate([first, last[..., self.grid.n_latitude % 2 :]], -1)

    @property
    def _poles(self) -> bool:
        return self.grid.kind == "equiangular" and self.lmax > 0

    def _weigh(self, fields):
        """Times the quadrature weights."""
        weights = lax.stop_gradient(self._weights).astype(fields.dtype)
        return fields * weights.reshape((1,) * (fields.ndim - 2) + (-1, 1))

    def _analyse(self, field, tables, *, beyond: bool = False):
        coefficients = _transform.analysis(
            field, tables, beyond=beyond, precision=self.precision
        )
        return self._turn(coefficients, -1)

    def _synthesise(self, coefficients):
        return _transform.synthesis(
            self._turn(coefficients, 1),
            self._harmonics,
            shape=self.grid.shape,
            precision=self.precision,
        )

    def _turn(self, coefficients, sign: int):
        """Turn from (`sign` 1) longitude 0 to the grid's first longitude, or back."""
        if self.grid.longitude_origin == 0:
            return coefficients
        angle = np.arange(self.lmax + 1) * np.deg2rad(self.grid.longitude_origin)
        return coefficients * _winds.like(np.exp(sign * 1j * angle), coefficients)

    def _scale_degrees(self, field, factors: np.ndarray):
        field = as_float(field)
        coefficients = self.analysis(field)
        scaled = coefficients * _winds.like(factors[:, None], coefficients)
        return self.synthesis(scaled).astype(field.dtype)

    def _inverse_eigenvalues(self, radius) -> np.ndarray:
        """Of the Laplacian, `(lmax + 1, 1)`, and 0 for the mean."""
        inverse = 1 / self.laplacian_eigenvalues(radius)[1:]
        return np.concatenate([[0.0], inverse])[:, None]

    def _check(self, coefficients, name: str = "coefficients"):
        """Return `coefficients` as an array of JAX."""
        size = self.lmax + 1
        if coefficients.shape[-2:] != (size, size):
            raise ValueError(
                f"`{name}` of shape {coefficients.shape} must end in (l, m) = "
                f"{(size, size)} for lmax {self.lmax}; truncate or pad them first."
            )
        return jnp.asarray(coefficients)
