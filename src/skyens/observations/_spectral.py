"""Fields at points of the sphere, exact for what is band-limited."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from skyens import sphere
from skyens.observations._places import check_places
from skyens.observations._precision import wide
from skyens.sphere._precision import as_float


class SpectralInterpolate(eqx.Module):
    """See a field at points of the sphere by the sum of its spherical harmonics.

    Exact for fields that are band-limited to `lmax`, at the poles too; of others it
    sees the band-limited part, which may ring at sharp edges. `points * lmax^2`
    operations and memory for `points * lmax` numbers.

    The harmonics are summed on meridians first. A meridian goes on over the poles, so
    the field is periodic in colatitude as in longitude, a trigonometric polynomial of
    degree `lmax` in both: its coefficients are a fast Fourier transform away, and
    unlike Legendre functions its terms neither grow nor vanish.

    An observation made with it knows its `coordinates` without being told.
    """

    regridder: sphere.Regridder
    latitude: Float[Array, "point"] = eqx.field(metadata={"trainable": False})
    longitude: Float[Array, "point"] = eqx.field(metadata={"trainable": False})

    def __init__(
        self,
        grid: sphere.Grid,
        latitude: Float[Array | np.ndarray, "point"],
        longitude: Float[Array | np.ndarray, "point"],
        lmax: int | None = None,
    ):
        """Set the `grid` of the fields, the points in degrees, and the largest degree.

        A point at NaN has no place yet (a slot kept for a station, say): it sees NaN,
        and must be masked. `lmax` is the largest that the grid resolves if left out.

        Raises:
            ValueError: `lmax` is negative, or above what the grid resolves, or there
                are not as many latitudes as longitudes.
            EquinoxRuntimeError: a latitude lies outside [-90, 90].
        """
        self.latitude, self.longitude = check_places(latitude, longitude)
        lmax = grid.largest_lmax if lmax is None else lmax
        if not 0 <= lmax <= grid.largest_lmax:
            raise ValueError(
                f"`lmax` must lie between 0 and {grid.largest_lmax}, what the grid "
                f"resolves, got {lmax}."
            )
        meridians = sphere.equiangular(lmax + 2, 2 * (lmax + 1), north_first=True)
        self.regridder = sphere.Regridder(grid, meridians, sphere.Spectral(lmax))

    @property
    def coordinates(self) -> dict[str, Float[Array, "point"]]:
        """`latitude` and `longitude` of the points, degrees."""
        return {"latitude": self.latitude, "longitude": self.longitude}

    def __call__(
        self, field: Float[Array, "*batch latitude longitude"]
    ) -> Float[Array, "*batch point"]:
        """Return the values at the points, in the field's units and dtype.

        Raises:
            ValueError: `field` does not lie on the grid.
        """
        known = jnp.isfinite(self.latitude) & jnp.isfinite(self.longitude)
        # An unknown place must not reach the sums: 0 * NaN spoils the gradient.
        latitude = jnp.deg2rad(jnp.where(known, self.latitude, 0))
        longitude = jnp.deg2rad(jnp.where(known, self.longitude, 0))
        grid = self.regridder.target
        half, full = grid.n_longitude // 2, grid.n_longitude
        field = as_float(field)
        x = self.regridder(field)
        x = x.astype(wide(x.dtype))
        # Colatitude from pole to pole, and back on the opposite meridian.
        back = jnp.roll(x[..., half - 1 : 0 : -1, :], half, axis=-1)
        terms = jnp.fft.rfft2(jnp.concatenate([x, back], -2), norm="forward")
        turns = np.fft.fftfreq(full, 1 / full)
        colatitude = np.pi / 2 - latitude
        down = _waves(colatitude, turns, x.dtype)
        along = _waves(longitude, np.arange(half + 1), x.dtype)
        # Orders above 0 stand for their negative twins too.
        twice = np.where(np.arange(half + 1) > 0, 2, 1)
        along = along * jnp.asarray(twice, along.dtype)[None, :]
        rows = jnp.matmul(down, terms, precision="highest")
        seen = jnp.einsum("...pm,pm->...p", rows, along, precision="highest").real
        seen = jnp.where(jnp.broadcast_to(known, seen.shape), seen, jnp.nan)
        return seen.astype(field.dtype)


def _waves(angle, turns, dtype):
    """`exp(i turns angle)`, `(point, turn)`, in the complex partner of `dtype`."""
    phase = angle[:, None] * jnp.asarray(turns, angle.dtype)[None, :]
    return jax.lax.complex(jnp.cos(phase).astype(dtype), jnp.sin(phase).astype(dtype))
