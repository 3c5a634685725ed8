"""Four-dimensional variational analysis: the trajectory that fits a window."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Key, PyTree

from skyens.assimilation._background_covariance import BackgroundCovariance
from skyens.assimilation._ensemble import Info, as_pytree, count_members, split, wide
from skyens.assimilation._variational_minimisers import Incremental, Minimiser
from skyens.assimilation._variational_problem import (
    Problem,
    analyse_ensemble,
    mean_state,
    move,
    solve,
)
from skyens.observations import Observation


class FourDVar(eqx.Module):
    """Four-dimensional variational analysis of a window of observations.

    It finds the state at the start of the window whose trajectory fits background and
    observations best: `|v|^2 / 2 - sum_i log p(y_i | M_i(background + B^1/2 v))`. The
    tangent linear and the adjoint of the step come from JAX. The step is called without
    forcing or key: it must be deterministic.

    With `model_error`, a covariance Q, the step is no longer a strong constraint: at
    the time of each observation an error `Q^1/2 w_i` is added to the state, and `|w|^2
    / 2` to the cost. For a linear step and linear operators it is then the
    Rauch-Tung-Striebel smoother.

    Ensembles, `perturb` and the info are as for `ThreeDVar`; its `degrees_of_freedom`
    are `|v|^2 + |w|^2`.

    Sources: Le Dimet & Talagrand (1986), Tellus 38A, 97-110; Courtier et al. (1994),
    Quart. J. Roy. Meteor. Soc. 120, 1367-1387; for model error, Tremolet (2006), ibid.
    132, 2483-2504.
    """

    step: Callable[..., Any]
    covariance: BackgroundCovariance
    model_error: BackgroundCovariance | None
    minimiser: Minimiser
    steps_between: int = eqx.field(static=True)
    perturb: bool = eqx.field(static=True)
    where: Callable[[Any], Any] | None = eqx.field(static=True)

    def __init__(
        self,
        step: Callable[..., Any],
        covariance: BackgroundCovariance,
        *,
        steps_between: int = 1,
        model_error: BackgroundCovariance | None = None,
        minimiser: Minimiser | None = None,
        perturb: bool = False,
        where: Callable[[Any], Any] | None = None,
    ):
        """Set how to analyse.

        Args:
            step: `step(state) -> state`, one time step.
            covariance: of the background's errors, at the start of the window.
            steps_between: steps from the start to the first observation, and from each
                to the next.
            model_error: covariance of the errors that the step gathers over
                `steps_between` steps; None for a perfect step.
            minimiser: `Incremental(outer=3)` when not given. In a window so long that
                the step is far from linear over it, use more outer loops.
            perturb: whether to perturb the observations for each member; needs a key.
            where: the part of the state to update; otherwise all its leaves of real
                numbers.

        Raises:
            ValueError: `steps_between` is below 1.
        """
        if steps_between < 1:
            raise ValueError(
                f"`steps_between` must be at least 1, got {steps_between}."
            )
        self.step = as_pytree(step)
        self.covariance = covariance
        self.model_error = model_error
        self.minimiser = Incremental(outer=3) if minimiser is None else minimiser
        self.steps_between = steps_between
        self.perturb = perturb
        self.where = where

    def __call__(
        self,
        background: PyTree[Array],
        observations: Observation,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[PyTree[Array], Info]:
        """Return the analysis ensemble at the start of the window, and its info.

        `observations` is one observation whose arrays have a leading axis of times;
        entry i is made `(i + 1) * steps_between` steps after the start.

        Raises:
            ValueError: the observations have no leading axis of times, the covariance
                does not fit the state, a leaf to update is complex, leaves disagree on
                the number of members, or `perturb` has no key.
        """
        count_members(background, least=1)
        update, rest = split(background, self.where)
        return analyse_ensemble(
            lambda state, rest: self._problem(state, rest, observations),
            self.minimiser,
            update,
            rest,
            observations,
            perturb=self.perturb,
            key=key,
        )

    def trajectory(
        self, background: PyTree[Array], observations: Observation
    ) -> PyTree[Array]:
        """Return the analysed trajectory of the mean, model errors included.

        A state with a leading axis of times: the start of the window, then each time of
        observation.
        """
        count_members(background, least=1)
        update, rest = split(background, self.where)
        widen = lambda leaf: leaf.astype(wide(leaf.dtype))
        mean, others = mean_state(jax.tree.map(widen, update), rest)
        problem = self._problem(mean, others, observations)
        control = solve(problem, self.minimiser, observations).control
        later = problem.visit(observations, lambda o, state, i: state, control)
        first = eqx.combine(move(mean, problem.increment(control)), others)
        join = lambda one, many: jnp.concatenate([one[None], many])
        return jax.tree.map(join, first, later)

    def _problem(self, state, rest, observations) -> Problem:
        times = _times(observations)
        control = self.covariance.control(state), self._no_errors(state, times)
        zero, unravel = ravel_pytree(control)
        increment = lambda v: self.covariance.root(unravel(v)[0], state)

        def advance(state, _):
            return self.step(state), None

        def visit(observations, function, v):
            arrays, static = eqx.partition(observations, eqx.is_array)
            errors = unravel(v)[1]

            def interval(moving, x):
                arrays, error, i = x
                moving, _ = jax.lax.scan(
                    advance, moving, None, length=self.steps_between
                )
                if self.model_error is not None:
                    error = self.model_error.root(error, state)
                    error = jax.tree.map(lambda e, x: e.astype(x.dtype), error, state)
                    moving = eqx.apply_updates(moving, error)
                return moving, function(eqx.combine(arrays, static), moving, i)

            start = eqx.combine(move(state, increment(v)), rest)
            return jax.lax.scan(interval, start, (arrays, errors, jnp.arange(times)))[1]

        return Problem(zero, visit, increment)

    def _no_errors(self, state, times):
        """Control variables of the model errors, 0 at all times; None if perfect."""
        if self.model_error is None:
            return None
        one = self.model_error.control(state)
        return jax.tree.map(lambda v: jnp.zeros((times, *v.shape), v.dtype), one)


def _times(observations: Observation) -> int:
    """The length of the window: that of the leading axis of all its arrays."""
    shapes = [x.shape for x in jax.tree.leaves(eqx.filter(observations, eqx.is_array))]
    if len({shape[:1] for shape in shapes}) != 1 or () in shapes:
        raise ValueError(
            "`observations` of a window need a leading axis of times in every array, "
            "as `jax.vmap(observe)(data)` gives it; got the shapes "
            f"{sorted(set(shapes))}."
        )
    return shapes[0][0]
