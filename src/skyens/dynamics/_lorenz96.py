"""The Lorenz (1996) models: waves around a circle of latitude, of one scale or two."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from skyens.dynamics._checks import check_shape, check_time_step
from skyens.dynamics._runge_kutta import runge_kutta_step


class Lorenz96(eqx.Module):
    """One step `dt` of the model of Lorenz (1996), classical Runge-Kutta.

        dx_i/dt = (x_{i+1} - x_{i-2}) x_{i-1} - x_i + F,

    periodic in i, all dimensionless; 0.05 of time are about six hours. A `forcing`,
    where given, is added to the tendency, constant over the step. With 40 variables and
    F = 8 the largest Lyapunov exponent is 1.67, and 13 are positive.

    Source: Lorenz (1996), ECMWF Seminar on Predictability; Lorenz & Emanuel (1998),
    J. Atmos. Sci. 55, 399-414.
    """

    forcing: Float[Array, "*site"]
    size: int = eqx.field(static=True)
    dt: float = eqx.field(static=True)

    def __init__(
        self,
        size: int = 40,
        forcing: float | Float[Array, "*site"] = 8.0,
        dt: float = 0.05,
    ):
        """Set the model.

        Args:
            size: the number of variables.
            forcing: F, one number or one for each variable; a leaf to differentiate.
            dt: the step; 0.05 is usual.

        Raises:
            ValueError: `size` is below 4, `dt` is not positive, or `forcing` has
                another shape.
        """
        if size < 4:
            raise ValueError(f"`size` must be at least 4, got {size}.")
        self.forcing = jnp.asarray(forcing, float)
        if self.forcing.shape not in ((), (size,)):
            raise ValueError(
                f"`forcing` must be one number or {size}, got the shape "
                f"{self.forcing.shape}."
            )
        self.size, self.dt = size, check_time_step(dt)

    def __call__(
        self,
        state: Float[Array, "site"],
        forcing: Float[Array, "site"] | None = None,
        *,
        key=None,
    ) -> Float[Array, "site"]:
        """Return the state `dt` later, in its dtype.

        Raises:
            ValueError: the state has not `size` variables.
        """
        state = check_shape("state", state, (self.size,))
        drive = jnp.broadcast_to(self.forcing.astype(state.dtype), state.shape)
        if forcing is not None:
            drive = drive + forcing.astype(state.dtype)
        return _step(state, drive, self.dt)

    def tendency(self, state: Float[Array, "site"]) -> Float[Array, "site"]:
        """Return the time derivative of the state."""
        drive = jnp.broadcast_to(self.forcing.astype(state.dtype), state.shape)
        return _advection(state) - state + drive


class TwoScaleLorenz96(eqx.Module):
    """One step `dt` of the two-scale model of Lorenz (1996), classical Runge-Kutta.

    The state is `{"slow": X (site,), "fast": Y (site, fast)}`, all dimensionless:

        dX_k/dt = (X_{k+1} - X_{k-2}) X_{k-1} - X_k + F - h c / b sum_j Y_{k,j}
        dY_j/dt = c b (Y_{j-1} - Y_{j+2}) Y_{j+1} - c Y_j + h c / b X_k

    where j runs through all sectors, around the circle. A `forcing` of the state's
    structure, where given, is added to the tendency, constant over the step.
    `Lorenz96` of the same size is the model that does not know the fast variables.

    Source: Lorenz (1996), ECMWF Seminar on Predictability; the setting is that of Wilks
    (2005), Q. J. R. Meteorol. Soc. 131, 389-407.
    """

    forcing: Float[Array, ""]
    coupling: Float[Array, ""]
    amplitude: Float[Array, ""]
    speed: Float[Array, ""]
    size: int = eqx.field(static=True)
    fast: int = eqx.field(static=True)
    dt: float = eqx.field(static=True)

    def __init__(
        self,
        size: int = 8,
        fast: int = 32,
        forcing: float | Float[Array, ""] = 20.0,
        dt: float = 0.005,
        *,
        coupling: float | Float[Array, ""] = 1.0,
        amplitude: float | Float[Array, ""] = 10.0,
        speed: float | Float[Array, ""] = 10.0,
    ):
        """Set the model; its parameters are leaves to differentiate.

        Args:
            size: the number of slow variables.
            fast: the number of fast variables for each slow one.
            forcing: F.
            dt: the step; fast variables are unstable much above 0.005.
            coupling: h.
            amplitude: b, how much larger slow variables are.
            speed: c, how much slower they are.

        Raises:
            ValueError: `size` or `size * fast` is below 4, or `dt` is not positive.
        """
        if size < 4 or fast < 1:
            raise ValueError(
                f"`size` must be at least 4 and `fast` 1, got {size} and {fast}."
            )
        self.forcing = jnp.asarray(forcing, float)
        self.coupling = jnp.asarray(coupling, float)
        self.amplitude = jnp.asarray(amplitude, float)
        self.speed = jnp.asarray(speed, float)
        self.size, self.fast, self.dt = size, fast, check_time_step(dt)

    def __call__(
        self,
        state: dict[str, Float[Array, "..."]],
        forcing: dict[str, Float[Array, "..."]] | None = None,
        *,
        key=None,
    ) -> dict[str, Float[Array, "..."]]:
        """Return the state `dt` later, in its dtype.

        Raises:
            ValueError: the state has not `size` slow and `(size, fast)` fast variables.
        """
        slow = check_shape("state['slow']", state["slow"], (self.size,))
        fast = check_shape("state['fast']", state["fast"], (self.size, self.fast))
        joined = _join({"slow": slow, "fast": fast})
        push = 0 if forcing is None else _join(forcing).astype(joined.dtype)
        tendency = lambda x: _join(self.tendency(_part(x))) + push
        return _part(runge_kutta_step(tendency, joined, self.dt))

    def tendency(
        self, state: dict[str, Float[Array, "..."]]
    ) -> dict[str, Float[Array, "..."]]:
        """Return the time derivative of the state."""
        x, y = state["slow"], state["fast"]
        parameters = self.forcing, self.coupling, self.amplitude, self.speed
        drive, coupling, amplitude, speed = (p.astype(x.dtype) for p in parameters)
        exchange = coupling * speed / amplitude
        slow = _advection(x) - x + drive - exchange * jnp.sum(y, axis=1)
        # What advects the slow eastward advects the fast westward.
        around = _advection(y.reshape(-1)[::-1])[::-1].reshape(y.shape)
        fast = speed * amplitude * around - speed * y + exchange * x[:, None]
        return {"slow": slow, "fast": fast}


def _step(state, drive, dt):
    """One step of Runge and Kutta, on a circle that is cut open once.

    Each stage needs two neighbours to the west and one to the east. With those of all
    four in place from the start no stage has to close the circle again, which costs
    more than the arithmetic.
    """
    x, drive = (jnp.pad(v, (8, 4), mode="wrap") for v in (state, drive))
    within = lambda v, stage: v[2 * stage : len(v) - stage]
    tendency = lambda x, drive: (x[3:] - x[:-3]) * x[1:-2] - x[2:-1] + drive
    k1 = tendency(x, within(drive, 1))
    k2 = tendency(within(x, 1) + dt / 2 * k1, within(drive, 2))
    k3 = tendency(within(x, 2) + dt / 2 * k2, within(drive, 3))
    k4 = tendency(within(x, 3) + dt * k3, within(drive, 4))
    total = within(k1, 3) + 2 * within(k2, 2) + 2 * within(k3, 1) + k4
    return state + dt / 6 * total


def _advection(x):
    return (jnp.roll(x, -1) - jnp.roll(x, 2)) * jnp.roll(x, 1)


def _join(state):
    return jnp.concatenate([state["slow"][:, None], state["fast"]], axis=1)


def _part(joined):
    return {"slow": joined[:, 0], "fast": joined[:, 1:]}
