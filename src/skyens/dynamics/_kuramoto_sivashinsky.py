"""The Kuramoto-Sivashinsky equation: the simplest chaos of a field."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float

from skyens.dynamics._checks import check_shape, check_time_step

_ROOTS = 64  # points of the contour integral


class KuramotoSivashinsky(eqx.Module):
    """One step `dt` of the Kuramoto-Sivashinsky equation on a periodic line.

        du/dt = -(uux u u_x + uxx u_xx + uxxx u_xxx + uxxxx u_xxxx)

    All is dimensionless; with 1, 1, 0 and 1 it is the usual equation. Spectral in
    space, products without aliasing (the 3/2 rule); in time the linear terms exactly
    and the other by a Runge-Kutta scheme of fourth order (ETDRK4). A `forcing`, where
    given, is added to the tendency, constant over the step. The mean of u stays.

    The coefficients may be traced: to differentiate in them, or to give each member its
    own, build the equation inside of `jax.grad` or `jax.vmap`. Its tables are built in
    float64 where the coefficients are known.

    Source: Kassam & Trefethen (2005), SIAM J. Sci. Comput. 26, 1214-1233.
    """

    uux: Float[Array, ""]
    tables: Float[Array, "6 part wavenumber"] = eqx.field(metadata={"trainable": False})
    size: int = eqx.field(static=True)
    length: float = eqx.field(static=True)
    dt: float = eqx.field(static=True)

    def __init__(
        self,
        size: int = 128,
        length: float = 32 * np.pi,
        dt: float = 0.5,
        *,
        uux: float | Float[Array, ""] = 1.0,
        uxx: float | Float[Array, ""] = 1.0,
        uxxx: float | Float[Array, ""] = 0.0,
        uxxxx: float | Float[Array, ""] = 1.0,
    ):
        """Set grid, step and coefficients.

        Args:
            size: the number of equidistant points.
            length: of the line.
            dt: the step; up to about 0.5.
            uux: coefficient of advection,
            uxx: of the second derivative, which feeds long waves where positive,
            uxxx: of the third, which disperses, and
            uxxxx: of the fourth, which damps short waves where positive.

        Raises:
            ValueError: `size` is below 8, or `length` or `dt` is not positive.
        """
        if size < 8 or not length > 0:
            raise ValueError(
                "`size` must be at least 8 and `length` positive, got "
                f"{size} and {length}."
            )
        self.size, self.length, self.dt = size, float(length), check_time_step(dt)
        self.uux = jnp.asarray(uux, float)
        self.tables = _tables(self.wavenumbers, self.dt, (uxx, uxxx, uxxxx))

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
        """Return the state `dt` later, in its dtype.

        Raises:
            ValueError: the state has not `size` points.
        """
        check_shape("state", state, (self.size,))
        kept = state.dtype
        if jnp.finfo(kept).bits < 32:  # transforms know no 16-bit numbers
            state = state.astype(jnp.float32)
        real = self.tables.astype(state.dtype)
        whole, half, q, f1, f2, f3 = lax.complex(real[:, 0], real[:, 1])
        # Half as many points again hold a square without aliasing. The shortest wave of
        # an even number of points has no derivative there.
        fine = -(-3 * self.size // 2)
        resolved = np.arange(len(whole)) * 2 < self.size
        slope = np.where(resolved, -0.5j * self.wavenumbers, 0) * (fine / self.size)
        slope = jnp.asarray(slope, whole.dtype) * self.uux.astype(whole.dtype)
        push = 0 if forcing is None else jnp.fft.rfft(forcing.astype(state.dtype))

        def nonlinear(v):
            u = jnp.fft.irfft(jnp.where(resolved, v, 0), fine)
            return slope * jnp.fft.rfft(u**2)[: len(v)] + push

        start = jnp.fft.rfft(state)
        at_start = nonlinear(start)
        a = half * start + q * at_start
        at_a = nonlinear(a)
        b = half * start + q * at_a
        at_b = nonlinear(b)
        c = half * a + q * (2 * at_b - at_start)
        end = whole * start + f1 * at_start + 2 * f2 * (at_a + at_b) + f3 * nonlinear(c)
        return jnp.fft.irfft(end, self.size).astype(kept)


def _tables(wavenumbers, dt, coefficients) -> Float[Array, "6 part wavenumber"]:
    """Exponentials and weights of ETDRK4, real and imaginary parts.

    The weights have removable singularities at 0; means over a circle about each point
    have none (Cauchy).
    """
    traced = any(isinstance(c, Tracer) for c in coefficients)
    xp = jnp if traced else np
    second, third, fourth = (xp.asarray(c, float) for c in coefficients)
    real = second * wavenumbers**2 - fourth * wavenumbers**4
    imaginary = third * wavenumbers**3
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
