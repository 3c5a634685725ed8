"""Ways to the evidence optimum: one term at a time, or all by a fixed point."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from skyens.sparse._evidence import System, climb, slope, statistics


class Found(NamedTuple):
    """The ratios an update found, and how."""

    ratio: Float[Array, "term"]
    converged: Bool[Array, ""]
    steps: Int[Array, ""]


class Sequential(eqx.Module):
    """Add, re-estimate or delete one term at a time, the one that gains most.

    It starts from no term. The noise, where free, is at its optimum all the time, so
    that each term's best prior variance has a closed form; each step costs p^2. Terms
    that are to go go first. All statistics are computed afresh until nothing is left
    to gain, with a Newton step on all active terms together each time.

    Source: Tipping & Faul (2003), AISTATS; the noise is profiled out here.
    """

    max_steps: int = eqx.field(static=True)

    def __init__(self, max_steps: int = 10_000):
        """Set the largest number of steps.

        Raises:
            ValueError: `max_steps` is not positive.
        """
        self.max_steps = _check_steps(max_steps)

    def solve(self, system: System) -> Found:
        """Return the ratios where no term gains anything.

        Raises:
            ValueError: there are groups, whose terms cannot go one at a time.
        """
        if system.same is not None:
            raise ValueError(
                "`update=Sequential()` moves single terms and knows no `groups`; pass "
                "`update=MacKay()` or `update=EM()`."
            )
        gram = system.factor.T @ system.factor
        terms = len(system.target)
        eps = jnp.finfo(system.target.dtype).eps
        tolerance = 1e-9 + 4 * eps * system.rows

        def going(carry):
            _, converged, steps = carry
            return ~converged & (steps < self.max_steps)

        def refresh(carry):
            ratio, _, steps = carry
            ratio, now = climb(system, ratio, statistics(system, ratio))
            start = _Walk(
                ratio, now.shape, now.mean, jnp.diagonal(now.bend), now.pull, now.misfit
            )
            best = lambda walk: jnp.max(_moves(system, walk).score)
            converged = best(start) < tolerance

            def walking(carry):
                _, taken, gain = carry
                return (gain >= tolerance) & (taken < 2 * terms)

            def walk_on(carry):
                walk, taken, _ = carry
                walk = _step(system, gram, walk)
                return walk, taken + 1, best(walk)

            first = start, jnp.asarray(0), best(start)
            walk, taken, _ = lax.while_loop(walking, walk_on, first)
            return walk.ratio, converged, steps + taken + 1

        none = jnp.zeros_like(system.target)
        first = none, jnp.asarray(False), jnp.asarray(0)
        return Found(*lax.while_loop(going, refresh, first))


class MacKay(eqx.Module):
    """The fixed point `variance = mean^2 / gamma`, gamma the share the data determine.

    It starts from all terms. A term (or group) of which the data determine less than 1
    percent, and which the evidence draws towards 0, is pruned; it does not come back.

    Source: MacKay (1992), Neural Comput. 4, 415-447; Tipping (2001), JMLR 1, 211-244.
    """

    max_steps: int = eqx.field(static=True)

    def __init__(self, max_steps: int = 10_000):
        """Set the largest number of steps.

        Raises:
            ValueError: `max_steps` is not positive.
        """
        self.max_steps = _check_steps(max_steps)

    def solve(self, system: System) -> Found:
        """Return the ratios at the fixed point."""

        def update(ratio, now):
            gamma = system.share(ratio * jnp.diagonal(now.bend))
            square = system.share(now.mean**2) / system.noise(now.misfit)
            return jnp.where(gamma > 0, square / jnp.where(gamma > 0, gamma, 1), 0)

        return _fixed_point(system, update, self.max_steps)


class EM(eqx.Module):
    """Expectation and maximisation: the evidence never falls, and climbs slowly.

    It starts from all terms and prunes them as `MacKay` does.

    Source: Tipping (2001), JMLR 1, 211-244; with the noise at its optimum at each step,
    Liu & Rubin (1994), Biometrika 81, 633-648.
    """

    max_steps: int = eqx.field(static=True)

    def __init__(self, max_steps: int = 10_000):
        """Set the largest number of steps.

        Raises:
            ValueError: `max_steps` is not positive.
        """
        self.max_steps = _check_steps(max_steps)

    def solve(self, system: System) -> Found:
        """Return the ratios at the fixed point."""

        def update(ratio, now):
            square = now.mean**2 / system.noise(now.misfit)
            count = system.share(jnp.ones_like(ratio))
            return system.share(square + jnp.diagonal(now.shape)) / count

        return _fixed_point(system, update, self.max_steps)


def _fixed_point(system: System, update, max_steps: int) -> Found:
    count = system.share(jnp.ones_like(system.target))

    def going(carry):
        _, error, steps = carry
        return (error > 1e-5) & (steps < max_steps)

    def body(carry):
        ratio, _, steps = carry
        now = statistics(system, ratio)
        new = jnp.where(ratio > 0, update(ratio, now), 0)
        gamma = system.share(ratio * jnp.diagonal(now.bend)) / count
        leaving = (gamma < 0.01) & (slope(system, now) < 0)
        new = jnp.where(leaving, 0, new)
        kept = (ratio > 0) & (new > 0)
        change = jnp.log(jnp.where(kept, new, 1) / jnp.where(kept, ratio, 1))
        lost = (ratio > 0) & (new == 0)
        error = jnp.max(jnp.abs(change)) + jnp.any(lost).astype(change.dtype)
        return new, error, steps + 1

    # A prior that explains about as much as the target has, spread over the terms.
    norms = jnp.sum(system.factor**2, axis=0)
    start = jnp.where(system.share(norms) > 0, system.rows, 0)
    infinite = jnp.full((), jnp.inf, start.dtype)
    ratio, error, steps = lax.while_loop(
        going, body, (start.astype(infinite.dtype), infinite, jnp.asarray(0))
    )
    # The fixed point is near: Newton steps go the rest of the way.
    polish = lambda _, carry: climb(system, *carry)
    ratio, now = lax.fori_loop(0, 8, polish, (ratio, statistics(system, ratio)))
    eps = jnp.finfo(ratio.dtype).eps
    back = (ratio == 0) & (slope(system, now) > 1e-6 + 100 * eps * system.rows)
    return Found(ratio, (error <= 1e-5) & ~jnp.any(back), steps)


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


def _step(system: System, gram: Float[Array, "term term"], walk: _Walk) -> _Walk:
    """Return the walk after its best move: everything changes by a rank of one."""
    moves = _moves(system, walk)
    m = jnp.argmax(moves.score)
    active = walk.ratio[m] > 0
    width = walk.shape[m, m]
    unit = jnp.zeros_like(walk.ratio).at[m].set(1)
    along = jnp.where(
        active,
        walk.shape[:, m] / jnp.where(active, width, 1),
        unit - walk.shape @ gram[:, m],
    )
    ratio = walk.ratio.at[m].set(moves.ratio[m])
    kept = ratio > 0
    along = jnp.where(kept | (unit > 0), along, 0)
    change = moves.shape[m] - width
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


def _check_steps(max_steps: int) -> int:
    if max_steps < 1:
        raise ValueError(f"`max_steps` must be positive, got {max_steps}.")
    return max_steps
