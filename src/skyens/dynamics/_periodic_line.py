"""Steps of equations on a periodic line: waves exactly, fluxes by Runge and Kutta."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float

from skyens.dynamics._checks import check_shape, check_time_step

_ROOTS = 64  # points of the contour integral


class PeriodicLine(eqx.Module):
    """One step of an equation with advection and linear terms, by ETDRK4.

        du/dt = -(uux u u_x + uuux u^2 u_x + second u_xx + third u_xxx + fourth u_xxxx)

    Source: Kassam & Trefethen (2005), SIAM J. Sci. Comput. 26, 1214-1233.
    """

    uux: Float[Array, ""]
    uuux: Float[Array, ""] | None
    tables: Float[Array, "6 part wavenumber"] = eqx.field(metadata={"trainable": False})
    size: int = eqx.field(static=True)
    length: float = eqx.field(static=True)
    dt: float = eqx.field(static=True)

    def __init__(self, size: int, length: float, dt: float, uux, uuux, *linear):
        """Set grid, step and coefficients, those of the second derivative onward last.

        Raises:
            ValueError: `size` is below 8, or `length` or `dt` is not positive.
        """
        if size < 8 or not length > 0:
            raise ValueError(
                "`size` must be at least 8 and `length` positive, got "
                f"{size} and {length}."
            )
        self.size, self.length, self.dt = size, float(length), check_time_step(dt)
        self.uux, self.uuux = jnp.asarray(uux, float), _optional(uuux)
        self.tables = _wave_tables(self.wavenumbers, self.dt, *linear)

    @property
    def points(self) -> np.ndarray:
        """Where u is, from 0."""
        return np.arange(self.size) * self.length / self.size

    @property
    def wavenumbers(self) -> np.ndarray:
        """Angular wavenumbers of the half spectrum."""
        return 2 * np.pi / self.length * np.arange(self.size // 2 + 1)

    def __call__(
        self,
        state: Float[Array, "x"],
        forcing: Float[Array, "x"] | None = None,
        *,
        key=None,
    ) -> Float[Array, "x"]:
        """Return the state `dt` later, in its dtype; `forcing` is constant over it.

        Products are free of aliasing.

        Raises:
            ValueError: the state has not `size` points.
        """
        size = self.size
        state = check_shape("state", state, (size,))
        kept = state.dtype
        if jnp.finfo(kept).bits < 32:  # transforms know no 16-bit numbers
            state = state.astype(jnp.float32)
        real = self.tables.astype(state.dtype)
        whole, half, q, f1, f2, f3 = lax.complex(real[:, 0], real[:, 1])
        # Half as many points again hold a square without aliasing, twice as many a
        # cube. The shortest wave of an even number of points has no derivative there.
        fine = -(-3 * size // 2) if self.uuux is None else 2 * size
        resolved = np.arange(len(whole)) * 2 < size
        slope = np.where(resolved, -0.5j * self.wavenumbers, 0) * (fine / size)
        slope = jnp.asarray(slope, whole.dtype) * self.uux.astype(whole.dtype)
        push = 0 if forcing is None else jnp.fft.rfft(forcing.astype(state.dtype))
        if self.uuux is not None:
            cubic = np.where(resolved, -1j / 3 * self.wavenumbers, 0)
            cubic = jnp.asarray(cubic * (fine / size) ** 2, whole.dtype)
            cubic = cubic * self.uuux.astype(whole.dtype)

        def nonlinear(v):
            u = jnp.fft.irfft(jnp.where(resolved, v, 0), fine)
            change = slope * jnp.fft.rfft(u**2)[: len(v)] + push
            if self.uuux is not None:
                change = change + cubic * jnp.fft.rfft(u**3)[: len(v)]
            return change

        start = jnp.fft.rfft(state)
        at_start = nonlinear(start)
        a = half * start + q * at_start
        at_a = nonlinear(a)
        b = half * start + q * at_a
        at_b = nonlinear(b)
        c = half * a + q * (2 * at_b - at_start)
        end = whole * start + f1 * at_start + 2 * f2 * (at_a + at_b) + f3 * nonlinear(c)
        return jnp.fft.irfft(end, size).astype(kept)


def _optional(coefficient) -> Float[Array, ""] | None:
    """Return a coefficient as a leaf, or None where it is known to be 0.

    A term that is None costs nothing.
    """
    known = not isinstance(coefficient, Tracer)
    if known and np.ndim(coefficient) == 0 and coefficient == 0:
        return None
    return jnp.asarray(coefficient, float)


def _wave_tables(
    numbers: np.ndarray, dt: float, second, third, fourth
) -> Float[Array, "6 part wavenumber"]:
    """Exponentials and weights of ETDRK4, real and imaginary parts.

    They belong to `du/dt = -(second u_xx + third u_xxx + fourth u_xxxx)` and a rest.
    The weights have removable singularities at 0; means over a circle about each point
    have none (Cauchy). The tables are built in float64 where the coefficients are
    known.
    """
    coefficients = second, third, fourth
    traced = any(isinstance(c, Tracer) for c in coefficients)
    xp = jnp if traced else np
    second, third, fourth = (xp.asarray(c, float) for c in coefficients)
    real = second * numbers**2 - fourth * numbers**4
    imaginary = third * numbers**3
    circle = np.exp(2j * np.pi * (np.arange(_ROOTS) + 0.5) / _ROOTS)
    z = dt * lax.complex(real, imaginary) if traced else dt * (real + 1j * imaginary)
    r = z[:, None] + xp.asarray(circle, z.dtype)[None, :]
    e = xp.exp(r)
    mean = lambda values: dt * xp.mean(values, axis=1)
    tables = xp.stack(
        [
            xp.exp(z),
            xp.exp(z / 2),
            mean((xp.exp(r / 2) - 1) / r),
            mean((-4 - r + e * (4 - 3 * r + r**2)) / r**3),
            mean((2 + r + e * (r - 2)) / r**3),
            mean((-4 - 3 * r - r**2 + e * (4 - r)) / r**3),
        ]
    )
    return jnp.asarray(xp.stack([xp.real(tables), xp.imag(tables)], axis=1), float)
