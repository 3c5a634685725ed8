"""A walk up the evidence by single terms: everything changes by a rank of one."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from skyens.sparse._ascent import tolerance
from skyens.sparse._evidence import Statistics, System


def walk(
    system: System,
    gram: Float[Array, "term term"],
    ratio: Float[Array, "term"],
    now: Statistics,
    enabled,
) -> tuple[Float[Array, "term"], Int[Array, ""]]:
    """Return the ratios after the best changes of one term after another, and how many.

    Source: Tipping & Faul (2003), AISTATS; the noise, where free, is profiled out.
    """
    start = _Walk(
        ratio, now.shape, now.mean, jnp.diagonal(now.bend), now.pull, now.misfit
    )
    enough = tolerance(system)

    def going(carry):
        _, taken, open_end = carry
        return open_end & (taken < 2 * len(ratio))

    def step(carry):
        here, taken, _ = carry
        moves = _moves(system, here)
        gains = jnp.max(moves.score) >= enough
        new = _step(system, gram, here, moves, gains)
        return new, taken + gains.astype(int), gains

    last, taken, _ = lax.while_loop(going, step, (start, jnp.asarray(0), enabled))
    return last.ratio, taken


class _Walk(NamedTuple):
    ratio: Float[Array, "term"]
    shape: Float[Array, "term term"]
    mean: Float[Array, "term"]
    bend: Float[Array, "term"]
    pull: Float[Array, "term"]
    misfit: Float[Array, ""]


class _Moves(NamedTuple):
    score: Float[Array, "term"]  # the gain; that of deletions stands above all
    ratio: Float[Array, "term"]  # the best one
    shape: Float[Array, "term"]  # its variance afterwards, over the noise's
    pull: Float[Array, "term"]  # without the term itself


def _moves(system: System, walk: _Walk) -> _Moves:
    """Return what the best change of each term alone is worth."""
    eps = jnp.finfo(walk.ratio.dtype).eps
    active = walk.ratio > 0
    ratio = jnp.where(active, walk.ratio, 1)
    width = jnp.where(active, jnp.diagonal(walk.shape), 0)
    # Bend and pull without the term. Of the two forms take the one that keeps digits.
    gamma = jnp.where(active, walk.ratio * walk.bend, 0)
    open_form = gamma < 0.5
    rest = jnp.where(open_form, 1 - gamma, 1)
    narrow = jnp.where(active & ~open_form, width, 1)
    bend = jnp.where(open_form, walk.bend / rest, 1 / narrow - 1 / ratio)
    pull = jnp.where(open_form, walk.pull / rest, walk.mean / narrow)
    # A column that lies in the span of the active ones is nothing but rounding.
    possible = bend > 64 * len(bend) * eps
    bend = jnp.where(possible, bend, 1)
    without = walk.misfit + pull**2 * width
    old = 1 + bend * jnp.where(active, walk.ratio, 0)
    if system.variance is None:
        share = pull**2 / (bend * without)
        # It is 1 - share, which cancels where little noise is left.
        least = (walk.misfit - pull**2 / (bend * old)) / without
        least = jnp.maximum(least, jnp.maximum(system.rest, eps**2) / without)
        best = share * (system.rows - 1) / least
        fit = lambda t: -0.5 * system.rows * jnp.log(least + share / t)
    else:
        share = pull**2 / (bend * system.variance)
        best = share
        fit = lambda t: -0.5 * share / t
    value = lambda t: fit(t) - 0.5 * jnp.log(t)
    new = jnp.maximum(best, 1)
    gain = value(new) - value(old)
    leaving = active & (best <= 1)
    gain = jnp.where(possible, gain, -jnp.inf)
    score = jnp.where(leaving, 1e6 + gain, gain)
    return _Moves(score, (new - 1) / bend, (1 - 1 / new) / bend, pull)


def _step(system: System, gram, walk: _Walk, moves: _Moves, gains) -> _Walk:
    """Return the walk after its best move, or as it was where that gains nothing."""
    m = jnp.argmax(moves.score)
    active = walk.ratio[m] > 0
    width = walk.shape[m, m]
    unit = jnp.zeros_like(walk.ratio).at[m].set(1)
    along = jnp.where(
        active,
        walk.shape[:, m] / jnp.where(active, width, 1),
        unit - walk.shape @ gram[:, m],
    )
    ratio = walk.ratio.at[m].set(jnp.where(gains, moves.ratio[m], walk.ratio[m]))
    kept = ratio > 0
    along = jnp.where(kept | (unit > 0), along, 0)
    change = jnp.where(gains, moves.shape[m] - width, 0)
    shape = walk.shape + change * along[:, None] * along[None]
    seen = gram @ along
    return _Walk(
        ratio=ratio,
        shape=jnp.where(kept[:, None] & kept[None], shape, 0),
        mean=jnp.where(kept, walk.mean + change * moves.pull[m] * along, 0),
        bend=walk.bend - change * seen**2,
        pull=walk.pull - change * moves.pull[m] * seen,
        misfit=jnp.maximum(
            walk.misfit - change * moves.pull[m] ** 2,
            jnp.maximum(system.rest, jnp.finfo(width.dtype).eps ** 2),
        ),
    )
