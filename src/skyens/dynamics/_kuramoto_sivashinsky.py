"""The Kuramoto-Sivashinsky equation: the simplest chaos of a field."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from skyens.dynamics._checks import check_time_step
from skyens.dynamics._periodic_line import (
    advance_line,
    optional,
    wave_tables,
    wavenumbers,
)


class KuramotoSivashinsky(eqx.Module):
    """One step `dt` of the Kuramoto-Sivashinsky equation on a periodic line.

        du/dt = -(uux u u_x + uuux u^2 u_x + uxx u_xx + uxxx u_xxx + uxxxx u_xxxx)

    All is dimensionless; with 1, 0, 1, 0 and 1 it is the usual equation, and each
    coefficient is a switch: a model whose coefficient is 0 lacks the term. Spectral in
    space, products without aliasing; in time the linear terms exactly
    and the other by a Runge-Kutta scheme of fourth order (ETDRK4). A `forcing`, where
    given, is added to the tendency, constant over the step. The mean of u stays.

    The coefficients may be traced: to differentiate in them, or to give each member its
    own, build the equation inside of `jax.grad` or `jax.vmap`. Its tables are built in
    float64 where the coefficients are known.

    Source: Kassam & Trefethen (2005), SIAM J. Sci. Comput. 26, 1214-1233.
    """

    uux: Float[Array, ""]
    uuux: Float[Array, ""] | None
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
        uuux: float | Float[Array, ""] = 0.0,
    ):
        """Set grid, step and coefficients.

        Args:
            size: the number of equidistant points.
            length: of the line.
            dt: the step; up to about 0.5.
            uux: coefficient of advection,
            uxx: of the second derivative, which feeds long waves where positive,
            uxxx: of the third, which disperses,
            uxxxx: of the fourth, which damps short waves where positive, and
            uuux: of advection by the square of u. A known 0 costs nothing.

        Raises:
            ValueError: `size` is below 8, or `length` or `dt` is not positive.
        """
        if size < 8 or not length > 0:
            raise ValueError(
                "`size` must be at least 8 and `length` positive, got "
                f"{size} and {length}."
            )
        self.size, self.length, self.dt = size, float(length), check_time_step(dt)
        self.uux, self.uuux = jnp.asarray(uux, float), optional(uuux)
        self.tables = wave_tables(self.wavenumbers, self.dt, uxx, uxxx, uxxxx)

    @property
    def points(self) -> np.ndarray:
        """Where u is, from 0."""
        return np.arange(self.size) * self.length / self.size

    @property
    def wavenumbers(self) -> np.ndarray:
        """Angular wavenumbers of the half spectrum."""
        return wavenumbers(self.size, self.length)

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
        return advance_line(
            self.tables, self.uux, self.uuux, self.length, state, forcing, self.size
        )
