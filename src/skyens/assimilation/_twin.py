"""Twin experiments: a truth, and what instruments would have seen of it."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from skyens.assimilation._ensemble import as_pytree
from skyens.dynamics import Purpose, run_key
from skyens.observations import Error, Observation

# The truth is no member: it has the last number that there is.
_TRUTH = np.uint32(2**32 - 1)


class Twin(eqx.Module):
    """A truth and its observations: what a cycle takes.

        world = twin(step, state0, operator, error, 1000, key=key)
        result = cycle(step, method, ensemble0, world.observe, world.data,
                       truth=world.truth, key=key)

    `truth` and `data` have a leading axis of times (`data` a second one of steps where
    asynchronous); `state0` is the truth before the first step, after the spin-up.
    """

    state0: PyTree[Array]
    truth: PyTree[Array]
    data: Float[Array, "..."]
    operator: Callable[[Any], Array]
    error: Error

    def observe(self, value: Float[Array, "*observation"]) -> Observation:
        """Return the observation of one time, from its entry of `data`."""
        return Observation(value, self.operator, self.error)


def twin(
    step: Callable[..., Any],
    state0: PyTree[Array],
    operator: Callable[[Any], Array],
    error: Error,
    times: int,
    *,
    key: Key[Array, ""],
    steps_between: int = 1,
    forcings: PyTree[Array] | None = None,
    spin_up: int = 0,
    missing: float | Float[Array, ""] = 0.0,
    asynchronous: bool = False,
    start: np.datetime64 | str | None = None,
    version: int = 0,
) -> Twin:
    """Run a truth, and observe it with errors drawn from their law.

    It maps over keys: `jax.vmap(lambda key: twin(..., key=key))(keys)`. With the key of
    a cycle, the numbers that it draws are none of the cycle's.

    Args:
        step: `step(state, forcing=None, *, key=None) -> state`.
        state0: the true state before the spin-up, without member axis.
        operator: from one state to what is seen, any shape.
        error: the law of the observation errors, `observations.Diagonal(1.0)` say.
        times: how many times to observe.
        key: of the experiment.
        steps_between: steps to the first time, and from each to the next.
        forcings: of each step, arrays with a leading axis of `times * steps_between`;
            the spin-up has none.
        spin_up: number of steps before all.
        missing: the share of values that are absent (NaN), at random, in [0, 1].
        asynchronous: whether to observe at each step, as in `cycle`.
        start: the time of the first step, and
        version: the number of the model, for the keys, see `dynamics.run_key`.

    Raises:
        ValueError: `times` or `steps_between` is below 1, `spin_up` is negative, or
            `forcings` have another length.
        EquinoxRuntimeError: `missing` lies outside [0, 1].
    """
    if times < 1 or steps_between < 1 or spin_up < 0:
        raise ValueError(
            "`times` and `steps_between` must be at least 1 and `spin_up` 0, got "
            f"{times}, {steps_between} and {spin_up}."
        )
    steps = times * steps_between
    for leaf in jax.tree.leaves(forcings):
        if jnp.shape(leaf)[:1] != (steps,):
            raise ValueError(
                f"`forcings` must have {times} * {steps_between} steps, got the shape "
                f"{jnp.shape(leaf)}."
            )
    missing = jnp.asarray(missing, float)
    inside = (missing >= 0) & (missing <= 1)
    missing = eqx.error_if(missing, ~inside, "`missing` must lie in [0, 1].")
    draws = lambda purpose: run_key(key, purpose, start=start, version=version)
    step_key = jr.fold_in(draws(Purpose.STEP), _TRUTH)
    observe_key = draws(Purpose.OBSERVE)

    def see(state, number: Int[Array, ""]) -> Float[Array, "..."]:
        noise, gap = jr.split(jr.fold_in(observe_key, number))
        perfect = Observation(jnp.asarray(operator(state)), operator, error)
        value = perfect.sample(state, key=noise)
        absent: Bool[Array, "..."] = jr.uniform(gap, value.shape) < missing
        return jnp.where(absent, jnp.nan, value)

    def advance(state, x):
        number, forcing = x
        state = step(state, forcing, key=jr.fold_in(step_key, number))
        return state, see(state, number) if asynchronous else None

    def interval(state, x):
        state, seen = jax.lax.scan(advance, state, x)
        return state, (state, see(state, x[0][-1]) if seen is None else seen)

    def before(state, number):
        return step(state, None, key=jr.fold_in(step_key, number)), None

    state0 = jax.tree.map(jnp.asarray, state0)
    # Numbers of the run begin at 0, those of the spin-up come after all of its.
    state0, _ = jax.lax.scan(before, state0, steps + jnp.arange(spin_up))
    split = lambda f: jnp.reshape(f, (times, steps_between, *jnp.shape(f)[1:]))
    xs = split(jnp.arange(steps)), jax.tree.map(split, forcings)
    truth, data = jax.lax.scan(interval, state0, xs)[1]
    return Twin(state0, truth, data, as_pytree(operator), error)
