"""The Lorenz (1963) model: three equations, one butterfly."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from skyens.dynamics._checks import check_shape, check_time_step
from skyens.dynamics._runge_kutta import runge_kutta_step


class Lorenz63(eqx.Module):
    """One step `dt` of the model of Lorenz (1963), classical Runge-Kutta.

    The state is `(x, y, z)`, all dimensionless, time too:

        dx/dt = sigma (y - x),  dy/dt = x (rho - z) - y,  dz/dt = x y - beta z.

    A `forcing`, where given, is added to the tendency, constant over the step. With
    the default parameters the largest Lyapunov exponent is 0.906; the usual step is
    0.01, and 0.05 is near the limit of stability.

    Source: Lorenz (1963), J. Atmos. Sci. 20, 130-141.
    """

    sigma: Float[Array, ""]
    rho: Float[Array, ""]
    beta: Float[Array, ""]
    dt: float = eqx.field(static=True)

    def __init__(
        self,
        dt: float = 0.01,
        *,
        sigma: float | Float[Array, ""] = 10.0,
        rho: float | Float[Array, ""] = 28.0,
        beta: float | Float[Array, ""] = 8 / 3,
    ):
        """Set the step `dt` and the parameters, which are leaves to differentiate.

        Raises:
            ValueError: `dt` is not positive.
        """
        self.dt = check_time_step(dt)
        self.sigma = jnp.asarray(sigma, float)
        self.rho = jnp.asarray(rho, float)
        self.beta = jnp.asarray(beta, float)

    def __call__(
        self,
        state: Float[Array, "variable"],
        forcing: Float[Array, "variable"] | None = None,
        *,
        key=None,
    ) -> Float[Array, "variable"]:
        """Return the state `dt` later, in its dtype.

        Raises:
            ValueError: the state has not three variables.
        """
        state = check_shape("state", state, (3,))
        push = 0 if forcing is None else forcing.astype(state.dtype)
        return runge_kutta_step(lambda x: self.tendency(x) + push, state, self.dt)

    def tendency(self, state: Float[Array, "variable"]) -> Float[Array, "variable"]:
        """Return the time derivative of the state, unforced."""
        x, y, z = state
        parameters = self.sigma, self.rho, self.beta
        sigma, rho, beta = (p.astype(state.dtype) for p in parameters)
        return jnp.stack([sigma * (y - x), x * (rho - z) - y, x * y - beta * z])
