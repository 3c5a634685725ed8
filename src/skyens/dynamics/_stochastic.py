"""Stochastic model error: a step that errs as the model it stands for does."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Array, Key, PyTree

from skyens.sphere import AutoregressiveField


class StochasticStep(eqx.Module):
    """Add correlated noise to what a step makes: its model error, as seen so far.

    The state is `{"value": the step's state, "noise": the process's coefficients}`;
    `start` makes one. Leave the noise out of an analysis by the filter's `where=`.

    Source: stochastic tendencies with a memory as in Palmer et al. (2009), ECMWF
    Technical Memorandum 598, here additive.
    """

    step: Callable
    process: AutoregressiveField
    inject: Callable

    def __init__(self, step: Callable, process: AutoregressiveField, inject: Callable):
        """Join a step with the noise of its errors.

        Args:
            step: `step(value, forcing=None, *, key=None) -> value`.
            process: the noise in time, in spectral space.
            inject: from the process's coefficients to what is added to the value after
                each step, in its units.
        """
        self.step, self.process, self.inject = step, process, inject

    def start(self, value: PyTree, *, key: Key[Array, ""]) -> dict[str, PyTree]:
        """Return the state of a member that starts from `value`."""
        return {"value": value, "noise": self.process.start(key)}

    def __call__(
        self, state: dict[str, PyTree], forcing: PyTree = None, *, key: Key[Array, ""]
    ) -> dict[str, PyTree]:
        """Return the state one step later."""
        noise_key, step_key = jr.split(key)
        noise = self.process(state["noise"], key=noise_key)
        value = self.step(state["value"], forcing, key=step_key)
        error = self.inject(noise)
        value = jax.tree.map(lambda v, e: v + e.astype(v.dtype), value, error)
        return {"value": value, "noise": noise}
