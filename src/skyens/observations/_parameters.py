"""Parameters of laws: positive numbers, and how they spread over the values."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from skyens.observations._checks import check_values

Positive = float | int | Float[Array | np.ndarray, "..."]


def positive(name: str, values: Positive) -> Float[Array, "..."]:
    """Return `values` as an array.

    Raises:
        EquinoxRuntimeError: a value is not finite and above 0.
    """
    if isinstance(values, int | float):
        values = np.asarray(values, float)
    fine = lambda values: (values > 0) & (values < np.inf)
    return check_values(name, "finite and above 0", values, fine)


def over(
    name: str, parameter: Float[Array, "..."], residual: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Return `parameter` in the shape and dtype of `residual`.

    Raises:
        ValueError: it does not broadcast to that shape.
    """
    given, shape = parameter.shape, residual.shape
    if len(given) > len(shape) or any(
        s not in (1, n) for s, n in zip(given[::-1], shape[::-1], strict=False)
    ):
        raise ValueError(
            f"`{name}` of shape {given} does not broadcast to the observation's shape "
            f"{shape}."
        )
    return jnp.broadcast_to(parameter.astype(residual.dtype), shape)
