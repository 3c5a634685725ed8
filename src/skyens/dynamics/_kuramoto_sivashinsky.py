"""The Kuramoto-Sivashinsky equation: the simplest chaos of a field."""

import numpy as np
from jaxtyping import Array, Float

from skyens.dynamics._periodic_line import PeriodicLine


class KuramotoSivashinsky(PeriodicLine):
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
        super().__init__(size, length, dt, uux, uuux, uxx, uxxx, uxxxx)
