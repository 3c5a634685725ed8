"""Ways to the evidence optimum: one term at a time, or all by a fixed point."""

import equinox as eqx
import jax.numpy as jnp

from skyens.sparse._ascent import Found, ascend
from skyens.sparse._evidence import Statistics, System, slope
from skyens.sparse._group_move import group_move
from skyens.sparse._walk import walk


class Sequential(eqx.Module):
    """Add, re-estimate or delete one term at a time, the one that gains most.

    Terms that are to go go first. The noise, where free, is at its optimum all the
    time, so that each term's best prior variance has a closed form; each step costs
    p^2. All statistics are computed afresh until nothing is left to gain, with Newton
    steps on all active terms together. Of groups, too, one moves at a time.

    The evidence may have several optima. Mostly an ascent from no term is enough. Where
    columns are all but explained by others (a variance inflation factor above 1000, or
    fewer rows than terms) another starts from all terms, with ten steps of `EM`, and
    the higher optimum is returned. Nothing that can be afforded finds the highest for
    sure.

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
        """Return the ratios where no term (or group) gains anything."""

        def warm(ratio, now, steps):
            return _expectation(system, ratio, now), steps < 10

        if (same := system.same) is None:
            gram = system.factor.T @ system.factor
            move = lambda ratio, now, enabled: walk(system, gram, ratio, now, enabled)
        else:
            move = lambda *here: group_move(system, same, *here)
        return ascend(system, warm, move, max_steps=self.max_steps)


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
        update = lambda ratio, now: _expectation(system, ratio, now)
        return _fixed_point(system, update, self.max_steps)


def _expectation(system: System, ratio, now: Statistics):
    """Return the ratios after one step of expectation and maximisation."""
    square = now.mean**2 / system.noise(now.misfit)
    count = system.share(jnp.ones_like(ratio))
    new = system.share(square + jnp.diagonal(now.shape)) / count
    return jnp.where(ratio > 0, new, 0)


def _fixed_point(system: System, update, max_steps: int) -> Found:
    count = system.share(jnp.ones_like(system.target))

    def warm(ratio, now, _):
        new = jnp.where(ratio > 0, update(ratio, now), 0)
        gamma = system.share(ratio * jnp.diagonal(now.bend)) / count
        leaving = (gamma < 0.01) & (slope(system, now) < 0)
        new = jnp.where(leaving, 0, new)
        kept = (ratio > 0) & (new > 0)
        change = jnp.log(jnp.where(kept, new, 1) / jnp.where(kept, ratio, 1))
        lost = jnp.any((ratio > 0) & (new == 0))
        # Newton steps go the rest of the way.
        return new, lost | (jnp.max(jnp.abs(change)) > 1e-5)

    found = ascend(system, warm, max_steps=max_steps)
    eps = jnp.finfo(found.ratio.dtype).eps
    low = slope(system, found.now) > 1e-6 + 100 * eps * system.rows
    back = jnp.any((found.ratio == 0) & low)
    return found._replace(converged=found.converged & ~back)


def _check_steps(max_steps: int) -> int:
    if max_steps < 1:
        raise ValueError(f"`max_steps` must be positive, got {max_steps}.")
    return max_steps
