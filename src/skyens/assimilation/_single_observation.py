"""What one observation does: the quickest look at a filter's structure."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from skyens.assimilation._ensemble import centre, predict_members
from skyens.assimilation._moments import Moments, moments
from skyens.assimilation._weighted import Weighted, weighted_mean
from skyens.assimilation._window import holds_step, layers
from skyens.observations import Diagonal, Observation


class Increment(eqx.Module):
    """What one observation changes, leaf by leaf in the state's shapes and units.

    `mean` is the change of the mean, `spread` that of the standard deviation (0 in a
    background of one member). Leaves of integers are 0. `analysis` is the whole
    analysis, `info` what the method says of it.
    """

    mean: PyTree[Array]
    spread: PyTree[Array]
    analysis: PyTree[Array]
    info: Any


def single_observation(
    method: Callable[..., tuple[Any, Any]],
    background: PyTree[Array],
    operator: Callable[[Any], Array],
    departure: float | Float[Array, ""] = 1.0,
    std: float | Float[Array, ""] = 1.0,
    *,
    coordinates: Mapping[str, Array] | None = None,
    window: int | None = None,
    key: Key[Array, ""] | None = None,
) -> Increment:
    """Return what `method` makes of one observation.

    The observation lies `departure` above the mean of what the background shows. The
    increment of the mean is the structure of the gain: where it reaches, and how one
    variable moves another. Localisation, balance and signs show at a glance.

    Args:
        method: `method(background, observation, *, key) -> (analysis, info)`.
        background: any pytree with a leading member axis, or `Weighted`.
        operator: from one state to the one number that is seen.
        departure: in the operator's units.
        std: standard deviation of the observation error, in the same units.
        coordinates: where it is, by name, for methods that localise; those of the
            operator, if it has any, when not given.
        window: for a method that holds the step, such as `FourDVar`: the observation
            is made at the last of so many times, and the increment is that of the
            window's start.
        key: for methods that draw at random.

    Raises:
        ValueError: the operator returns more than one number, or `window` is below 1,
            missing, or given to a method that holds no step.
        EquinoxRuntimeError: `std` is not positive and finite.
    """
    background = jax.tree.map(jnp.asarray, background)
    weighted = isinstance(background, Weighted)
    members = background.members if weighted else background
    first = jax.tree.map(lambda leaf: leaf[0], members)
    shape = jax.eval_shape(operator, first).shape
    if shape not in ((), (1,)):
        raise ValueError(
            f"`operator` must see one number, but it returns the shape {shape}."
        )
    if window is not None and window < 1:
        raise ValueError(f"`window` must be at least 1, got {window}.")
    if (window is None) == holds_step(method):
        raise ValueError(
            f"{type(layers(method)[-1]).__name__} "
            + ("holds a step: give `window`." if window is None else "has no window.")
        )
    then = members if window is None else _forecast(method, members, window)
    blank = Observation(jnp.zeros(shape), operator, Diagonal(std), None, coordinates)
    shown = blank.unwrap(predict_members(then, blank))
    mean = weighted_mean(shown, background.weights) if weighted else centre(shown)[0]
    value = mean + jnp.asarray(departure, mean.dtype)
    see = lambda value, seen: Observation(
        value, operator, Diagonal(std), jnp.broadcast_to(seen, shape), coordinates
    )
    if window is None:
        observation = see(value, True)
    else:
        values = jnp.broadcast_to(value[None], (window, *shape))
        observation = jax.vmap(see)(values, jnp.arange(window) == window - 1)
    analysis, info = method(background, observation, key=key)
    before, after = _moments(background), _moments(analysis)
    change = lambda one, other: one - other
    return Increment(
        mean=jax.tree.map(change, after.mean, before.mean),
        spread=jax.tree.map(change, after.spread, before.spread),
        analysis=analysis,
        info=info,
    )


def _forecast(method: Any, members: PyTree[Array], window: int) -> PyTree[Array]:
    """The members at the end of the window, by the step that the method holds."""
    inner = layers(method)[-1]
    step = jax.vmap(inner.step)
    steps = window * inner.steps_between
    return jax.lax.scan(lambda x, _: (step(x), None), members, None, length=steps)[0]


def _moments(ensemble) -> Moments:
    if isinstance(ensemble, Weighted) or len(jax.tree.leaves(ensemble)[0]) > 1:
        return moments(ensemble)
    mean = jax.tree.map(lambda leaf: leaf[0], ensemble)
    return Moments(mean, jax.tree.map(jnp.zeros_like, mean))
