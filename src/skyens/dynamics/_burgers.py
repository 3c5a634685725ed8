"""Burgers' equation: waves that steepen until viscosity holds them."""

import numpy as np
from jaxtyping import Array, Float

from skyens.dynamics._periodic_line import PeriodicLine


class Burgers(PeriodicLine):
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
        super().__init__(size, length, dt, uux, uuux, -viscosity, uxxx, 0.0)
