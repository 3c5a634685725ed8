"""Burgers' equation: waves that steepen until viscosity holds them."""

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


class Burgers(eqx.Module):
    """One step `dt` of Burgers' equation on a periodic line.

        du/dt = -uux u u_x - uuux u^2 u_x - uxxx u_xxx + viscosity u_xx

    All is dimensionless; with 1, 0, 0 and a viscosity it is the usual equation, with a
    third derivative that of Korteweg, de Vries and Burgers. Spectral in space, products
    without aliasing; in time the linear terms exactly and the others by a Runge-Kutta
    scheme of fourth order (ETDRK4). A `forcing`, where given, is added to the tendency,
    constant over the step. The mean of u stays. Fronts are about `viscosity` over their
    jump in u wide, and some points must lie in them.

    The coefficients may be traced: to differentiate in them, or to give each member its
    own, build the equation inside of `jax.grad` or `jax.vmap`.

    Source: Burgers (1948), Adv. Appl. Mech. 1, 171-199; the scheme, Kassam & Trefethen
    (2005), SIAM J. Sci. Comput. 26, 1214-1233.
    """

    uux: Float[Array, ""]
    uuux: Float[Array, ""] | None
    tables: Float[Array, "6 part wavenumber"] = eqx.field(metadata={"trainable": False})
    size: int = eqx.field(static=True)
    length: float = eqx.field(static=True)
    dt: float = eqx.field(static=True)

    def __init__(
        self,
        size: int = 256,
        length: float = 2 * np.pi,
        dt: float = 0.005,
        *,
        uux: float | Float[Array, ""] = 1.0,
        viscosity: float | Float[Array, ""] = 0.05,
        uxxx: float | Float[Array, ""] = 0.0,
        uuux: float | Float[Array, ""] = 0.0,
    ):
        """Set grid, step and coefficients.

        Args:
            size: the number of equidistant points.
            length: of the line.
            dt: the step; stable up to about `length / (size max|uux u|)`.
            uux: coefficient of advection,
            viscosity: of the second derivative, which damps,
            uxxx: of the third, which disperses, and
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
        numbers = wavenumbers(self.size, self.length)
        self.tables = wave_tables(numbers, self.dt, -viscosity, uxxx, 0.0)

    @property
    def points(self) -> np.ndarray:
        """Where u is, from 0."""
        return np.arange(self.size) * self.length / self.size

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
