"""Normalisation: fields in physical units <-> fields of order one."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float


class Normaliser(eqx.Module):
    """Subtract a mean and divide by a standard deviation, per channel.

    `mean` and `std` have the shape `(channel,)`, `(channel, latitude)` or
    `(channel, latitude, longitude)`, each its own, and broadcast against the trailing
    axes `(channel, latitude, longitude)` of a field. They are never trained.

    The arithmetic is in float32 at least: near 54,000 m2 s-2, the geopotential at
    500 hPa, bfloat16 numbers lie 256 apart, and the mean itself would be off.
    """

    mean: Float[Array, "*mean_axes"] = eqx.field(metadata={"trainable": False})
    std: Float[Array, "*std_axes"] = eqx.field(metadata={"trainable": False})

    def __init__(
        self,
        mean: Float[Array | np.ndarray, "*mean_axes"],
        std: Float[Array | np.ndarray, "*std_axes"],
    ):
        """Take the `mean` and the standard deviation `std`, in the fields' units.

        Raises:
            ValueError: they disagree in a shared axis, or have none or more than three.
            EquinoxRuntimeError: `mean` is not finite, or `std` not finite and positive.
        """
        mean, std = jnp.asarray(mean), jnp.asarray(std)
        for name, table in (("mean", mean), ("std", std)):
            if not 1 <= table.ndim <= 3:
                raise ValueError(
                    f"`{name}` must have the axes (channel,), (channel, latitude) or "
                    f"(channel, latitude, longitude), got the shape {table.shape}."
                )
        if any(m != s for m, s in zip(mean.shape, std.shape, strict=False)):
            raise ValueError(
                f"`mean` and `std` must agree in the axes they share, got the shapes "
                f"{mean.shape} and {std.shape}."
            )
        self.mean = _check("mean", "finite", mean, jnp.isfinite(mean))
        positive = jnp.isfinite(std) & (std > 0)
        self.std = _check("std", "finite and above 0", std, positive)

    def __call__(
        self, field: Float[Array, "*batch channel latitude longitude"]
    ) -> Float[Array, "*batch channel latitude longitude"]:
        """Return `(field - mean) / std`, dimensionless, in the dtype of `field`.

        Raises:
            ValueError: the trailing axes of `field` do not fit those of the tables.
        """
        wide, mean, std = self._aligned(field)
        return ((wide - mean) / std).astype(field.dtype)

    def inverse(
        self, normalised: Float[Array, "*batch channel latitude longitude"]
    ) -> Float[Array, "*batch channel latitude longitude"]:
        """Return `normalised * std + mean`, in physical units and the input's dtype.

        Raises:
            ValueError: the trailing axes of `normalised` do not fit the tables'.
        """
        wide, mean, std = self._aligned(normalised)
        return (wide * std + mean).astype(normalised.dtype)

    def _aligned(self, field: Array) -> tuple[Array, Array, Array]:
        """Return field, mean and std with equal ranks, in the dtype to compute in."""
        dtype = field.dtype if jnp.finfo(field.dtype).bits >= 32 else jnp.float32
        aligned = [field.astype(dtype)]
        for name, table in (("mean", self.mean), ("std", self.std)):
            axes = field.shape[-3:][: table.ndim]
            if field.ndim < 3 or axes != table.shape:
                raise ValueError(
                    "a field to normalise must end in (channel, latitude, longitude) "
                    f"and fit `{name}` of shape {table.shape}, got {field.shape}."
                )
            shape = (1,) * (field.ndim - 3) + table.shape + (1,) * (3 - table.ndim)
            aligned.append(table.astype(dtype).reshape(shape))
        field, mean, std = aligned
        return field, mean, std


def _check(name: str, wish: str, table: Array, fine: Bool[Array, "..."]) -> Array:
    """Return `table`, or fail where it is not `fine`, saying where if it is known."""
    message = f"`{name}` must be {wish}."
    if not isinstance(fine, Tracer) and not fine.all():
        wrong = np.argwhere(~np.asarray(fine))
        first = tuple(wrong[0].tolist())
        message = (
            f"`{name}` must be {wish}: {len(wrong)} of {fine.size} values are not, "
            f"the first at {first} is {table[first]}."
        )
    return eqx.error_if(table, ~fine, message)
