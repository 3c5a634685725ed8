"""Checks of array values: say how many are wrong, and where the first stands."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array


def check_values(
    name: str,
    wish: str,
    values: Array | np.ndarray,
    fine: Callable[[Array | np.ndarray], Array | np.ndarray],
) -> Array:
    """Return `values` as an array of JAX, or fail where they are not `fine`.

    `fine` sees NumPy where the values are known, so that the check costs a program that
    is being traced nothing, and can count the wrong ones and show the first.

    Raises:
        EquinoxRuntimeError: something is not `fine`, under jit too.
    """
    array = jnp.asarray(values)
    if isinstance(values, Tracer):
        return eqx.error_if(array, ~fine(values), f"`{name}` must be {wish}.")
    known = np.asarray(values)
    wrong = np.argwhere(~np.asarray(fine(known)))
    if len(wrong) == 0:
        return array
    first = tuple(wrong[0].tolist())
    message = (
        f"`{name}` must be {wish}: {len(wrong)} of {known.size} values are not, the "
        f"first, at {first}, is {known[first]}."
    )
    return eqx.error_if(array, np.asarray(True), message)
