"""Operators one after the other."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array, PyTree

from skyens.observations._callables import as_pytree


class Chain(eqx.Module):
    """See through several operators, from the state to the value.

        Chain(lambda state: state["temperature"], Interpolate(...), Biased(...))

    The first is applied to the state, each other to what the one before returns. Any
    callables will do. An observation made with it is where the last of them that knows
    its `coordinates` says, and has the `period` of the last.
    """

    operators: tuple[Callable, ...]

    def __init__(self, *operators: Callable):
        """Set the operators, in the order in which they are applied.

        Raises:
            ValueError: there is none.
        """
        if not operators:
            raise ValueError("`Chain` needs at least one operator.")
        self.operators = tuple(map(as_pytree, operators))

    def __call__(self, state: PyTree[Any]) -> Any:
        """Return what the last operator returns."""
        for operator in self.operators:
            state = operator(state)
        return state

    @property
    def coordinates(self) -> dict[str, Array] | None:
        """Those of the last operator that has any."""
        for operator in self.operators[::-1]:
            if (known := getattr(operator, "coordinates", None)) is not None:
                return known
        return None

    @property
    def period(self) -> float | Array | None:
        """That of the last operator."""
        return getattr(self.operators[-1], "period", None)
