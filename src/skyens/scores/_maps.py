"""Linear maps that turn a score of points or vectors into one of patches or scales.

A score sees what it is given: after a linear map, applied to members and truth alike,
it is proper for what the map keeps, and still differentiable.

- Patches: `energy_score(patches(ensemble, 4, 4), patches(truth, 4, 4))`, and so the
  variogram score, sees the structure within 4 x 4 points.
- Many scales: `sum(crps(to(ensemble), to(truth)).mean() for to in scales)` with
  `sphere.Regridder`s to coarser and coarser grids, whose default is the mean over the
  area of cells (let the coarse cells begin where fine ones do), or with
  `sphere.filter_field`.
- Harmonics, blind to nothing: `crps(to_real(c), to_real(c_true))` with coefficients
  `c = transform.analysis(ensemble)` of `sphere.SphericalHarmonics`.
- The spectral CRPS of FourCastNet 3, blind to phase:
  `sum(harmonic_weights(lmax) * crps(jnp.abs(c), jnp.abs(c_true)), (-2, -1))`.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


def patches(
    field: Float[Array, "*batch latitude longitude"],
    height: int,
    width: int,
    *,
    stride: int | tuple[int, int] | None = None,
) -> Float[Array, "*batch patch point"]:
    """Return the patches of `height` rows and `width` columns, one vector each.

    The first patch begins at the first row and column, the next one `stride` further,
    along longitude all around, along latitude as long as they fit: where the rows left
    are fewer, they are left out. Patches and their points count with longitude fastest.

    Args:
        field: any units.
        height: rows of a patch.
        width: columns of a patch.
        stride: steps between patches, or steps of rows and of columns; by default
            `(height, width)`, side by side.

    Raises:
        ValueError: a patch is larger than the field or empty, or `stride` is not
            positive, or no divisor of the number of columns, so that the last patch
            would meet the first at another step.
    """
    rows, columns = field.shape[-2:]
    if not (1 <= height <= rows and 1 <= width <= columns):
        raise ValueError(
            f"`height` and `width` must lie between 1 and the field's {rows} rows and "
            f"{columns} columns, got {height} and {width}."
        )
    if stride is None:
        stride = height, width
    down, along = (stride, stride) if isinstance(stride, int) else stride
    if down < 1 or along < 1 or columns % along:
        raise ValueError(
            "`stride` must be positive and divide the number of columns, "
            f"{columns}, got {(down, along)}."
        )
    around = jnp.concatenate([field, field[..., : width - 1]], axis=-1)
    # One slice for each row and column of a patch: no gather, whose transpose is slow.
    windows = _windows(around, -1, width, along, columns // along)
    windows = _windows(windows, -3, height, down, (rows - height) // down + 1)
    # (..., row, column, width, height) to (..., patch, point)
    windows = jnp.swapaxes(windows, -1, -2)
    down, along = windows.shape[-4:-2]
    return windows.reshape(*field.shape[:-2], down * along, height * width)


def _windows(array: Array, axis: int, size: int, stride: int, count: int) -> Array:
    """Return `count` windows along `axis`, the place within each as last axis."""
    axis %= array.ndim
    reach = stride * (count - 1) + 1
    shifted = [lax.slice_in_dim(array, k, k + reach, stride, axis) for k in range(size)]
    return jnp.stack(shifted, axis=-1)


def harmonic_weights(lmax: int) -> Float[np.ndarray, "l m"]:
    """Return the weights of coefficients `(l, m)` in a sum over all orders, over 4 pi.

    1 for `m = 0`, 2 for the others, which stand for both signs of the order, and 0
    above the diagonal; divided by `4 pi`, so that squared moduli add up to the mean
    square of the field on the sphere. NumPy, float64.

    Raises:
        ValueError: `lmax` is negative.

    Source: the spectral loss of FourCastNet 3, Bonev et al. (2025), arXiv:2507.12144.
    """
    if lmax < 0:
        raise ValueError(f"`lmax` must not be negative, got {lmax}.")
    both = np.where(np.arange(lmax + 1) > 0, 2.0, 1.0)
    return np.tril(np.broadcast_to(both, (lmax + 1, lmax + 1))) / (4 * np.pi)
