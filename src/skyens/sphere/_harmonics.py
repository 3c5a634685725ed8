"""Spherical harmonic analysis and synthesis, exact on every grid of ours."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float

from skyens.sphere._grid import Grid, gauss_legendre
from skyens.sphere._legendre import legendre, legendre_gradients, resampling

_fixed = lambda: eqx.field(metadata={"trainable": False})


class SphericalHarmonics(eqx.Module):
    """The spherical harmonic transform between a grid and degrees 0 to `lmax`.

    Coefficients are complex `(..., l, m)` with `0 <= m <= l <= lmax`, orthonormal on
    the unit sphere with the Condon-Shortley phase, zero where `m > l`; fields are real
    `(..., latitude, longitude)`. A field band-limited to `lmax` makes the round trip
    to rounding. On grids without Gaussian latitudes the analysis first interpolates
    trigonometrically to them, so that it keeps its exactness up to
    `grid.largest_lmax`, where quadrature alone would lose it at half that.

    The transform sums Fourier rows over the symmetric and antisymmetric halves of the
    latitudes separately, which halves the work of the Legendre sums.

    Source: Schaeffer (2013), Geochem. Geophys. Geosyst. 14, 751-758 (parity folding);
    Driscoll & Healy (1994), Adv. Appl. Math. 15, 202-250 (exact latitude quadrature).
    """

    grid: Grid = eqx.field(static=True)
    lmax: int = eqx.field(static=True)
    precision: lax.Precision = eqx.field(static=True)
    # Half tables [m, s, j, r]: degree l = 2 r + s, row j of the first half of the rows.
    _analysis: Float[Array, "m 2 j r"] = _fixed()
    _synthesis: Float[Array, "m 2 j r"] = _fixed()
    _east: Float[Array, "m 2 j r"] = _fixed()
    _north: Float[Array, "m 2 j r"] = _fixed()

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
            ValueError: `lmax` is negative or above what the grid resolves.
        """
        if not 0 <= lmax <= grid.largest_lmax:
            raise ValueError(
                f"`lmax` must lie between 0 and {grid.largest_lmax} on this "
                f"{grid.n_latitude} x {grid.n_longitude} {grid.kind} grid, got {lmax}."
            )
        self.grid, self.lmax, self.precision = grid, lmax, precision
        half = (grid.n_latitude + 1) // 2
        table = legendre(lmax, grid.colatitude)
        east, down = legendre_gradients(table[..., :half])
        self._analysis = _fold(_analysis_matrix(grid, lmax, table)[..., :half])
        self._synthesis = _fold(table[..., :half])
        self._east, self._north = _fold(east), _fold(-down)

    def analysis(
        self, field: Float[Array, "*batch latitude longitude"]
    ) -> Complex[Array, "*batch l m"]:
        """Return the coefficients of `field`.

        Raises:
            ValueError: the last two axes of `field` are not the grid's.
        """
        self.grid.check(field)
        batch, dtype, size = field.shape[:-2], _compute_dtype(field), self.lmax + 1
        half = self._analysis.shape[2]
        x = field.astype(dtype).reshape(-1, *self.grid.shape)
        first, last = x[:, :half], jnp.flip(x, 1)[:, :half]
        rows = jnp.fft.rfft(jnp.stack([first + last, first - last], 1))[..., :size]
        if self.grid.longitude_origin:
            rows = rows * self._phase(-1, rows.dtype)[None, None, None]
        # (batch, parity, j, m) complex -> (m, parity, 2 batch, j) real
        rows = jnp.stack([rows.real, rows.imag]).transpose(4, 2, 0, 1, 3)
        rows = _swap_odd_orders(rows.reshape(size, 2, -1, half))
        table = self._analysis.astype(dtype)
        degrees = jnp.einsum("msbj,msjr->msbr", rows, table, precision=self.precision)
        # (m, s, (re, im), batch, r) -> (re/im, batch, l = 2 r + s, m)
        degrees = degrees.reshape(size, 2, 2, -1, degrees.shape[-1])
        degrees = degrees.transpose(2, 3, 4, 1, 0).reshape(2, x.shape[0], -1, size)
        degrees = degrees[:, :, :size]
        return lax.complex(degrees[0], degrees[1]).reshape(*batch, size, size)

    def synthesis(
        self, coefficients: Complex[Array, "*batch l m"]
    ) -> Float[Array, "*batch latitude longitude"]:
        """Return the field with these `coefficients` (those with `m > l` are ignored).

        Raises:
            ValueError: the coefficients belong to another `lmax`.
        """
        return self._sum(coefficients, self._synthesis, mirrored=False)

    def gradient_synthesis(
        self, coefficients: Complex[Array, "*batch l m"], *, radius: float = 1.0
    ) -> tuple[
        Float[Array, "*batch latitude longitude"],
        Float[Array, "*batch latitude longitude"],
    ]:
        """Return the eastward and northward derivative of the field, per unit `radius`.

        At a pole they are the limits along each meridian.
        """
        east = self._sum(1j * coefficients, self._east, mirrored=False)
        north = self._sum(coefficients, self._north, mirrored=True)
        return east / radius, north / radius

    def gradient(
        self, field: Float[Array, "*batch latitude longitude"], *, radius: float = 1.0
    ) -> tuple[
        Float[Array, "*batch latitude longitude"],
        Float[Array, "*batch latitude longitude"],
    ]:
        """Return the eastward and northward derivatives, per unit `radius`."""
        east, north = self.gradient_synthesis(self.analysis(field), radius=radius)
        return east.astype(field.dtype), north.astype(field.dtype)

    def laplacian(
        self, field: Float[Array, "*batch latitude longitude"], *, radius: float = 1.0
    ) -> Float[Array, "*batch latitude longitude"]:
        """Return the Laplacian of `field`, per squared unit of `radius`."""
        return self._scale_degrees(field, self.laplacian_eigenvalues(radius))

    def inverse_laplacian(
        self, field: Float[Array, "*batch latitude longitude"], *, radius: float = 1.0
    ) -> Float[Array, "*batch latitude longitude"]:
        """Return the field of zero mean whose Laplacian is `field` less its mean."""
        eigenvalues = self.laplacian_eigenvalues(radius)
        inverse = np.concatenate([[0.0], 1 / eigenvalues[1:]])
        return self._scale_degrees(field, inverse)

    def laplacian_eigenvalues(self, radius: float = 1.0) -> np.ndarray:
        """Return `-l (l + 1) / radius^2` for each degree, `(lmax + 1,)`, float64."""
        l = np.arange(self.lmax + 1)
        return -l * (l + 1) / radius**2

    def power_spectrum(
        self, field: Float[Array, "*batch latitude longitude"]
    ) -> Float[Array, "*batch l"]:
        """Return the sum over both signs of m of `|c_lm|^2`, by degree.

        Summed over degrees it is the integral of the squared field over the unit
        sphere: `4 pi` times its mean square.
        """
        coefficients = self.analysis(field)
        power = coefficients.real**2 + coefficients.imag**2
        return (2 * power.sum(-1) - power[..., 0]).astype(field.dtype)

    def _scale_degrees(self, field, factors: np.ndarray):
        coefficients = self.analysis(field)
        scale = jnp.asarray(factors, coefficients.dtype)
        scale = scale.reshape((1,) * (coefficients.ndim - 2) + (-1, 1))
        return self.synthesis(coefficients * scale).astype(field.dtype)

    def _phase(self, sign: int, dtype) -> Array:
        """The turn to the grid's first longitude: `sign` -1 analyses, 1 synthesises."""
        m = np.arange(self.lmax + 1)
        phase = np.exp(sign * 1j * m * np.deg2rad(self.grid.longitude_origin))
        return jnp.asarray(phase, dtype)

    def _sum(self, coefficients, table, *, mirrored: bool):
        """Sum over degrees and orders; a `mirrored` table has the other parity."""
        size = self.lmax + 1
        if coefficients.shape[-2:] != (size, size):
            raise ValueError(
                f"`coefficients` of shape {coefficients.shape} must end in (l, m) = "
                f"{(size, size)} for lmax {self.lmax}; truncate or pad them first."
            )
        batch, dtype = coefficients.shape[:-2], coefficients.real.dtype
        c = (
            coefficients.reshape(-1, size, size)
            * self._phase(1, coefficients.dtype)[None, None]
        )
        c = jnp.stack([c.real, c.imag])
        c = jnp.pad(c, ((0, 0), (0, 0), (0, 2 * table.shape[3] - size), (0, 0)))
        # (re/im, batch, l = 2 r + s, m) -> (m, s, 2 batch, r)
        c = c.reshape(2, c.shape[1], -1, 2, size).transpose(4, 3, 0, 1, 2)
        c = c.reshape(size, 2, -1, table.shape[3])
        rows = jnp.einsum(
            "msbr,msjr->msbj", c, table.astype(dtype), precision=self.precision
        )
        rows = _swap_odd_orders(rows)
        even, odd = (rows[:, 1], rows[:, 0]) if mirrored else (rows[:, 0], rows[:, 1])
        first, last = even + odd, jnp.flip(even - odd, -1)
        rows = jnp.concatenate([first, last[..., self.grid.n_latitude % 2 :]], -1)
        # (m, (re, im) batch, j) -> (batch, j, m) complex
        rows = rows.reshape(size, 2, -1, self.grid.n_latitude).transpose(1, 2, 3, 0)
        field = jnp.fft.irfft(
            lax.complex(rows[0], rows[1]), self.grid.n_longitude, norm="forward"
        )
        return field.reshape(*batch, *self.grid.shape)


def _compute_dtype(field):
    """Half-precision fields are transformed in float32."""
    half = jnp.finfo(field.dtype).bits < 32
    return jnp.float32 if half else field.dtype


def _analysis_matrix(grid: Grid, lmax: int, table: np.ndarray) -> np.ndarray:
    """Return `A[m, l, j]` such that `c_lm = sum_j A[m, l, j] * rfft(field)[j, m]`."""
    step = 2 * np.pi / grid.n_longitude
    if grid.kind == "gauss-legendre":
        return _halve_the_equator(table * grid.weights, grid)
    # Enough Gaussian rows to integrate interpolant times harmonic exactly.
    fine = gauss_legendre(grid.n_latitude + 2, 1)
    weighted = legendre(lmax, fine.colatitude) * (fine.weights / (2 * np.pi) * step)
    matrix = np.empty((lmax + 1, lmax + 1, grid.n_latitude))
    for odd in (False, True):
        carry = resampling(
            grid.colatitude, fine.colatitude, odd, grid.kind == "equiangular"
        )
        matrix[odd::2] = weighted[odd::2] @ carry
    return _halve_the_equator(matrix, grid)


def _halve_the_equator(matrix: np.ndarray, grid: Grid) -> np.ndarray:
    """The folded equator row is added to itself: count it half."""
    if grid.n_latitude % 2:
        matrix = matrix.copy()
        matrix[..., grid.n_latitude // 2] *= 0.5
    return matrix


def _fold(table: np.ndarray) -> Array:
    """`[m, l, j]` to `[m, s, j, r]` with `l = 2 r + s`, zero-padded, as JAX array."""
    size = table.shape[0]
    table = np.pad(table, ((0, 0), (0, size % 2), (0, 0)))
    table = table.reshape(size, -1, 2, table.shape[-1]).transpose(0, 2, 3, 1)
    return jnp.asarray(np.ascontiguousarray(table), jnp.result_type(float))


def _swap_odd_orders(rows):
    """Exchange parity and degree-parity: harmonics are even where l + m is even."""
    odd = (np.arange(rows.shape[0]) % 2 == 1).reshape(-1, 1, 1, 1)
    return jnp.where(odd, jnp.flip(rows, 1), rows)
