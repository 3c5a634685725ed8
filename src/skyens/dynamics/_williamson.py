"""Flows that every shallow-water model is tried on, as fields on a grid.

Winds in m s-1, heights in m. The first tests fixed the planet: pass
`radius=6.37122e6, rotation=7.292e-5, gravity=9.80616` to meet their numbers.

Source: Williamson, Drake, Hack, Jakob & Swarztrauber (1992), J. Comput. Phys. 102,
211-224; Galewsky, Scott & Polvani (2004), Tellus 56A, 429-440.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from skyens.dynamics._barotropic import EARTH_RADIUS, EARTH_ROTATION
from skyens.dynamics._height import STANDARD_GRAVITY
from skyens.dynamics._shallow_water import ShallowWater
from skyens.dynamics._shallow_water_state import ShallowWaterState
from skyens.sphere import GaussianRandomField, Grid

Field = Float[Array, "latitude longitude"]


def solid_rotation(
    grid: Grid,
    *,
    speed: float = 2 * np.pi * 6.37122e6 / (12 * 86_400),
    height: float = 2.94e4 / 9.80616,
    tilt: float = 0.0,
    radius: float = EARTH_RADIUS,
    rotation: float = EARTH_ROTATION,
    gravity: float = STANDARD_GRAVITY,
) -> tuple[Field, Field, Field]:
    """Return `(u, v, height)` of an atmosphere that turns as a solid: a steady flow.

    Its axis is tilted by `tilt` degrees from the grid's, like the planet's: give
    `ShallowWater` the same. The defaults are those of tests 1 and 2, a turn in 12 days;
    test 5 has `speed=20.0, height=5960.0` (height at the equator).
    """
    latitude, longitude = _angles(grid)
    angle = np.deg2rad(tilt)
    u = np.cos(latitude) * np.cos(angle)
    u = speed * (u + np.sin(latitude) * np.cos(longitude) * np.sin(angle))
    v = -speed * np.sin(longitude) * np.sin(angle) + 0 * latitude
    sine = np.sin(latitude) * np.cos(angle)
    sine = sine - np.cos(latitude) * np.cos(longitude) * np.sin(angle)
    drop = (radius * rotation * speed + speed**2 / 2) / gravity
    return _field(u), _field(v), _field(height - drop * sine**2)


def cosine_bell(
    grid: Grid,
    *,
    latitude: float = 0.0,
    longitude: float = 270.0,
    width: float = np.rad2deg(1 / 3),
    height: float = 1000.0,
) -> Field:
    """Return the tracer of test 1: a bell of `width` degrees about a point."""
    distance = _distance(grid, latitude, longitude)
    bell = height / 2 * (1 + np.cos(np.pi * distance / np.deg2rad(width)))
    return _field(np.where(distance < np.deg2rad(width), bell, 0))


def isolated_mountain(grid: Grid, *, height: float = 2000.0) -> Field:
    """Return the orography of test 5: a cone of 20 degrees at 30 N, 90 W."""
    latitude, longitude = _angles(grid)
    east = np.mod(longitude - 1.5 * np.pi + np.pi, 2 * np.pi) - np.pi
    distance = np.hypot(east, latitude - np.pi / 6)
    return _field(height * np.maximum(1 - distance / (np.pi / 9), 0))


def rossby_haurwitz_wave(
    grid: Grid,
    *,
    wavenumber: int = 4,
    rate: float = 7.848e-6,
    height: float = 8000.0,
    radius: float = EARTH_RADIUS,
    rotation: float = EARTH_ROTATION,
    gravity: float = STANDARD_GRAVITY,
) -> tuple[Field, Field, Field]:
    """Return `(u, v, height)` of test 6: a wave that moves east and keeps its shape.

    `rate` (s-1) is both the solid rotation's and the wave's, `height` that of the
    poles. It does so exactly only where there is no divergence.
    """
    latitude, longitude = _angles(grid)
    c, s, n = np.cos(latitude), np.sin(latitude), wavenumber
    ring = c ** (n - 1)
    u = radius * rate * (c + ring * (n * s**2 - c**2) * np.cos(n * longitude))
    v = -radius * rate * n * ring * s * np.sin(n * longitude)
    zonal = rate / 2 * (2 * rotation + rate) * c**2
    squares = (n + 1) * c**2 + (2 * n**2 - n - 2)
    zonal = zonal + rate**2 / 4 * (c ** (2 * n) * squares - 2 * n**2 * ring**2)
    once = 2 * (rotation + rate) * rate / ((n + 1) * (n + 2)) * c**n
    once = once * ((n**2 + 2 * n + 2) - (n + 1) ** 2 * c**2)
    twice = rate**2 / 4 * c ** (2 * n) * ((n + 1) * c**2 - (n + 2))
    wave = once * np.cos(n * longitude) + twice * np.cos(2 * n * longitude)
    surface = height + radius**2 / gravity * (zonal + wave)
    return _field(u), _field(v), _field(surface)


def galewsky_jet(
    grid: Grid,
    *,
    perturbation: float = 120.0,
    speed: float = 80.0,
    height: float = 10_000.0,
    radius: float = EARTH_RADIUS,
    rotation: float = EARTH_ROTATION,
    gravity: float = STANDARD_GRAVITY,
) -> tuple[Field, Field, Field]:
    """Return `(u, v, height)` of a balanced jet at 45 N that barotropy makes unstable.

    A bump of height of `perturbation` m at 0 E sets the instability off: within six
    days the jet rolls up. `height` is the mean of the global layer without it.
    """
    latitude, longitude = _angles(grid)
    south, north = np.pi / 7, np.pi / 2 - np.pi / 7
    peak = np.exp(-4 / (north - south) ** 2)

    def jet(y):
        inside = (y > south) & (y < north)
        shape = np.exp(1 / np.where(inside, (y - south) * (y - north), -1))
        return np.where(inside, speed / peak * shape, 0)

    node, weight = np.polynomial.legendre.leggauss(400)

    def fall(y):  # of height from the south to `y`
        half = (np.clip(y, south, north) - south)[..., None] / 2
        at = south + half * (1 + node)
        force = jet(at) * (2 * rotation * np.sin(at) + np.tan(at) * jet(at) / radius)
        return radius / gravity * (half * force) @ weight

    mean = fall(np.arcsin(node)) @ weight / 2
    east = np.mod(longitude + np.pi, 2 * np.pi) - np.pi
    bump = np.exp(-((3 * east) ** 2) - (15 * (np.pi / 4 - latitude)) ** 2)
    surface = height + mean - fall(latitude[:, 0])[:, None]
    surface = surface + perturbation * np.cos(latitude) * bump
    u = jet(latitude) + 0 * longitude
    return _field(u), _field(0 * u), _field(surface)


def random_flow(
    model: ShallowWater,
    *,
    key: Key[Array, ""],
    speed: float = 10.0,
    height: float = 8000.0,
    degree: float = 6.0,
) -> ShallowWaterState:
    """Return a random state in nonlinear balance, the same at every longitude in law.

    Its streamfunction is isotropic; power by degree falls as `(1 + (l / degree)^2)^-3`
    and the root mean square of the wind is expected to be `speed` (m s-1).
    `height` is the surface's mean, in m.
    """
    l = np.arange(model.sht.lmax + 1)
    power = (2 * l + 1) / (1 + (l / degree) ** 2) ** 3 * (l > 0)
    eigenvalues = -model.sht.laplacian_eigenvalues(model.radius)
    power = power * speed**2 / (np.sum(power * eigenvalues) / (4 * np.pi))
    field = GaussianRandomField(model.sht, jnp.asarray(power, float))
    flow = field.coefficients(key)
    vorticity = -jnp.asarray(eigenvalues, flow.dtype)[:, None] * flow
    return model.balanced(vorticity, height)


def _angles(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    return np.deg2rad(grid.latitude)[:, None], np.deg2rad(grid.longitude)[None]


def _distance(grid: Grid, latitude: float, longitude: float) -> np.ndarray:
    """The great-circle distance to a point, in radians and in float64."""
    y, x = _angles(grid)
    y0, x0 = np.deg2rad(latitude), np.deg2rad(longitude)
    half = np.sin((y - y0) / 2) ** 2
    half = half + np.cos(y) * np.cos(y0) * np.sin((x - x0) / 2) ** 2
    return 2 * np.arcsin(np.sqrt(np.minimum(half, 1)))


def _field(values: np.ndarray) -> Field:
    return jnp.asarray(values, float)
