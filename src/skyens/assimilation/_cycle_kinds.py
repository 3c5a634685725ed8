"""What happens once in a cycle: with a filter, and with a method of windows."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, Key, PyTree

from skyens.assimilation._diagnostics import Diagnostic, Seen
from skyens.assimilation._ensemble import predict_members
from skyens.assimilation._failures import Replace
from skyens.assimilation._resampling import Systematic
from skyens.assimilation._weighted import Weighted
from skyens.assimilation._window import (
    check_observation,
    hide_all_but,
    observe_times,
    recorded,
)
from skyens.observations import Observation

Update = Callable[[Any, Seen], Any]


class Carry(NamedTuple):
    """What one analysis hands to the next."""

    ensemble: PyTree[Array]
    memory: PyTree[Array]
    head: PyTree[Array] = None  # kept of the first window, before its newest data


class Parts(NamedTuple):
    """What both kinds of cycle do in the same way."""

    step: Callable[..., Any]
    fixed: Any
    observe: Callable[[Any], Observation]
    keep: Callable[[Any], Any]
    failures: Replace | None
    keys: Key[Array, "member"]
    analysis_key: Key[Array, ""]
    steps_between: int

    def forecast(
        self,
        ensemble: PyTree[Array],
        number: Int[Array, ""],
        forcing: PyTree[Array] = None,
        datum: PyTree[Array] = None,
    ) -> tuple[PyTree[Array], Float[Array, "step member *observation"] | None]:
        """Return the ensemble at datum `number`, and what it showed on the way there.

        The latter is None without `datum`, which has the data of each step.
        """

        def advance(ensemble, x):
            number, forcing, datum = x
            one = lambda state, key: self.step(
                state, forcing, key=jr.fold_in(key, number)
            )
            members = jax.vmap(one)(members_of(ensemble), self.keys)
            if datum is not None:
                observation = check_observation(self.observe(datum))
                datum = predict_members(members, observation)
            return with_members(ensemble, members), datum

        numbers = number * self.steps_between + jnp.arange(self.steps_between)
        return jax.lax.scan(advance, ensemble, (numbers, forcing, datum))

    def repair(
        self, ensemble: PyTree[Array], shown: PyTree[Array], number: Int[Array, ""]
    ) -> tuple[PyTree[Array], PyTree[Array], Int[Array, ""] | None]:
        """Return ensemble and what it showed without failed members, and their number.

        `shown` leads with members.
        """
        if self.failures is None:
            return ensemble, shown, None
        members, weights = members_of(ensemble), None
        if isinstance(ensemble, Weighted):
            weights = ensemble.weights
        failed = self.failures.find(members)
        # Numbers from the far end: analyses count from 0.
        key = jr.fold_in(self.analysis_key, ~number.astype(jnp.uint32))
        members, shown = self.failures.replace(
            (members, shown), failed, weights=weights, key=key
        )
        return with_members(ensemble, members), shown, jnp.sum(failed)

    def analyse(
        self,
        background: PyTree[Array],
        observation: Observation,
        memory: PyTree[Array],
        number: Int[Array, ""],
    ) -> tuple[PyTree[Array], Any, PyTree[Array]]:
        """Return the analysis, its info, and what the method remembers.

        Raises:
            ValueError: the analysis has another structure, shape or dtype.
        """
        method = eqx.combine(memory, self.fixed)
        key = jr.fold_in(self.analysis_key, number)
        analysis, info = method(background, observation, key=key)
        _check_alike(analysis, background)
        if (successor := getattr(info, "method", None)) is not None:
            memory = eqx.filter(successor, eqx.is_array)
        return analysis, info, memory


class FilterCycle:
    """Forecast to the time of a datum, and analyse there."""

    def __init__(
        self, parts: Parts, times: int, series: tuple[Any, Any, Any], asynchronous: bool
    ):
        """Set what to do, and data, truth and forcings."""
        data, truth, forcings = series
        shape = (times, parts.steps_between)
        split = lambda f: f.reshape(*shape, *f.shape[1:])
        self.parts, self.asynchronous, self.analyses = parts, asynchronous, times
        self.xs = data, truth, jax.tree.map(split, forcings), jnp.arange(times)

    def start(self, ensemble: PyTree[Array], memory: PyTree[Array]) -> Carry:
        """Return what the first analysis gets."""
        return Carry(ensemble, memory)

    def analyse(
        self, carry: Carry, x: tuple[Any, ...], sums: Any, update: Update
    ) -> tuple[Carry, Any, tuple[Any, ...]]:
        """Return what the next analysis gets, the sums, and what is kept of this."""
        parts = self.parts
        datum, truth, forcing, number = x
        steps = datum if self.asynchronous else None
        background, shown = parts.forecast(carry.ensemble, number, forcing, steps)
        if shown is not None:
            shown = jnp.moveaxis(shown, 0, 1)
        background, shown, failed = parts.repair(background, shown, number)
        if shown is None:
            observation = check_observation(parts.observe(datum))
        else:
            observation = recorded(observe_times(parts.observe, datum), shown)
        analysis, info, memory = parts.analyse(
            background, observation, carry.memory, number
        )
        if sums:
            yes = jnp.asarray(True)
            turn = jr.fold_in(parts.analysis_key, number)
            seen = look(
                background, analysis, observation, info, truth, number, yes, yes, turn
            )
            sums = update(sums, seen)
        kept = (
            parts.keep(analysis),
            parts.keep(background),
            eqx.filter(info, eqx.is_array),
            failed,
        )
        return Carry(analysis, memory), sums, kept

    def collect(self, carry: Carry, kept: tuple[Any, ...]) -> dict[str, Any]:
        """Return the fields of a `Cycle`."""
        analyses, backgrounds, infos, failed = kept
        return {
            "analyses": analyses,
            "backgrounds": backgrounds,
            "infos": infos,
            "failed": failed,
        }


class WindowCycle:
    """Analyse the start of a window, and forecast to the start of the next."""

    def __init__(
        self,
        parts: Parts,
        times: int,
        series: tuple[Any, Any, Any],
        window: int,
        shift: int,
    ):
        """Set what to do, data and truth, and the windows."""
        self.parts, self.window, self.shift = parts, window, shift
        self.data, self.truth, _ = series
        self.analyses = 1 + (times - window) // shift
        self.xs = (jnp.arange(self.analyses),)

    def start(self, ensemble: PyTree[Array], memory: PyTree[Array]) -> Carry:
        """Return what the first analysis gets."""
        # Only the first window keeps something of all its data.
        early = self.window - self.shift
        kept = jax.eval_shape(lambda e: (self.parts.keep(e),) * 2, ensemble)
        room = lambda x: jnp.zeros((early, *x.shape), x.dtype)
        return Carry(ensemble, memory, jax.tree.map(room, kept))

    def analyse(
        self, carry: Carry, x: tuple[Any, ...], sums: Any, update: Update
    ) -> tuple[Carry, Any, tuple[Any, ...]]:
        """Return what the next window gets, the sums, and what is kept of this."""
        parts, (number,) = self.parts, x
        first, early = number * self.shift, self.window - self.shift
        take = lambda a: jax.lax.dynamic_slice_in_dim(a, first, self.window)
        data, truth = jax.tree.map(take, (self.data, self.truth))
        places = jnp.arange(self.window)
        new = (places >= early) | (number == 0)
        background, _, failed = parts.repair(carry.ensemble, None, number)
        observations = hide_all_but(observe_times(parts.observe, data), new)
        analysis, info, memory = parts.analyse(
            background, observations, carry.memory, number
        )

        def advance(moving, x):
            before, after, next_start, sums = moving
            place, datum, truth, new = x
            at = first + place
            before, _ = parts.forecast(before, at)
            after, _ = parts.forecast(after, at)
            arrives = place == self.shift - 1
            next_start = _choose(arrives, after, next_start)
            if sums:
                observation = check_observation(parts.observe(datum))
                last, turn = place == self.window - 1, jr.fold_in(turns, at)
                seen = look(
                    before, after, observation, info, truth, at, new, last, turn
                )
                sums = update(sums, seen)
            return (before, after, next_start, sums), tuple(
                map(parts.keep, (after, before))
            )

        turns = jr.fold_in(parts.analysis_key, number)
        moving = background, analysis, analysis, sums
        moving, kept = jax.lax.scan(advance, moving, (places, data, truth, new))
        _, _, next_start, sums = moving
        newest = jax.tree.map(lambda a: a[early:], kept)
        head = jax.tree.map(lambda a: a[:early], kept)
        head = _choose(number == 0, head, carry.head)
        kept = newest, parts.keep(analysis), eqx.filter(info, eqx.is_array), failed
        return Carry(next_start, memory, head), sums, kept

    def collect(self, carry: Carry, kept: tuple[Any, ...]) -> dict[str, Any]:
        """Return the fields of a `Cycle`."""
        newest, starts, infos, failed = kept
        flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), newest)
        join = lambda head, rest: jnp.concatenate([head, rest])
        analyses, backgrounds = jax.tree.map(join, carry.head, flat)
        return {
            "analyses": analyses,
            "backgrounds": backgrounds,
            "infos": infos,
            "failed": failed,
            "starts": starts,
        }


def members_of(ensemble: PyTree[Array]) -> PyTree[Array]:
    """Return the members, of a weighted ensemble too."""
    return ensemble.members if isinstance(ensemble, Weighted) else ensemble


def with_members(ensemble: PyTree[Array], members: PyTree[Array]) -> PyTree[Array]:
    """Return an ensemble of other members, with the weights that they had."""
    if not isinstance(ensemble, Weighted):
        return members
    return eqx.tree_at(lambda e: e.members, ensemble, members)


def look(
    background, analysis, observation, info, truth, number, counts, last, key
) -> Seen:
    """Return what diagnostics see."""
    even = lambda e: Systematic()(e, key=key) if isinstance(e, Weighted) else e
    background, analysis = even(background), even(analysis)
    along = hasattr(observation.operator, "predictions")
    analysed = None if along else predict_members(analysis, observation)
    return Seen(
        background=background,
        analysis=analysis,
        observation=observation,
        predictions=predict_members(background, observation),
        analysed=analysed,
        info=info,
        truth=truth,
        number=number,
        counts=counts,
        last=last,
    )


def empty_sums(
    diagnostics: Mapping[str, Diagnostic],
    analyse: Callable[..., Any],
    carry: Carry,
    xs: tuple[Any, ...],
) -> dict[str, Any]:
    """Return states that have seen nothing, for what `analyse` will show them."""
    if not diagnostics:
        return {}
    shown = []

    def spy(sums, seen):
        shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
        shown.append(jax.tree.map(lambda x: shape(x) if eqx.is_array(x) else x, seen))
        return sums

    first = jax.tree.map(lambda x: x[0], xs)
    some = {"sums": jnp.zeros(())}
    jax.eval_shape(lambda carry, x: analyse(carry, x, some, spy)[1], carry, first)
    is_shape = lambda x: isinstance(x, jax.ShapeDtypeStruct)
    seen = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype) if is_shape(x) else x, shown[0]
    )
    return {name: each.init(seen) for name, each in diagnostics.items()}


def _choose(yes, one, other):
    return jax.tree.map(lambda a, b: jnp.where(yes, a, b), one, other)


def _check_alike(analysis, background):
    """Check that the method returned what it can take again."""
    say = lambda tree: jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree)
    one, other = (jax.tree.flatten(say(e)) for e in (analysis, background))
    if one != other:
        hint = ""
        if isinstance(analysis, Weighted) and not isinstance(background, Weighted):
            hint = " It is a particle filter's: start from Weighted(ensemble0)."
        raise ValueError(
            "the method must return an analysis of the structure, shapes and dtypes of "
            f"its background.{hint} Got {say(analysis)} for {say(background)}."
        )
