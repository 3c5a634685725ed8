"""Cycling: forecast, observe, analyse, again and again, in one scan."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Key, PyTree

from skyens.assimilation._ensemble import as_pytree, count_members
from skyens.dynamics import Purpose, member_keys, run_key
from skyens.observations import Observation


class Cycle(eqx.Module):
    """What a cycled assimilation leaves behind.

    `analyses`, `backgrounds` and `infos` have a leading time axis, one entry for each
    analysis; the first two hold whole ensembles, or what `reduce` made of them.
    `ensemble` and `method` are the last analysis and the method as its memory left it:
    a further cycle starts from them.
    """

    analyses: PyTree[Any]
    backgrounds: PyTree[Any]
    infos: PyTree[Any]
    ensemble: PyTree[Array]
    method: Any


def cycle(
    step: Callable[..., Any],
    method: Callable[..., tuple[Any, Any]],
    ensemble0: PyTree[Array],
    observe: Callable[[Any], Observation],
    data: PyTree[Array],
    *,
    key: Key[Array, ""],
    steps_between: int = 1,
    forcings: PyTree[Array] | None = None,
    reduce: Callable[[Any], Any] | None = None,
    start: np.datetime64 | str | None = None,
    version: int = 0,
) -> Cycle:
    """Alternate `steps_between` forecast steps and an analysis, once for each datum.

    `ensemble0` is the analysis before the first step; `data` begins `steps_between`
    steps later. All runs in one `jax.lax.scan`: neither memory nor compile time grow
    with the number of cycles, but for what is kept of each.

    Args:
        step: `step(state, forcing=None, *, key=None) -> state`, for one member.
        method: `method(background, observation, *, key) -> (analysis, info)`. One with
            memory returns its successor as `info.method`, of the same structure.
        ensemble0: the initial members, any pytree with a leading member axis.
        observe: makes the observation of one time from its slice of `data`, inside the
            scan: stations may move and be missing, in arrays of static shape.
        data: arrays with a leading axis of analysis times.
        key: of the run. A member's step gets that of `dynamics.member_keys` with the
            number of the step folded in, as in `dynamics.rollout`, so it does not
            depend on how many others run.
        steps_between: steps from one analysis to the next.
        forcings: what is prescribed at each step, arrays with a leading axis of
            analysis times `* steps_between`, the same for all members.
        reduce: `reduce(ensemble)` is kept in place of whole ensembles: a mean, say.
        start: the time of `ensemble0`, and
        version: the number of the model, for the keys, see `dynamics.run_key`.

    Raises:
        ValueError: `steps_between` is below 1, `data` or `forcings` have not the
            leading axis they need, or the ensemble has fewer than two members.
    """
    if steps_between < 1:
        raise ValueError(f"`steps_between` must be at least 1, got {steps_between}.")
    members = count_members(ensemble0)
    times = _length("data", data)
    if times is None:
        raise ValueError("`data` holds no array, so there is no time to analyse.")
    steps = _length("forcings", forcings)
    if steps not in (None, times * steps_between):
        raise ValueError(
            f"`forcings` must have {times} * {steps_between} steps, got {steps}."
        )
    keep = (lambda ensemble: ensemble) if reduce is None else reduce
    step_key, analysis_key = (
        run_key(key, purpose, start=start, version=version)
        for purpose in (Purpose.STEP, Purpose.ANALYSE)
    )
    keys = member_keys(step_key, members)
    memory, fixed = eqx.partition(as_pytree(method), eqx.is_array)

    def forecast(ensemble, x):
        forcing, number = x
        one = lambda state, key: step(state, forcing, key=jr.fold_in(key, number))
        return jax.vmap(one)(ensemble, keys), None

    def analyse(carry, x):
        ensemble, memory = carry
        datum, forcing, number = x
        numbers = number * steps_between + jnp.arange(steps_between)
        background, _ = jax.lax.scan(forecast, ensemble, (forcing, numbers))
        method = eqx.combine(memory, fixed)
        analysis, info = method(
            background, observe(datum), key=jr.fold_in(analysis_key, number)
        )
        if (successor := getattr(info, "method", None)) is not None:
            memory = eqx.filter(successor, eqx.is_array)
        kept = keep(analysis), keep(background), eqx.filter(info, eqx.is_array)
        return (analysis, memory), kept

    shape = (times, steps_between)
    forcings = jax.tree.map(lambda f: f.reshape(*shape, *f.shape[1:]), forcings)
    initial = (jax.tree.map(jnp.asarray, ensemble0), memory)
    (ensemble, memory), (analyses, backgrounds, infos) = jax.lax.scan(
        analyse, initial, (data, forcings, jnp.arange(times))
    )
    method = eqx.combine(memory, fixed)
    return Cycle(analyses, backgrounds, infos, ensemble, method)


def _length(name: str, tree: PyTree[Any]) -> int | None:
    """Leading size that all leaves of `tree` share; None if there are no leaves."""
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)}
    if not sizes:
        return None
    if len(sizes) != 1 or () in sizes:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
        raise ValueError(
            f"all arrays of `{name}` need the same leading time axis, got the shapes "
            f"{shapes}."
        )
    return next(iter(sizes))[0]
