"""Relaxation: draw a state towards a target as it goes."""

from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array, Key, PyTree


class Relaxed(eqx.Module):
    """A step that draws its state towards a target, a little at each call.

    It returns `step(x) + rate * (target - x)`. Noise that is added again and again
    makes the variance of a conservative model grow forever; with a relaxation it
    settles.

    Source: Newtonian relaxation, Held & Suarez (1994), Bull. Amer. Meteor. Soc. 75,
    1825-1830.
    """

    step: Callable
    target: PyTree[Array] = eqx.field(metadata={"trainable": False})
    rate: float = eqx.field(static=True)

    def __init__(self, step: Callable, target: PyTree[Array], rate: float):
        """Set the target and what part of the way to it each call goes.

        Args:
            step: `step(state, forcing=None, *, key=None) -> state`.
            target: leaves that broadcast against the state's, in its units.
            rate: the length of a call over the time scale, in [0, 1].

        Raises:
            ValueError: `rate` lies outside [0, 1].
        """
        if not 0 <= rate <= 1:
            raise ValueError(f"`rate` must lie in [0, 1], got {rate}.")
        self.step, self.target, self.rate = step, target, rate

    def __call__(
        self,
        state: PyTree[Array],
        forcing: PyTree = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> PyTree[Array]:
        """Return the state one step later."""
        after = self.step(state, forcing, key=key)
        draw = lambda new, old, target: new + self.rate * (target - old)
        return jax.tree.map(draw, after, state, self.target)
