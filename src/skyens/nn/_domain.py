"""Where fields lie: a plane, or a grid on the sphere, and what is beyond its edges."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from skyens.sphere import Grid


@jax.tree_util.register_static
@dataclass(frozen=True)
class Plane:
    """A rectangle of equal cells; static, hashable.

    Fields on it are `(..., row, column)`. An axis that is periodic continues at its
    other end; beyond the ends of one that is not stands its last value.
    """

    shape: tuple[int, int]
    periodic: tuple[bool, bool] = (False, False)

    def __post_init__(self):
        """Check the sizes.

        Raises:
            ValueError: there are not two axes of at least one cell each.
        """
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise ValueError(f"`shape` must be two positive sizes, got {self.shape}.")
        if len(self.periodic) != 2:
            raise ValueError(f"`periodic` must have 2 entries, got {self.periodic}.")


Domain = Plane | Grid


def check_on(
    domain: Domain, field: Float[Array, "..."], channels: int, name: str
) -> None:
    """Check that `field` is `(channels, *domain.shape)`.

    Raises:
        ValueError: it is not.
    """
    if field.shape != (channels, *domain.shape):
        raise ValueError(
            f"`{name}` must be (channel, latitude, longitude) = "
            f"{(channels, *domain.shape)}, got {field.shape}."
        )


def pad(
    domain: Domain, field: Float[Array, "*batch row column"], width: int
) -> Float[Array, "*batch wider_row wider_column"]:
    """Return `field` with `width` more rows and columns on every side.

    On the sphere, the rows beyond a pole are those before it, half a circle away.
    Between two longitudes, where the half circle ends if their number is odd, stands
    their mean.

    Raises:
        ValueError: there are fewer rows than are asked for.
    """
    return pad_columns(domain, pad_rows(domain, field, width, width), width)


def pad_rows(
    domain: Domain, field: Float[Array, "*batch row column"], before: int, after: int
) -> Float[Array, "*batch more_rows column"]:
    """Return `field` with rows `before` the first and `after` the last.

    Raises:
        ValueError: there are fewer rows than are asked for.
    """
    if isinstance(domain, Plane):
        return _pad_axis(field, -2, before, after, domain.periodic[0])
    rows = field.shape[-2]
    skipped = int(domain.kind == "equiangular")  # the pole itself is not repeated
    if max(before, after) > rows - skipped:
        raise ValueError(
            f"{max(before, after)} rows beyond a pole need as many before it, the grid "
            f"has {rows}."
        )
    first = field[..., skipped : skipped + before, :][..., ::-1, :]
    last = field[..., rows - skipped - after : rows - skipped, :][..., ::-1, :]
    return jnp.concatenate([_half_turn(first), field, _half_turn(last)], axis=-2)


def pad_columns(
    domain: Domain, field: Float[Array, "*batch row column"], width: int
) -> Float[Array, "*batch row more_columns"]:
    """Return `field` with `width` more columns on both sides."""
    periodic = isinstance(domain, Grid) or domain.periodic[1]
    return _pad_axis(field, -1, width, width, periodic)


def coordinates(domain: Domain) -> np.ndarray:
    """Return what a network is told of each place, `(channel, latitude, longitude)`.

    On the sphere the sine and cosine of latitude: which pole, and how narrow cells are.
    On a plane nothing, so that patterns mean the same everywhere.
    """
    if isinstance(domain, Plane):
        return np.zeros((0, *domain.shape))
    rows = np.stack([np.cos(domain.colatitude), np.sin(domain.colatitude)])
    return np.broadcast_to(rows[..., None], (2, *domain.shape))


def _pad_axis(field, axis, before, after, periodic):
    widths = [(0, 0)] * field.ndim
    widths[axis] = (before, after)
    return jnp.pad(field, widths, mode="wrap" if periodic else "edge")


def _half_turn(rows):
    columns = rows.shape[-1]
    turned = jnp.roll(rows, columns // 2, axis=-1)
    if columns % 2:
        turned = (turned + jnp.roll(rows, columns // 2 + 1, axis=-1)) / 2
    return turned
