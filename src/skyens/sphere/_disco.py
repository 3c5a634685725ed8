"""Discrete-continuous convolution: a basis of local filters, moved over the sphere."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int

from skyens.sphere._grid import Grid
from skyens.sphere._precision import as_float, at_least_single

_fixed = lambda: eqx.field(metadata={"trainable": False})


class Disco(eqx.Module):
    """What each filter of a basis sees around each point of a target grid.

    `out[k](p) = sum_j psi_k(x_j, y_j) q_j field(w_j)` over the source points `w_j`
    within `cutoff` of `p`: `q_j` is their quadrature weight, `(x_j, y_j)` their place
    on the unit disc around `p`, in units of `cutoff` along the great circles, `x` to
    the east and `y` to the north. A learnable layer contracts filters and channels.

    The filters are normalised to unit gain, so that weights mean the same on every
    grid. One that is nowhere negative returns a constant field unchanged. One that
    changes sign has an absolute integral of 1 over the disc, and a multiple of the
    window `cos^2(pi r / 2)` is added in each row such that its response to a constant
    is its integral exactly, at every latitude: 0 for odd filters.

    Rows of points are equally spaced, so the filters of a target row are the same at
    all its longitudes, and the sums are a product of Fourier coefficients with tables
    of the few source rows within reach: `(filter, target row, row in reach, m)`. At a
    pole, where east is the east of each longitude, the filters turn with it.

    Source: Ocampo, Price & McEwen (2022), arXiv:2209.13603.
    """

    source: Grid = eqx.field(static=True)
    target: Grid = eqx.field(static=True)
    size: int = eqx.field(static=True)
    _tables: Complex[Array, "filter row reach m"] = _fixed()
    _rows: Int[Array, "row reach"] = _fixed()

    def __init__(
        self,
        source: Grid,
        target: Grid,
        filters: Callable[[np.ndarray, np.ndarray], np.ndarray],
        cutoff: float,
    ):
        """Build the tables in float64 and keep them in JAX's default precision.

        Args:
            source: the grid fields lie on.
            target: the grid of the result; its longitudes are every, every second,
                ... of the source's, shifted by anything.
            filters: such as `HarmonicFilters()` or `HatFilters()`: from points of the
                unit disc, two arrays, to values `(filter, *points)`.
            cutoff: radius of the disc in radians of arc.

        Raises:
            ValueError: `cutoff` is not in (0, pi], the number of source longitudes is
                no multiple of the target's, a filter is 0 everywhere, or the source is
                too coarse to see one within the cutoff.
        """
        if not 0 < cutoff <= np.pi:
            raise ValueError(f"`cutoff` (radians) must lie in (0, pi], got {cutoff}.")
        if source.n_longitude % target.n_longitude:
            raise ValueError(
                f"The source's {source.n_longitude} longitudes must be a multiple of "
                f"the target's {target.n_longitude}; interpolate first."
            )
        turn = source.longitude - target.longitude_origin
        rim = cutoff * (1 + _ROUNDING)
        near = np.abs(source.colatitude - target.colatitude[:, None]) <= rim
        reach = max(1, int(near.sum(1).max()))
        first = np.minimum(near.argmax(1), source.n_latitude - reach)
        rows = first[:, None] + np.arange(reach)
        gain, mean = _continuous_gain(filters, cutoff)
        dtype, tables = jnp.result_type(complex), []
        for latitude, reached in zip(target.latitude, rows, strict=True):
            x, y = _local_coordinates(source, reached, latitude, turn, cutoff)
            weight = source.weights[reached][:, None] * (
                np.hypot(x, y) <= 1 + _ROUNDING
            )
            psi, window = filters(x, y) * weight, _window(x, y) * weight
            psi = _normalise(psi, window, gain, mean, latitude, cutoff)
            # A correlation, not a convolution, in longitude: hence the conjugate.
            tables.append(np.fft.rfft(psi).conj().astype(dtype))
        self.source, self.target, self.size = source, target, mean.size
        self._tables = jnp.asarray(np.stack(tables, 1))
        self._rows = jnp.asarray(rows, jnp.int32)

    def __call__(
        self, field: Float[Array, "*batch latitude longitude"]
    ) -> Float[Array, "*batch filter target_latitude target_longitude"]:
        """Return what each filter sees at each target point, in the field's dtype.

        Raises:
            ValueError: the last two axes of `field` are not the source grid's.
        """
        self.source.check(field)
        field, batch = as_float(field), field.shape[:-2]
        x = at_least_single(field).reshape(-1, *self.source.shape)
        waves = jnp.fft.rfft(x)
        # The sum over rows in reach fuses with gather and product, which so need no
        # memory; matrix products of so few rows are slower.
        within = waves[:, self._rows][:, None]
        waves = (self._tables.astype(waves.dtype)[None] * within).sum(3)
        out = jnp.fft.irfft(self._thin(waves), self.target.n_longitude)
        return out.reshape(*batch, self.size, *self.target.shape).astype(field.dtype)

    def _thin(self, waves):
        """Keep every n-th longitude: fold the waves that look alike there."""
        n, kept = self.source.n_longitude, self.target.n_longitude
        if n == kept:
            return waves
        alike = np.arange(kept // 2 + 1)[:, None] + kept * np.arange(n // kept)
        mirrored = alike > n // 2  # negative wavenumbers: conjugates of positive ones
        waves = waves[..., np.where(mirrored, n - alike, alike)]
        shape = (1,) * (waves.ndim - 2) + mirrored.shape
        waves = jnp.where(mirrored.reshape(shape), waves.conj(), waves)
        return waves.sum(-1) / (n // kept)


def _local_coordinates(source, reached, latitude, turn, cutoff):
    """Places of the source points in reach on the disc around a target point."""
    there = np.pi / 2 - source.colatitude[reached][:, None]
    here, turn = np.deg2rad(latitude), np.deg2rad(turn)
    east = np.cos(there) * np.sin(turn)
    along = np.cos(there) * np.cos(turn)
    north = np.cos(here) * np.sin(there) - np.sin(here) * along
    up = np.sin(here) * np.sin(there) + np.cos(here) * along
    across = np.hypot(east, north)
    stretch = np.arctan2(across, up) / np.where(across > 0, across, 1) / cutoff
    return east * stretch, north * stretch


def _normalise(psi, window, gain, mean, latitude, cutoff) -> np.ndarray:
    """Give the filters of one row unit gain and their own response to a constant."""
    total = lambda f: f.sum((-2, -1), keepdims=True)
    gain, mean = gain[:, None, None], mean[:, None, None]
    seen, whole = total(np.abs(psi)) * gain, total(window)
    if (blind := np.flatnonzero(seen <= 0.01 * whole)).size:
        raise ValueError(
            f"`cutoff` of {cutoff:g} rad is too small for this source grid: around "
            f"latitude {latitude:g} no point lies where filter {blind[0]} of "
            f"{mean.size} is felt. Take a larger cutoff or fewer filters."
        )
    window = window / whole
    psi = psi * gain / whole
    shifted = psi + (mean - total(psi)) * window
    positive = mean > 1 - _ROUNDING
    return np.where(positive, psi / np.where(positive, total(psi), 1), shifted)


def _continuous_gain(filters, cutoff) -> tuple[np.ndarray, np.ndarray]:
    """Return two integrals over the disc for each filter, each `(filter,)`.

    The window's over that of the filter's absolute value, and the filter's own over
    the latter.
    """
    node, weight = np.polynomial.legendre.leggauss(128)
    r = (node[:, None] + 1) / 2
    azimuth = 2 * np.pi * (np.arange(2048) + 0.5) / 2048
    x, y = r * np.cos(azimuth), r * np.sin(azimuth)
    integral = lambda f: np.sum(f * (weight[:, None] * np.sin(r * cutoff)), (-2, -1))
    values = filters(x, y)
    absolute = integral(np.abs(values))
    if (empty := np.flatnonzero(absolute == 0)).size:
        raise ValueError(f"`filters`: number {empty[0]} is 0 all over the disc.")
    return integral(_window(x, y)) / absolute, integral(values) / absolute


def _window(x, y) -> np.ndarray:
    return np.cos(np.pi / 2 * np.minimum(np.hypot(x, y), 1)) ** 2


# Points on the rim of a disc must not come and go by a rounding.
_ROUNDING = 1e-9
