"""The classical Runge-Kutta method, with damping beside it."""

import jax


def runge_kutta(tendency, state, *, step: float, steps: int, damp):
    """Return the coefficients after so many `step`s, each followed by `damp`.

    `damp` multiplies each degree, `(l, 1)`: what is linear and diagonal, exactly.

    Source: Kutta (1901), Z. Math. Phys. 46, 435-453.
    """

    def advance(x, _):
        k1 = tendency(x)
        k2 = tendency(x + step / 2 * k1)
        k3 = tendency(x + step / 2 * k2)
        k4 = tendency(x + step * k3)
        return damp * (x + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)), None

    return jax.lax.scan(advance, state, None, length=steps)[0]
