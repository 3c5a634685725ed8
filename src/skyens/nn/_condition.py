"""What a network is told beside its input."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Condition(eqx.Module):
    """What a network is told beside its input; each part is optional.

    Half of a network's contract: `network(x, level, *, condition=None)`, one sample.
    Which parts a network takes is fixed when it is made. A part that is missing counts
    as zeros, and no condition as zeros in all: to train a model without guidance too,
    multiply the arrays of a condition by 0 at random. A field that is 0 when it is
    known needs a second channel, of ones.

    Batches are conditions with a leading axis on each array, for `jax.vmap`.

    Attributes:
        fields: joined to the channels of the input, `(channel, latitude, longitude)`.
        vector: numbers such as hour and season, `(entry,)`, of order one. They scale
            and shift the channels inside.
        tokens: a set of any size, such as observations with their places,
            `(token, feature)`. The network attends to it.
        members: a set of fields, `(member, channel, latitude, longitude)`, for
            `SetNetwork`.
        where: which of the members exist, `(member,)`; None is all.
    """

    fields: Float[Array, "..."] | None = None
    vector: Float[Array, "..."] | None = None
    tokens: Float[Array, "..."] | None = None
    members: Float[Array, "..."] | None = None
    where: Bool[Array, "..."] | None = None


class Parts(NamedTuple):
    """A condition with nothing missing."""

    fields: Float[Array, "channel *space"]
    vector: Float[Array, " entry"]
    tokens: Float[Array, "token feature"]


class Taken(eqx.Module):
    """Which parts of a condition a network takes: the sizes it was made for."""

    fields: int = eqx.field(static=True)
    vector: int = eqx.field(static=True)
    tokens: int = eqx.field(static=True)

    def __check_init__(self):
        """Check the sizes.

        Raises:
            ValueError: one is negative.
        """
        sizes = dict(field_channels=self.fields, vector_size=self.vector)
        sizes |= dict(token_size=self.tokens)
        if bad := {name: size for name, size in sizes.items() if size < 0}:
            raise ValueError(f"sizes must not be negative, got {bad}.")

    def __call__(
        self,
        condition: Condition | None,
        x: Float[Array, "channel *space"],
    ) -> Parts:
        """Return the parts in the dtype of `x`, zeros for what is missing.

        Raises:
            ValueError: a part has another size than the network was made for.
        """
        given = Condition() if condition is None else condition
        if given.members is not None or given.where is not None:
            raise ValueError(
                "this network takes no `members`; wrap it in a `SetNetwork`."
            )
        parts = Parts(
            *(
                jnp.zeros(shape, x.dtype) if part is None else part
                for part, shape in (
                    (given.fields, (self.fields, *x.shape[1:])),
                    (given.vector, (self.vector,)),
                    (given.tokens, (1, self.tokens)),
                )
            )
        )
        _check("fields", parts.fields, (self.fields, *x.shape[1:]))
        _check("vector", parts.vector, (self.vector,))
        if parts.tokens.ndim != 2 or parts.tokens.shape[1] != self.tokens:
            raise ValueError(
                f"`condition.tokens` must be (token, {self.tokens}), got "
                f"{parts.tokens.shape}."
            )
        if not parts.tokens.shape[0]:
            parts = parts._replace(tokens=jnp.zeros((1, self.tokens), x.dtype))
        return jax.tree.map(lambda part: part.astype(x.dtype), parts)


def _check(name, part, shape):
    if part.shape != shape:
        raise ValueError(
            f"`condition.{name}` must have the shape {shape} that this network was "
            f"made for, got {part.shape}."
        )
