"""The harmonic transform over many devices."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Complex, Float

from skyens.sphere._harmonics import SphericalHarmonics
from skyens.sphere._transform import Tables, harmonic_rows, legendre_sums


class ShardedHarmonics(eqx.Module):
    """A spherical harmonic transform whose fields are spread over a device mesh.

    Channels are split over one axis of the mesh, which needs no communication; over the
    other, fields are split by latitude, coefficients by order, and so are the tables:
    each transform, and each derivative of one, exchanges its data once, all to all.
    Give the first axis all devices while there are channels enough.

    Sizes need not divide: arrays spread by `shard_field` and `shard_coefficients` carry
    zeros behind their channels, latitudes and orders, which `gather_field` and
    `gather_coefficients` drop. In between, work on the padded arrays: degrees are
    complete on every device, so that filters by degree stay local.

    Results and gradients are those of the transform it was made from, to rounding.
    Linear, and safe under `jax.jit`, `grad` and `jvp`; leading axes before the channels
    are batches.
    """

    sht: SphericalHarmonics
    mesh: Mesh = eqx.field(static=True)
    channel: str = eqx.field(static=True)
    space: str = eqx.field(static=True)
    _up: Float[Array, "m 2 r j"] = eqx.field(metadata={"trainable": False})
    _down: Float[Array, "m 2 j r"] = eqx.field(metadata={"trainable": False})
    _weights: Float[Array, " latitude"] = eqx.field(metadata={"trainable": False})

    def __init__(
        self,
        sht: SphericalHarmonics,
        mesh: Mesh,
        *,
        channel: str = "channel",
        space: str = "space",
    ):
        """Spread the tables of `sht` over the `space` axis of `mesh`.

        Raises:
            ValueError: the mesh has no axis of one of these names.
        """
        for name, axis in (("channel", channel), ("space", space)):
            if axis not in mesh.axis_names:
                raise ValueError(
                    f"`{name}` must name an axis of the mesh, one of "
                    f"{mesh.axis_names}, got {axis!r}."
                )
        self.sht, self.mesh, self.channel, self.space = sht, mesh, channel, space
        own = sht._scalar
        weights = sht.grid.weights if own is None else np.ones(sht.grid.n_latitude)
        down = _square(own or sht._harmonics, self._orders)
        up = _square(sht._harmonics, self._orders)
        self._down = self._put(down.swapaxes(-1, -2), PartitionSpec(space))
        self._up = self._put(up, PartitionSpec(space))
        weights = np.pad(weights, (0, self._rows - weights.size))
        self._weights = self._put(weights.astype(down.dtype), PartitionSpec(space))

    @eqx.filter_jit
    def analysis(
        self, field: Float[Array, "*batch channel latitude longitude"]
    ) -> Complex[Array, "*batch channel l m"]:
        """Return the coefficients of a field that `shard_field` has spread.

        Raises:
            ValueError: the field has not the padded shape.
        """
        self._check(field, (self._rows, self.sht.grid.n_longitude), "shard_field")
        weights, table = lax.stop_gradient((self._weights, self._down))
        space = PartitionSpec(self.space)
        takes = self._field_spec(field), space, space
        mapped = self._map(self._analyse_local, takes, self._order_spec(field))
        return mapped(field, weights, table)

    @eqx.filter_jit
    def synthesis(
        self, coefficients: Complex[Array, "*batch channel l m"]
    ) -> Float[Array, "*batch channel latitude longitude"]:
        """Return the field of coefficients that `shard_coefficients` has spread.

        Raises:
            ValueError: the coefficients have not the padded shape.
        """
        shape = self.sht.lmax + 1, self._orders
        self._check(coefficients, shape, "shard_coefficients")
        table = lax.stop_gradient(self._up)
        takes = self._order_spec(coefficients), PartitionSpec(self.space)
        gives = self._field_spec(coefficients)
        return self._map(self._synthesise_local, takes, gives)(coefficients, table)

    def shard_field(
        self, field: Float[Array, "*batch channel latitude longitude"]
    ) -> Float[Array, "*batch padded_channel padded_latitude longitude"]:
        """Pad a field with zeros and spread it over the mesh.

        Raises:
            ValueError: the last axes are not (channel, latitude, longitude).
        """
        self._check(field, self.sht.grid.shape, None)
        channels = -field.shape[-3] % self.mesh.shape[self.channel]
        rows = self._rows - field.shape[-2]
        field = _pad(field, (channels, rows, 0))
        return self._put(field, self._field_spec(field))

    def shard_coefficients(
        self, coefficients: Complex[Array, "*batch channel l m"]
    ) -> Complex[Array, "*batch padded_channel l padded_m"]:
        """Pad coefficients with zeros and spread them over the mesh.

        Raises:
            ValueError: the last axes are not (channel, l, m) of this transform.
        """
        self._check(coefficients, (self.sht.lmax + 1,) * 2, None)
        channels = -coefficients.shape[-3] % self.mesh.shape[self.channel]
        orders = self._orders - coefficients.shape[-1]
        coefficients = _pad(coefficients, (channels, 0, orders))
        return self._put(coefficients, self._order_spec(coefficients))

    def gather_field(self, field, channels: int | None = None):
        """Return the field on every device, without its padding."""
        field = self._put(field, PartitionSpec())
        return field[..., :channels, : self.sht.grid.n_latitude, :]

    def gather_coefficients(self, coefficients, channels: int | None = None):
        """Return the coefficients on every device, without their padding."""
        coefficients = self._put(coefficients, PartitionSpec())
        return coefficients[..., :channels, :, : self.sht.lmax + 1]

    # ------------------------------------------------------------- what one device does

    def _analyse_local(self, field, weights, table):
        batch = field.shape[:-2]
        field = field.reshape(-1, *field.shape[-2:])
        weights = weights.astype(field.dtype)[None, :, None]
        rows = jnp.fft.rfft(field * weights)[..., : self.sht.lmax + 1]
        rows = _pad(rows, (0, 0, self._orders - rows.shape[-1]))
        rows = self._exchange(rows, split=2, join=1)
        rows = rows[:, : self.sht.grid.n_latitude]
        tables = self._one_block(down=(table.astype(field.dtype),))
        out = legendre_sums(rows, tables, False, self.sht.precision)
        return self._turn(out, -1).reshape(*batch, *out.shape[1:])

    def _synthesise_local(self, coefficients, table):
        *batch, degrees, orders = coefficients.shape
        c = self._turn(coefficients.reshape(-1, degrees, orders), 1)
        tables = self._one_block(up=(table.astype(c.real.dtype),))
        ((rows, mirrored),) = harmonic_rows(c, tables, self.sht.precision)
        mirrored = jnp.flip(mirrored, -1)[..., self.sht.grid.n_latitude % 2 :]
        rows = jnp.concatenate([rows, mirrored], -1)
        rows = jnp.moveaxis(lax.complex(rows[0], rows[1]), 0, -1)
        rows = _pad(rows, (0, self._rows - rows.shape[1], 0))
        rows = self._exchange(rows, split=1, join=2)[..., : self.sht.lmax + 1]
        columns = self.sht.grid.n_longitude
        out = jnp.fft.irfft(rows, columns, norm="forward")
        return out.reshape(*batch, *out.shape[1:])

    def _exchange(self, rows, *, split: int, join: int):
        """Latitudes for orders; as real numbers, which every backend can send."""
        parts = jnp.stack([rows.real, rows.imag])
        parts = lax.all_to_all(parts, self.space, split + 1, join + 1, tiled=True)
        return lax.complex(parts[0], parts[1])

    def _turn(self, coefficients, sign: int):
        """As in `SphericalHarmonics`, for the orders of this device."""
        origin = np.deg2rad(self.sht.grid.longitude_origin)
        if origin == 0:
            return coefficients
        phases = np.exp(sign * 1j * origin * np.arange(self._orders))
        phases = jnp.asarray(phases.reshape(self._devices, -1), coefficients.dtype)
        return coefficients * phases[lax.axis_index(self.space)][None, None]

    def _one_block(self, down=(), up=()) -> Tables:
        """The table of one device, for one direction."""
        orders = self._orders // self._devices
        rows = (self.sht.grid.n_latitude + 1) // 2
        unused = jnp.zeros((0, rows))
        return Tables(((0, orders, 0),), self.sht.lmax + 1, down, up, unused)

    # ------------------------------------------------------------------------- layout

    @property
    def _devices(self) -> int:
        return self.mesh.shape[self.space]

    @property
    def _rows(self) -> int:
        """Latitudes, padded to fill the devices."""
        rows = self.sht.grid.n_latitude
        return rows + -rows % self._devices

    @property
    def _orders(self) -> int:
        """Orders, padded so that every device's first is even."""
        orders = self.sht.lmax + 1
        return orders + -orders % (2 * self._devices)

    def _field_spec(self, array) -> PartitionSpec:
        lead = (None,) * (array.ndim - 3)
        return PartitionSpec(*lead, self.channel, self.space)

    def _order_spec(self, array) -> PartitionSpec:
        lead = (None,) * (array.ndim - 3)
        return PartitionSpec(*lead, self.channel, None, self.space)

    def _map(self, function, takes: tuple, gives: PartitionSpec):
        return jax.shard_map(function, mesh=self.mesh, in_specs=takes, out_specs=gives)

    def _put(self, array, spec: PartitionSpec):
        return jax.device_put(array, NamedSharding(self.mesh, spec))

    def _check(self, array, shape: tuple[int, ...], maker: str | None) -> None:
        if array.ndim < 3 or tuple(array.shape[-2:]) != shape:
            after = f": spread it with `{maker}` first" if maker else ""
            raise ValueError(
                f"An array of shape {tuple(array.shape)} must end in (channel, "
                f"{shape[0]}, {shape[1]}){after}."
            )


def _square(tables: Tables, orders: int) -> np.ndarray:
    """The blocks as one `[m, s, r, j]`, padded to so many orders."""
    parts = []
    for table, (_, _, start) in zip(tables.up, tables.blocks, strict=True):
        parts.append(np.pad(table, ((0, 0), (0, 0), (start, 0), (0, 0))))
    square = np.concatenate(parts)
    return np.pad(square, ((0, orders - square.shape[0]), *((0, 0),) * 3))


def _pad(array, after: tuple[int, int, int]):
    """Zeros behind the last three axes."""
    lead = ((0, 0),) * (array.ndim - 3)
    return jnp.pad(array, (*lead, *((0, n) for n in after)))
