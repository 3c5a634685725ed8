"""What variational methods share: a problem for each state, solved for an ensemble."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Scalar

from skyens.assimilation._background_covariance import precision
from skyens.assimilation._ensemble import Info, centre, counts, wide
from skyens.assimilation._variational_minimisers import Minimiser
from skyens.observations import Observation


class Problem(NamedTuple):
    """A variational problem about one state, in terms of flat control variables.

    `visit(observation, function, control)` stacks `function(observation, state, i)` of
    each time i of a window, or returns that of the only one, with i = 0.
    """

    start: Float[Array, "control"]
    visit: Callable[[Observation, Callable[..., Any], Array], Any]
    increment: Callable[[Array], PyTree[Array]]


class Answer(eqx.Module):
    """The control variables found, the cost there, and what the minimiser says."""

    control: Float[Array, "control"]
    cost: Scalar
    degrees_of_freedom: Scalar
    iterations: Int[Array, ""]
    converged: Bool[Array, ""]


def solve(problem: Problem, minimiser: Minimiser, observation: Observation) -> Answer:
    """Return the minimum of `|v|^2 / 2 - log p(y | state(v))`."""
    see = lambda function, v: problem.visit(observation, function, v)
    innovation = lambda v: see(lambda o, x, i: o.innovation(x), v).reshape(-1)
    likelihood = lambda v: jnp.sum(see(lambda o, x, i: o.log_prob(x), v))
    found = minimiser(innovation, likelihood, problem.start)
    departure = innovation(found.control).astype(found.control.dtype)
    size = jnp.sum(found.control**2)
    cost = (size + jnp.sum(departure**2)) / 2
    freedom = found.degrees_of_freedom
    freedom = size if freedom is None else freedom
    return Answer(found.control, cost, freedom, found.iterations, found.converged)


def analyse_ensemble(
    pose: Callable[[PyTree[Any], PyTree[Any]], Problem],
    minimiser: Minimiser,
    update: PyTree[Array | None],
    rest: PyTree[Array | None],
    observation: Observation,
    *,
    perturb: bool,
    key: Key[Array, ""] | None,
) -> tuple[PyTree[Array], Info]:
    """Move all members with the analysis of their mean, or give each its own.

    `pose(state, rest)` is the problem about one state, its leaves to update and the
    others. With `perturb` the mean is analysed too, of the observations as they are:
    that is what the info speaks of.

    Raises:
        ValueError: `perturb` has no key, or a leaf to update is complex.
    """
    states = jax.tree.map(lambda leaf: leaf.astype(wide(leaf.dtype)), update)
    precision(states)
    mean, others = mean_state(states, rest)
    if perturb:
        if key is None:
            raise ValueError(
                "`key` is needed to perturb observations; give one, or perturb=False."
            )
        first = lambda one, many: jnp.concatenate([one[None], many])
        states, rests = jax.tree.map(first, (mean, others), (states, rest))
        keys = jr.split(key, len(jax.tree.leaves(states)[0]))
        number = jnp.arange(len(keys))

        def one(state, rest, key, number):
            problem = pose(state, rest)
            seen = _perturbed(problem, observation, key, number > 0)
            answer = solve(problem, minimiser, seen)
            return problem.increment(answer.control), answer

        increments, answers = jax.vmap(one)(states, rests, keys, number)
        increments = jax.tree.map(lambda x: x[1:], increments)
        answer = jax.tree.map(lambda x: x[0], answers)
        iterations, converged = jnp.max(answers.iterations), jnp.all(answers.converged)
    else:
        problem = pose(mean, others)
        answer = solve(problem, minimiser, observation)
        increments = jax.tree.map(lambda x: x[None], problem.increment(answer.control))
        iterations, converged = answer.iterations, answer.converged
    analysis = jax.tree.map(add_increment, update, increments)
    number = counts(observation)
    used = jnp.maximum(number["used"], 1).astype(answer.cost.dtype)
    info = Info(
        **number,
        chi_square=2 * answer.cost / used,
        degrees_of_freedom=answer.degrees_of_freedom,
        iterations=iterations,
        converged=converged,
    )
    return eqx.combine(analysis, rest), info


def mean_state(
    states: PyTree[Array | None], rest: PyTree[Array | None]
) -> tuple[PyTree[Array | None], PyTree[Array | None]]:
    """Return the members' mean; of integers, the first member's."""
    mean = lambda x: centre(x)[0] if eqx.is_inexact_array(x) else x[0]
    return jax.tree.map(mean, states), jax.tree.map(mean, rest)


def add_increment(
    leaf: Float[Array, "member *state"], increment: Float[Array, "..."]
) -> Float[Array, "member *state"]:
    """Return the sum in the dtype of `leaf`; `increment` has one member, or as many."""
    dtype = wide(leaf.dtype)
    increment = jnp.broadcast_to(increment.astype(dtype), leaf.shape)
    return (leaf.astype(dtype) + increment).astype(leaf.dtype)


def move(state: PyTree[Array], increment: PyTree[Array]) -> PyTree[Array]:
    """Return `state + increment`, in the dtypes of `state`."""
    return jax.tree.map(lambda x, dx: x + dx.astype(x.dtype), state, increment)


def _perturbed(problem, observation, key, wanted):
    """The observation with a draw of its errors added to the values."""

    def draw(o, state, i):
        prediction = o.predict(state)
        return o.law(prediction).sample(prediction, key=jr.fold_in(key, i))

    noise = problem.visit(observation, draw, problem.start)
    # An unseen state may be NaN; its masked value is NaN or of no matter already.
    noise = noise.astype(observation.value.dtype)
    noise = jnp.where(wanted & observation.mask, noise, 0)
    return eqx.tree_at(lambda o: o.value, observation, observation.value + noise)
