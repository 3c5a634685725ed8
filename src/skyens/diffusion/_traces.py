"""Traces of Jacobians: what a flow widens or narrows, exactly or by chance."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

State = Float[Array, "*state"]


@runtime_checkable
class Trace(Protocol):
    """How the trace of a function's Jacobian is found, along with its value."""

    def prepare(self, x: State, key: PRNGKeyArray | None) -> Any:
        """Return what stays the same over a whole solve, random vectors say."""
        ...

    def __call__(
        self, function: Callable, x: State, prepared: Any
    ) -> tuple[State, Float[Array, ""]]:
        """Return `function(x)` and the trace of its Jacobian at `x`."""
        ...


class ExactTrace(eqx.Module):
    """The sum of the Jacobian's diagonal: as many derivatives as the state has entries.

    For states of up to some hundreds of entries; memory grows with their square.
    """

    def prepare(self, x: State, key: PRNGKeyArray | None) -> None:
        """Prepare nothing; a key is not needed."""

    def __call__(
        self, function: Callable, x: State, prepared: None
    ) -> tuple[State, Float[Array, ""]]:
        """Return `function(x)` and the trace of its Jacobian at `x`."""
        value, push = jax.linearize(function, x)
        basis = jnp.eye(x.size, dtype=x.dtype)
        entry = lambda row: jnp.vdot(row, push(row.reshape(x.shape)).ravel())
        return value, jnp.sum(jax.vmap(entry)(basis))


class Hutchinson(eqx.Module):
    """An unbiased estimate of the trace, `z . J z` for random signs z.

    One derivative for each of the `probes`, which are drawn once for a whole solve. Its
    variance is twice the sum of the squares of the symmetrised Jacobian's entries off
    the diagonal, over the number of probes.

    Source: Grathwohl et al. (2019), FFJORD, ICLR, arXiv:1810.01367, equation 7.
    """

    probes: int = eqx.field(static=True)

    def __init__(self, probes: int = 1):
        """Set the number of `probes`.

        Raises:
            ValueError: it is below 1.
        """
        if probes < 1:
            raise ValueError(f"`probes` must be at least 1, got {probes}.")
        self.probes = probes

    def prepare(
        self, x: State, key: PRNGKeyArray | None
    ) -> Float[Array, "probe *state"]:
        """Return random signs.

        Raises:
            ValueError: there is no key.
        """
        if key is None:
            raise ValueError("`Hutchinson` draws random signs: give a `key`.")
        return jr.rademacher(key, (self.probes, *x.shape), x.dtype)

    def __call__(
        self, function: Callable, x: State, prepared: Float[Array, "probe *state"]
    ) -> tuple[State, Float[Array, ""]]:
        """Return `function(x)` and the estimated trace of its Jacobian at `x`."""
        value, push = jax.linearize(function, x)
        estimate = lambda z: jnp.sum(z * push(z))
        return value, jnp.mean(jax.vmap(estimate)(prepared))
