"""What the worlds ask of their settings and states."""

import jax.numpy as jnp
from jaxtyping import Array

from skyens.sphere._precision import as_float


def check_steps(time_step: float, substeps: int) -> None:
    """Check that time goes on.

    Raises:
        ValueError: `time_step` or `substeps` is not positive.
    """
    if time_step <= 0 or substeps < 1:
        raise ValueError(
            "`time_step` (s) and `substeps` must be positive, got "
            f"{time_step} and {substeps}."
        )


def check_coefficients(coefficients, lmax: int, name: str) -> Array:
    """Return `coefficients` as JAX's, found to be those of one member, to `lmax`.

    Raises:
        ValueError: they have another shape.
    """
    shape = lmax + 1, lmax + 1
    if coefficients.shape != shape:
        raise ValueError(
            f"`{name}` must be coefficients (l, m) = {shape} for lmax {lmax}, got "
            f"{coefficients.shape}; truncate or pad them first, or map over members "
            "by `jax.vmap`."
        )
    return jnp.asarray(coefficients)


def check_time_step(dt: float) -> float:
    """Return `dt` as a number.

    Raises:
        ValueError: it is not positive and finite.
    """
    if not 0 < dt < float("inf"):
        raise ValueError(f"`dt` must be positive and finite, got {dt}.")
    return float(dt)


def check_shape(name: str, array, shape: tuple[int, ...]) -> Array:
    """Return `array` as JAX's, found to be that of one member; of integers, as floats.

    Raises:
        ValueError: it has another shape.
    """
    if array.shape != shape:
        raise ValueError(
            f"`{name}` must have the shape {shape}, got {array.shape}; map over "
            "members by `jax.vmap`."
        )
    return as_float(array)
