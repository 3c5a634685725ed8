"""How an error of the equation becomes one of the step: quadratures along the way.

A model that lacks `h(u)` is, a step `dt` after the truth `u(0)`, off by

    u(dt) - M(u(0)) = integral over t from 0 to dt of J(t -> dt) h(u(t)),

where J is the derivative of the model's own flow from the true state at t on
(Alekseev's and Groebner's formula; no approximation). A quadrature says at which times
the integrand is taken. Each has `columns`, the integrand's mean for every candidate
term (axis 0), and `advance`, the step that the same rule makes of model and `h`. Both
are told how to `bind` a step to its forcing and key, so that it is a map of states.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

Map = Callable[[PyTree], PyTree]
Bind = Callable[[Callable], Map]


class Endpoint(eqx.Module):
    """Take candidate terms as they are where the step ends, of first order in `dt`.

    The design of MEDIDA. What the model does to an error during the step is ignored,
    and short waves are the first to suffer; for comparison, or very short steps.

    Source: Mojgani, Chattopadhyay & Hassanzadeh (2022), Chaos 32, 061105.
    """

    def columns(
        self, bind: Bind, step, before, after, fields: Map, dt, known: Map | None
    ) -> PyTree:
        """Return the mean of the integrand for each term of `fields(state)`."""
        return fields(after)

    def advance(self, bind: Bind, step, state, tendency: Map, dt) -> PyTree:
        """Return the state `dt` later, if `tendency` is what the model lacks."""
        end = bind(step)(state)
        return _add(end, (dt, tendency(end)))


class Trapezoid(eqx.Module):
    """Take candidate terms at both ends of the step, of second order in `dt`.

    Those of the start are carried to the end by the model's derivative.
    """

    def columns(
        self, bind: Bind, step, before, after, fields: Map, dt, known: Map | None
    ) -> PyTree:
        """Return the mean of the integrand for each term of `fields(state)`."""
        first = _carried(bind(step), before, fields(before))
        return jax.tree.map(lambda a, b: (a + b) / 2, first, fields(after))

    def advance(self, bind: Bind, step, state, tendency: Map, dt) -> PyTree:
        """Return the state `dt` later, if `tendency` is what the model lacks."""
        return _trapezoid(bind(step), state, tendency, dt)[0]


class Simpson(eqx.Module):
    """Take candidate terms at both ends and in the middle of the step.

    The state in the middle is the model's, `half_step` from the start, and half of what
    the model is off by at the end: of second order still, with a small constant. With
    the coefficients of an earlier fit, which are right to second order, it is the
    corrected model's, and the estimate is of fourth order: fit, then fit again with
    `known`. In steps so long that orders say little the first fit may be the better
    one. Where short waves grow in the model itself, as without a damping that nature
    has, `Trapezoid` is better.
    """

    half_step: Callable

    def __init__(self, half_step: Callable):
        """Take `half_step(state, forcing=None, *, key=None)`, half as long a step."""
        self.half_step = half_step

    def columns(
        self, bind: Bind, step, before, after, fields: Map, dt, known: Map | None
    ) -> PyTree:
        """Return the mean of the integrand for each term of `fields(state)`.

        `known` is what the model is known to lack.

        Raises:
            EquinoxRuntimeError: two half steps are no step.
        """
        flow, half = bind(step), bind(self.half_step)
        before = _checked(before, flow, half)
        if known is None:
            middle, end = half(before), flow(before)
        else:
            # The end by two halves, each off by as much: half of it is the middle's.
            middle, _ = _trapezoid(half, before, known, dt / 2)
            end, _ = _trapezoid(half, middle, known, dt / 2)
        middle = _add(middle, (0.5, after), (-0.5, end))
        first = _carried(flow, before, fields(before))
        second = _carried(half, middle, fields(middle))
        return jax.tree.map(_weigh, first, second, fields(after))

    def advance(self, bind: Bind, step, state, tendency: Map, dt) -> PyTree:
        """Return the state `dt` later, if `tendency` is what the model lacks."""
        flow, half = bind(step), bind(self.half_step)
        return _simpson(flow, half, state, tendency, dt)


Quadrature = Endpoint | Trapezoid | Simpson
TRAPEZOID = Trapezoid()  # the best one that asks for nothing but the step


def _checked(before, flow, half):
    """Return `before`, or fail if two half steps end far from where the step does."""
    end, twice = flow(before), half(half(before))
    leaves = jax.tree.leaves
    far = lambda a, b: sum(
        jnp.sum(jnp.abs(x - y) ** 2) for x, y in zip(leaves(a), leaves(b), strict=True)
    )
    wrong = far(twice, end) > far(end, before) / 4
    message = (
        "`half_step`, taken twice, ends elsewhere than `step`, by more than half of "
        "what `step` does: it must be the same model with half the time step."
    )
    return eqx.error_if(before, wrong, message)


def _weigh(first, second, third):
    return (first + 4 * second + third) / 6


def _add(state, *changes):
    for factor, change in changes:
        state = jax.tree.map(lambda a, b, f=factor: a + f * b, state, change)
    return state


def _carried(flow, state, columns):
    """What becomes of each column on the way."""
    push = jax.linearize(flow, state)[1]
    return jax.vmap(push)(columns)


def _trapezoid(flow, state, tendency, dt):
    """The state at the end, with an error of third order, and `tendency` carried."""
    end, push = jax.linearize(flow, state)
    carried = push(tendency(state))
    last = tendency(_add(end, (dt, carried)))
    return _add(end, (dt / 2, carried), (dt / 2, last)), carried


def _simpson(flow, half, state, tendency, dt):
    """The state at the end, with an error of fourth order."""
    middle, _ = _trapezoid(half, state, tendency, dt / 2)
    almost, from_middle = _trapezoid(half, middle, tendency, dt / 2)
    end, push = jax.linearize(flow, state)
    parts = push(tendency(state)), from_middle, tendency(almost)
    return _add(end, (dt, jax.tree.map(_weigh, *parts)))
