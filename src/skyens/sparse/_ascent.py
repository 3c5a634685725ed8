"""The climb to an optimum of the evidence: one loop, whatever the way up."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from skyens.sparse._evidence import (
    Statistics,
    System,
    log_evidence,
    moved,
    newton_step,
    statistics,
)

# What the next trial is: a warm step, a promised gain, a Newton step on all terms, and
# a return to the best point, to go on from there or to stay.
WARM, MOVE, NEWTON, BACK, LAST = range(5)


class Found(NamedTuple):
    """The ratios an update found, what they imply, and how it went."""

    ratio: Float[Array, "term"]
    now: Statistics
    converged: Bool[Array, ""]
    steps: Int[Array, ""]


class _Peak(NamedTuple):
    ratio: Float[Array, "term"]
    evidence: Float[Array, ""]


class _Climb(NamedTuple):
    trial: Float[Array, "term"]
    kind: Int[Array, ""]
    here: Float[Array, "term"]  # the last trial, and what it implies
    now: Statistics
    peak: _Peak
    rival: _Peak  # of the ascent before
    again: Bool[Array, ""]  # whether another ascent is to follow
    done: Bool[Array, ""]
    steps: Int[Array, ""]


def tolerance(system: System) -> Float[Array, ""]:
    """Return the gain in evidence that is none."""
    return 1e-9 + 4 * jnp.finfo(system.target.dtype).eps * system.rows


def ascend(
    system: System,
    warm: Callable,
    move: Callable | None = None,
    *,
    max_steps: int,
) -> Found:
    """Return where steps, moves and Newton steps lead.

    The ascent starts from all terms, with warm steps. With moves another starts from no
    term, and the higher optimum counts; where the others explain no column (no variance
    inflation factor above 1000) the second alone. All of this is one loop, so that the
    statistics are compiled once.

    Args:
        system: the regression.
        warm: `warm(ratio, now, steps) -> (ratio, more)`, steps that are taken whatever
            the evidence says, while there are more.
        move: `move(ratio, now, enabled) -> (ratio, count)`, the changes that promise
            more evidence and how many there are, none where not `enabled`.
        max_steps: in all.
    """
    nothing = jnp.zeros_like(system.target)
    # A prior that explains about as much as the target has, spread over the terms.
    norms = jnp.sum(system.factor**2, axis=0)
    dense = jnp.where(system.share(norms) > 0, system.rows, nothing)
    shapes = jax.eval_shape(statistics, system, nothing)
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    low = _Peak(nothing, jnp.full((), -jnp.inf, nothing.dtype))
    enough = tolerance(system)

    def going(c: _Climb):
        return ~c.done & (c.steps < max_steps)

    def body(c: _Climb) -> _Climb:
        now = statistics(system, c.trial)
        evidence = log_evidence(system, now)
        gain = evidence - c.peak.evidence
        newton, moving = c.kind == NEWTON, c.kind == MOVE
        # The last Newton step gains nothing that can be seen; it is still the better.
        taken = ~(newton | moving) | (gain > jnp.where(newton, -enough, 0))
        failed = (newton | moving) & ~(gain >= enough)
        peak = _pick(taken, _Peak(c.trial, evidence), c.peak)
        ended, again = newton & failed, c.again

        warmed, more = warm(c.trial, now, c.steps)
        more = more & (c.kind == WARM)
        count, elsewhere = jnp.asarray(0), jnp.asarray(False)
        better = nothing
        if move is not None:
            # At large ratios this is (Phi^T Phi)^-1: the inflation of unit columns.
            inflation = jnp.max(jnp.diagonal(now.shape))
            elsewhere = (c.steps == 0) & (inflation < 1000)
            again = again & ~elsewhere
            able = taken & ~failed & ~more & ~elsewhere & (c.kind < BACK)
            better, count = move(c.trial, now, able)
        change = newton_step(system, c.trial, now)
        polished = moved(c.trial, change, c.trial > 0)

        kind = jnp.where(more, WARM, jnp.where(count > 0, MOVE, NEWTON))
        trial = jnp.where(more, warmed, jnp.where(count > 0, better, polished))
        worse = c.rival.evidence > peak.evidence + 10 * enough  # of equals the second
        over, close = ended & again, ended & ~again & (worse | ~taken)
        back = moving & ~taken
        best = jnp.where(close & worse, c.rival.ratio, peak.ratio)
        kind = jnp.where(close, LAST, jnp.where(back, BACK, kind))
        trial = jnp.where(close | back, best, trial)
        restart = over | elsewhere
        return _Climb(
            trial=jnp.where(restart, 0, trial),
            kind=jnp.where(restart, MOVE, kind),
            here=c.trial,
            now=now,
            peak=_pick(restart, low, peak),
            rival=_pick(over, peak, c.rival),
            again=again & ~over,
            done=(c.kind == LAST) | (ended & ~again & ~close),
            steps=c.steps + count + 1,
        )

    two, no, zero = jnp.asarray(move is not None), jnp.asarray(False), jnp.asarray(0)
    start = _Climb(dense, zero, nothing, blank, low, low, two, no, zero)
    last = lax.while_loop(going, body, start)
    return Found(last.here, last.now, last.done, last.steps)


def _pick(condition, new, old):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
