"""Channels: named fields on one side, one array for a network on the other."""

from collections.abc import Mapping, Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Shaped


class Channels(eqx.Module):
    """The names and units of the channels of an array, in their order.

    It holds no array: two with equal names and units are equal, hash alike and never
    make a function compile twice.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    units: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, names: Sequence[str], units: Sequence[str]):
        """Take one name and one unit (CF spelling, `"m2 s-2"`) for each channel.

        Raises:
            ValueError: there are no names, a name occurs twice, the numbers of names
                and units differ, or one of them is a bare string.
        """
        for argument, values in (("names", names), ("units", units)):
            if isinstance(values, str):
                raise ValueError(
                    f"`{argument}` must be a sequence of strings, got the string "
                    f"{values!r}; write ({values!r},) for one channel."
                )
        self.names, self.units = tuple(names), tuple(units)
        if not self.names:
            raise ValueError("`names` must name at least one channel, got none.")
        if len(set(self.names)) < len(self.names):
            twice = [name for name in self.names if self.names.count(name) > 1]
            raise ValueError(f"`names` must differ, got {twice[0]!r} twice.")
        if len(self.names) != len(self.units):
            raise ValueError(
                f"`units` must give one unit for each name, got {len(self.units)} for "
                f"{len(self.names)} names."
            )

    def index(self, name: str) -> int:
        """Return the position of the channel `name`.

        Raises:
            ValueError: there is no such channel.
        """
        if name not in self.names:
            raise ValueError(f"`name` must be one of {self.names}, got {name!r}.")
        return self.names.index(name)

    def pack(
        self, fields: Mapping[str, Shaped[Array, "*batch latitude longitude"]]
    ) -> Shaped[Array, "*batch channel latitude longitude"]:
        """Stack named `fields` along a new channel axis, in the order of `names`.

        Raises:
            ValueError: a name is missing or unknown, or the fields differ in shape or
                dtype (no field is silently broadcast or cast).
        """
        missing = [name for name in self.names if name not in fields]
        unknown = [name for name in fields if name not in self.names]
        if missing or unknown:
            raise ValueError(
                f"`fields` must name each of {self.names} and nothing else; missing: "
                f"{missing}, unknown: {unknown}."
            )
        first = fields[self.names[0]]
        for name in self.names:
            field = fields[name]
            if (field.shape, field.dtype) != (first.shape, first.dtype):
                raise ValueError(
                    f"`fields` must agree in shape and dtype, but {self.names[0]!r} is "
                    f"{first.dtype} {first.shape} and {name!r} is {field.dtype} "
                    f"{field.shape}."
                )
        if first.ndim < 2:
            raise ValueError(
                f"`fields` must end in (latitude, longitude), got {first.shape}."
            )
        return jnp.stack([fields[name] for name in self.names], axis=-3)

    def unpack(
        self, array: Shaped[Array, "*batch channel latitude longitude"]
    ) -> dict[str, Shaped[Array, "*batch latitude longitude"]]:
        """Return the channels of `array` by name, in the order of `names`.

        Raises:
            ValueError: `array` has another number of channels.
        """
        if array.ndim < 3 or array.shape[-3] != len(self.names):
            raise ValueError(
                f"`array` must be (..., channel, latitude, longitude) with the "
                f"{len(self.names)} channels {self.names}, got {array.shape}."
            )
        return {name: array[..., i, :, :] for i, name in enumerate(self.names)}
