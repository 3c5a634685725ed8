"""Checks of array values that are known: how many are wrong, and where the first is."""

from collections.abc import Callable

import equinox as eqx
import numpy as np
from jax.core import Tracer
from jaxtyping import Array


def check_known(
    name: str, wish: str, values: Array, fine: Callable[[np.ndarray], np.ndarray]
) -> Array:
    """Return `values`, or fail where they are known and not `fine`.

    Under tracing nothing is checked.

    Raises:
        EquinoxRuntimeError: something is not `fine`.
    """
    if isinstance(values, Tracer):
        return values
    known = np.asarray(values)
    wrong = np.argwhere(~fine(known))
    if len(wrong) == 0:
        return values
    first = tuple(wrong[0].tolist())
    message = (
        f"`{name}` must be {wish}: {len(wrong)} of {known.size} values are not, the "
        f"first, at {first}, is {known[first]}."
    )
    return eqx.error_if(values, np.asarray(True), message)


def check_probability(name: str, values: Array) -> Array:
    """Return `values`, or fail where they are known and outside [0, 1]; NaN passes.

    Raises:
        EquinoxRuntimeError: something lies outside.
    """
    fine = lambda x: ~((x < 0) | (x > 1))
    return check_known(name, "probabilities, in [0, 1]", values, fine)
