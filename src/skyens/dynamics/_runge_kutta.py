"""The classical Runge-Kutta method, with damping beside it."""

import jax


def runge_kutta_step(tendency, x, step: float):
    """Return the array `x` one `step` later, with a local error of `step**5`.

    Source: Kutta (1901), Z. Math. Phys. 46, 435-453.
    """
    k1 = tendency(x)
    k2 = tendency(x + step / 2 * k1)
    k3 = tendency(x + step / 2 * k2)
    k4 = tendency(x + step * k3)
    return x + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def runge_kutta(tendency, state, *, step: float, steps: int, damp):
    """Return the coefficients after so many `step`s, each followed by `damp`.

    `damp` multiplies each degree, `(l, 1)`: what is linear and diagonal, exactly.
    """

    def advance(x, _):
        return damp * runge_kutta_step(tendency, x, step), None

    return jax.lax.scan(advance, state, None, length=steps)[0]
