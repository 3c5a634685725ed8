"""Half the resolution and back, on a plane or on the sphere."""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from skyens.nn._domain import Domain, Plane, pad
from skyens.sphere import Grid


def halve(domain: Domain) -> Domain:
    """Return the domain of half the rows (rounded up on the sphere) and columns.

    The coarse columns lie midway between pairs of fine ones.

    Raises:
        ValueError: an axis cannot be halved.
    """
    rows, columns = domain.shape
    odd = columns % 2 or (isinstance(domain, Plane) and rows % 2)
    if odd or (isinstance(domain, Grid) and rows < 3):
        raise ValueError(
            f"a domain of shape {domain.shape} cannot be halved: columns, and on a "
            "plane rows, must be even, and on the sphere rows at least 3. Take fewer "
            "resolutions, or another grid."
        )
    if isinstance(domain, Plane):
        return Plane((rows // 2, columns // 2), domain.periodic)
    return dataclasses.replace(
        domain,
        n_latitude=(rows + 1) // 2,
        n_longitude=columns // 2,
        longitude_origin=domain.longitude_origin + 180 / columns,
    )


class Halving(eqx.Module):
    """Carry fields between a domain and the one of half its resolution.

    Down are means over cells, by area; up is linear interpolation, over the poles too.
    Both leave a constant field constant.
    """

    fine: Domain = eqx.field(static=True)
    coarse: Domain = eqx.field(static=True)
    _down: Float[Array, "coarse fine"] = eqx.field(metadata={"trainable": False})
    _up: Float[Array, "fine around"] = eqx.field(metadata={"trainable": False})

    def __init__(self, fine: Domain):
        """Build the tables for the rows.

        Raises:
            ValueError: `fine` cannot be halved.
        """
        self.fine, self.coarse = fine, halve(fine)
        edges = [_row_edges(domain) for domain in (self.coarse, fine)]
        (low, high), (finer_low, finer_high) = (
            (np.minimum(e[:-1], e[1:]), np.maximum(e[:-1], e[1:])) for e in edges
        )
        shared = np.minimum(high[:, None], finer_high) - np.maximum(
            low[:, None], finer_low
        )
        shared = np.maximum(shared, 0)
        self._down = jnp.asarray(shared / shared.sum(1, keepdims=True))
        self._up = jnp.asarray(_linear(_places_around(self.coarse), _places(fine)))

    def down(
        self, field: Float[Array, "*batch row column"]
    ) -> Float[Array, "*batch coarse_row coarse_column"]:
        """Return the means over the coarse cells."""
        pairs = (field[..., ::2] + field[..., 1::2]) / 2
        return jnp.einsum("rs,...sc->...rc", self._down.astype(field.dtype), pairs)

    def up(
        self, field: Float[Array, "*batch coarse_row coarse_column"]
    ) -> Float[Array, "*batch row column"]:
        """Return the field interpolated to the fine domain."""
        around = pad(self.coarse, field, 1)
        rows = jnp.einsum("rs,...sc->...rc", self._up.astype(field.dtype), around)
        middle = 0.75 * rows[..., 1:-1]
        west, east = (middle + 0.25 * side for side in (rows[..., :-2], rows[..., 2:]))
        return jnp.stack([west, east], axis=-1).reshape(*west.shape[:-1], -1)


def _row_edges(domain: Domain) -> np.ndarray:
    """Edges of the rows, such that differences are areas."""
    if isinstance(domain, Grid):
        return np.sin(np.deg2rad(domain.latitude_edges))
    return np.linspace(0, 1, domain.shape[0] + 1)


def _places(domain: Domain) -> np.ndarray:
    """Where the rows lie, rising."""
    if isinstance(domain, Plane):
        return (np.arange(domain.shape[0]) + 0.5) / domain.shape[0]
    return -domain.latitude if domain.north_first else domain.latitude


def _places_around(domain: Domain) -> np.ndarray:
    """Where the rows of a field lie that is padded by one."""
    places = _places(domain)
    if isinstance(domain, Plane):
        half = 0.5 / domain.shape[0]
        return np.concatenate([[-half], places, [1 + half]])
    mirrored = int(domain.kind == "equiangular")
    before, after = -180 - places[mirrored], 180 - places[-1 - mirrored]
    return np.concatenate([[before], places, [after]])


def _linear(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the weights of linear interpolation, `(target, source)`."""
    return np.stack([np.interp(target, source, row) for row in np.eye(source.size)], 1)
