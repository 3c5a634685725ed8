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
    key: Key[Array, ""] | None = None,
) -> Increment:
    """Return what `method` makes of one observation.

    The observation lies `departure` above the mean of what the background shows. The
    increment of the mean is the structure of the gain: where it reaches, and how one
    variable moves another. Localisation, balance and signs show at a glance.

    Args:
        method: `method(background, observation, *, key) -> (analysis, info)`; not one
            of windows.
        background: any pytree with a leading member axis, or `Weighted`.
        operator: from one state to the one number that is seen.
        departure: in the operator's units.
        std: standard deviation of the observation error, in the same units.
        coordinates: where it is, by name, for methods that localise; those of the
            operator, if it has any, when not given.
        key: for methods that draw at random.

    Raises:
        ValueError: the operator returns more than one number.
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
    blank = Observation(jnp.zeros(shape), operator, Diagonal(std), None, coordinates)
    shown = blank.unwrap(predict_members(members, blank))
    mean = weighted_mean(shown, background.weights) if weighted else centre(shown)[0]
    value = mean + jnp.asarray(departure, mean.dtype)
    observation = Observation(value, operator, Diagonal(std), None, coordinates)
    analysis, info = method(background, observation, key=key)
    before, after = _moments(background), _moments(analysis)
    change = lambda one, other: one - other
    return Increment(
        mean=jax.tree.map(change, after.mean, before.mean),
        spread=jax.tree.map(change, after.spread, before.spread),
        analysis=analysis,
        info=info,
    )


def _moments(ensemble) -> Moments:
    if isinstance(ensemble, Weighted) or len(jax.tree.leaves(ensemble)[0]) > 1:
        return moments(ensemble)
    mean = jax.tree.map(lambda leaf: leaf[0], ensemble)
    return Moments(mean, jax.tree.map(jnp.zeros_like, mean))
