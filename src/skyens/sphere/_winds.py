"""Between vectors on the sphere and the potentials, vorticity and divergence of them.

With `theta` the colatitude and a wind `u` to the east and `v` to the north,

    a u = d psi/d theta + (1 / sin theta) d chi/d lambda
    a v = (1 / sin theta) d psi/d lambda - d chi/d theta

for a streamfunction `psi` and a velocity potential `chi`. `sin(theta)` times either
component is a scalar with one degree more than the potentials, summed by the scalar
transform; what is special here are the poles and that one degree.

Source: Temperton (1991), Mon. Wea. Rev. 119, 1303-1307.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

from skyens.sphere._grid import Grid
from skyens.sphere._legendre import pole_slopes


def slope(c):
    """`sin(theta) d/dtheta` of coefficients to `lmax`: those to `lmax + 1`."""
    raised, lowered = _slope_factors(c.shape[-1])
    lead = ((0, 0),) * (c.ndim - 2)
    up = jnp.pad(c * like(raised, c), (*lead, (1, 0), (0, 0)))
    down = jnp.pad((c * like(lowered, c))[..., 1:, :], (*lead, (0, 2), (0, 0)))
    return up - down


def slope_adjoint(c):
    """Degrees 0 to `lmax` of the adjoint of `slope`, of coefficients to `lmax + 1`."""
    raised, lowered = _slope_factors(c.shape[-1])
    up = c[..., 1:, :]
    down = jnp.pad(c[..., :-2, :], (*((0, 0),) * (c.ndim - 2), (1, 0), (0, 0)))
    return up * like(raised, up) - down * like(lowered, down)


def eastward(c):
    """`d/dlambda` of coefficients."""
    return c * like(1j * np.arange(c.shape[-1])[None], c)


def inverse_sine(grid: Grid) -> np.ndarray:
    """`1 / sin(theta)` by row, and 0 at the poles: those are added by themselves."""
    sine = np.sin(grid.colatitude)
    if grid.kind == "equiangular":
        sine[[0, -1]] = np.inf
    return 1 / sine


def at_poles(grid: Grid, streamfunction, potential, precision):
    """The wind at both pole rows, `(u and v, ..., pole, longitude)`.

    Order 1 is the only one that is not 0 there; its limits are those along meridians.
    """
    slopes, quotients = _pole_limits(grid, potential.shape[-1] - 1, potential.dtype)
    at = lambda table, c: jnp.einsum(
        "pl,...l->...p", table, c[..., 1], precision=precision
    )
    u, v = 1j * at(quotients, potential), -at(slopes, potential)
    if streamfunction is not None:
        u = u + at(slopes, streamfunction)
        v = v + 1j * at(quotients, streamfunction)
    both = jnp.stack([u, v])[..., None]
    angle = np.deg2rad(grid.longitude)[None]
    return 2 * (both * like(np.exp(1j * angle), both)).real


def from_poles(grid: Grid, both, lmax: int, precision):
    """What the pole rows of a weighted wind add to order 1: the adjoint of `at_poles`.

    Two coefficients `(..., l)`, to be taken for the streamfunction and the potential.
    """
    ends = both[..., jnp.asarray([0, -1]), :]
    ends = lax.complex(ends, jnp.zeros_like(ends))
    turn = np.exp(-1j * np.deg2rad(grid.longitude))[None]
    rows = (ends * like(turn, ends)).sum(-1)
    slopes, quotients = _pole_limits(grid, lmax, rows.dtype)
    of = lambda table, c: jnp.einsum("pl,...p->...l", table, c, precision=precision)
    x, y = rows
    return of(slopes, x) - 1j * of(quotients, y), -1j * of(quotients, x) - of(slopes, y)


def _pole_limits(grid: Grid, lmax: int, dtype):
    """Limits of order 1, `(d/dtheta, 1/sin(theta))`, at the first and the last row."""
    north = pole_slopes(lmax)
    south = north * (-1.0) ** np.arange(north.size)
    slopes, quotients = np.stack([north, south]), np.stack([north, -south])
    if not grid.north_first:
        slopes, quotients = slopes[::-1], quotients[::-1]
    return jnp.asarray(slopes, dtype), jnp.asarray(quotients, dtype)


def _slope_factors(size: int) -> tuple[np.ndarray, np.ndarray]:
    """`sin(theta) dY_l/dtheta = l e_{l+1} Y_{l+1} - (l + 1) e_l Y_{l-1}`, `(l, m)`.

    With `e_l = sqrt((l^2 - m^2) / (4 l^2 - 1))`. Source: DLMF 14.10.5.
    """
    l, m = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    e = lambda l: np.sqrt(np.maximum(l**2 - m**2, 0) / np.maximum(4 * l**2 - 1, 1))
    inside = l >= m
    return inside * l * e(l + 1), inside * (l + 1) * e(l)


def like(factors: np.ndarray, array):
    """Constants in the dtype and rank of `array`."""
    shape = (1,) * (array.ndim - factors.ndim) + factors.shape
    return jnp.asarray(factors.reshape(shape), array.dtype)
