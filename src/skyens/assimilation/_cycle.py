"""Cycling: forecast, observe, analyse, again and again, in one scan."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from skyens.assimilation._cycle_kinds import (
    FilterCycle,
    Parts,
    WindowCycle,
    empty_sums,
)
from skyens.assimilation._diagnostics import Diagnostic
from skyens.assimilation._ensemble import as_pytree, count_members
from skyens.assimilation._failures import Replace
from skyens.assimilation._progress import Bar
from skyens.assimilation._window import holds_step, layers
from skyens.dynamics import Purpose, member_keys, run_key
from skyens.observations import Observation


class Cycle(eqx.Module):
    """What a cycled assimilation leaves behind.

    `analyses` and `backgrounds` have a leading time axis, one entry for each time of
    `data`; they hold whole ensembles, or what `reduce` made of them. `infos` has one
    entry for each analysis. `ensemble` and `method` are the last analysis and the
    method as its memory left it: a further cycle starts from them.

    Of windows, both are the ensembles at the times of observation: forecasts through
    the window, from its background and from its analysis. They are those of the first
    window that has seen an observation, so that with a shift of 1 an analysis knows
    the observations up to its time, as a filter's does. `starts` are the analyses at
    the windows' starts, one for each window, and `ensemble` stands where the next one
    would start.

    `failed` counts the members that were replaced, for each analysis. `diagnostics`
    holds the results by name, and `sums` what they were made of, to be merged with
    those of other cycles. They are None where nothing of the kind was asked for.
    """

    analyses: PyTree[Any]
    backgrounds: PyTree[Any]
    infos: PyTree[Any]
    ensemble: PyTree[Array]
    method: Any
    starts: PyTree[Any] = None
    failed: Any = None
    diagnostics: Any = None
    sums: Any = None


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
    asynchronous: bool = False,
    window: int | None = None,
    shift: int | None = None,
    failures: Replace | None = None,
    diagnostics: Mapping[str, Diagnostic] | None = None,
    truth: PyTree[Array] | None = None,
    checkpoint: bool | int = False,
    progress: bool | str = False,
) -> Cycle:
    """Alternate `steps_between` forecast steps and an analysis, once for each datum.

    `ensemble0` is the analysis before the first step; `data` begins `steps_between`
    steps later. All runs in one `jax.lax.scan`: neither memory nor compile time grow
    with the number of cycles, but for what is kept of each.

    Three kinds of cycle:

    - A filter analyses each datum when its time has come. This is the default.
    - With `asynchronous`, observations are made at every step: `data` has two leading
      axes, times and `steps_between`, and each observation is predicted when the
      forecast passes its time. The filter then takes all those since the last analysis
      at once, as one observation with a leading axis of steps, with the correlations
      between then and now. Its operator knows only the members: for ensemble methods.
    - With `window`, the method is one that holds the step (4D-Var, IEnKS): it gets the
      background at the start of a window of so many data, and their observations
      stacked on a leading axis, of which entry i is made `(i + 1) * steps_between`
      steps after the start. Its analysis is of the start too, and the step carries it
      on to the start of the next window, `shift` data later. Where windows overlap,
      what an earlier one has seen is masked: each observation is used once.

    Args:
        step: `step(state, forcing=None, *, key=None) -> state`, for one member.
        method: `method(background, observation, *, key) -> (analysis, info)`. One with
            memory returns its successor as `info.method`, of the same structure.
        ensemble0: the initial members, any pytree with a leading member axis, or
            `Weighted`: the step moves its members and keeps the weights.
        observe: makes the observation of one time from its slice of `data`, inside the
            scan: stations may move and be missing, in arrays of static shape.
        data: arrays with a leading axis of analysis times.
        key: of the run. A member's step gets that of `dynamics.member_keys` with the
            number of the step folded in, as in `dynamics.rollout`, so it does not
            depend on how many others run.
        steps_between: steps from one analysis (of a window: datum) to the next.
        forcings: what is prescribed at each step, arrays with a leading axis of
            analysis times `* steps_between`, the same for all members.
        reduce: `reduce(ensemble)` is kept in place of whole ensembles: a mean, say, or
            `moments`.
        start: the time of `ensemble0`, and
        version: the number of the model, for the keys, see `dynamics.run_key`.
        asynchronous: whether there are data of every step.
        window: length of a window, in data; None for a filter.
        shift: from one window to the next, in data; all of the window when None.
        failures: replaces members that failed in the forecast to an analysis, or to the
            start of a window, and counts them; None to take them as they are.
        diagnostics: statistics by name: `AgainstObservations(scores.Desroziers())`,
            `AgainstTruth`, `Information`, say. Weighted members are resampled for them.
        truth: the true states at the times of `data`, for diagnostics, stacked.
        checkpoint: True to compute each cycle anew in reverse mode, so that a gradient
            stores one ensemble for each cycle and nothing from inside; a number to do
            so by that many cycles too, so that it stores one for each of these: near
            the root of the number of cycles memory is least, for a third forecast.
        progress: whether to show a bar, or what to write before it.

    Raises:
        ValueError: `steps_between` is below 1, `data`, `truth` or `forcings` have not
            the leading axes they need, leaves disagree on the number of members, the
            windows do not fit the data or do not go with other arguments, the method
            holds a step and there is no window, or the other way round, it returns an
            analysis that is not like its background, or `checkpoint` does not divide
            the number of analyses.
        EquinoxRuntimeError: more members failed at a time than `failures` allows.
    """
    if steps_between < 1:
        raise ValueError(f"`steps_between` must be at least 1, got {steps_between}.")
    members = count_members(ensemble0, least=1)
    times = _length("data", data)
    if times is None:
        raise ValueError("`data` holds no array, so there is no time to analyse.")
    steps = _length("forcings", forcings)
    if steps not in (None, times * steps_between):
        raise ValueError(
            f"`forcings` must have {times} * {steps_between} steps, got {steps}."
        )
    if (true := _length("truth", truth)) not in (None, times):
        raise ValueError(f"`truth` must have the {times} times of `data`, got {true}.")
    if asynchronous:
        _check_steps(data, steps_between)
    if window is None and shift is not None:
        raise ValueError("`shift` moves a window: give its length as `window`.")
    if window is None and holds_step(method):
        raise ValueError(
            f"{type(layers(method)[-1]).__name__} holds a step: give the length of its "
            "`window`, in data."
        )
    if window is not None:
        shift = window if shift is None else shift
        _check_window(method, times, window, shift, steps_between, asynchronous, steps)
    step_key, analysis_key = (
        run_key(key, purpose, start=start, version=version)
        for purpose in (Purpose.STEP, Purpose.ANALYSE)
    )
    memory, fixed = eqx.partition(as_pytree(method), eqx.is_array)
    parts = Parts(
        step=step,
        fixed=fixed,
        observe=observe,
        keep=(lambda ensemble: ensemble) if reduce is None else reduce,
        failures=failures,
        keys=member_keys(step_key, members),
        analysis_key=analysis_key,
        steps_between=steps_between,
    )
    arrays = lambda tree: jax.tree.map(jnp.asarray, tree)
    series = arrays((data, truth, forcings))
    if window is None or shift is None:
        kind = FilterCycle(parts, times, series, asynchronous)
    else:
        kind = WindowCycle(parts, times, series, window, shift)
    named = dict(diagnostics or {})
    carry = kind.start(arrays(ensemble0), memory)
    sums = empty_sums(named, kind.analyse, carry, kind.xs)
    bar = Bar(kind.analyses, progress if isinstance(progress, str) else "Cycling")

    def body(carry, x):
        carry, sums = carry
        update = lambda sums, seen: {
            n: d.update(sums[n], seen) for n, d in named.items()
        }
        carry, sums, kept = kind.analyse(carry, x, sums, update)
        if progress:
            bar.tell(x[-1])
        return (carry, sums), kept

    (carry, sums), kept = _scan(body, (carry, sums), kind.xs, kind.analyses, checkpoint)
    result = Cycle(
        ensemble=carry.ensemble,
        method=eqx.combine(carry.memory, fixed),
        diagnostics={n: d.finalize(sums[n]) for n, d in named.items()} or None,
        sums=sums or None,
        **kind.collect(carry, kept),
    )
    if failures is None or result.failed is None:
        return result
    checked, rest = eqx.partition(result, eqx.is_array)
    return eqx.combine(failures.check(checked, result.failed, members), rest)


def _scan(body, carry, xs, length: int, checkpoint: bool | int):
    """A scan whose body is computed again in reverse mode, if asked, at two levels."""
    if not checkpoint:
        return jax.lax.scan(body, carry, xs, length=length)
    # A loop already keeps the compiler from undoing the recomputation.
    body = jax.checkpoint(body, prevent_cse=False)
    if checkpoint is True:
        return jax.lax.scan(body, carry, xs, length=length)
    if checkpoint < 1 or length % checkpoint:
        raise ValueError(
            f"`checkpoint` must divide the {length} analyses, got {checkpoint}."
        )
    shape = (length // checkpoint, checkpoint)
    part = jax.checkpoint(
        lambda carry, xs: jax.lax.scan(body, carry, xs), prevent_cse=False
    )
    split = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), xs)
    carry, kept = jax.lax.scan(part, carry, split)
    return carry, jax.tree.map(lambda x: x.reshape(length, *x.shape[2:]), kept)


def _check_steps(data: PyTree[Any], steps_between: int) -> None:
    """Check that there are data of every step, where observations have their own.

    Raises:
        ValueError: an observation would be made outside of its window.
    """
    for leaf in jax.tree.leaves(data):
        if jnp.shape(leaf)[1:2] != (steps_between,):
            raise ValueError(
                "asynchronous `data` have two leading axes, times and the "
                f"{steps_between} steps of `steps_between`, got the shape "
                f"{jnp.shape(leaf)}: an observation of another step would lie outside "
                "of its window. Mask the steps without one."
            )


def _check_window(
    method: Any,
    times: int,
    window: int,
    shift: int,
    steps_between: int,
    asynchronous: bool,
    steps: int | None,
) -> None:
    """Check that windows cover all data, each used once.

    Raises:
        ValueError: they do not, or do not go with the other arguments.
    """
    if not 1 <= shift <= window:
        raise ValueError(
            f"`shift` must lie in [1, {window}], the `window`, got {shift}: otherwise "
            "observations lie outside of all windows."
        )
    if times < window or (times - window) % shift:
        raise ValueError(
            f"{times} data do not make windows of {window} with a shift of {shift}: "
            f"their number must be {window} + a multiple of {shift}, or observations "
            "lie outside of all windows."
        )
    if asynchronous or steps is not None:
        raise ValueError(
            "with `window` the method runs the step by itself: leave `asynchronous` "
            "and `forcings` out, and choose `steps_between` as small as is needed."
        )
    inner = layers(method)[-1]
    # Others' methods may hold their step under any name.
    ours = type(inner).__module__.startswith(f"{__package__}.")
    if ours and not holds_step(inner):
        raise ValueError(
            f"{type(inner).__name__} holds no step, so it knows no window: leave "
            "`window` out, or cycle with asynchronous=True."
        )
    if (own := getattr(inner, "steps_between", steps_between)) != steps_between:
        raise ValueError(
            f"the method has steps_between={own}, the cycle {steps_between}."
        )


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
