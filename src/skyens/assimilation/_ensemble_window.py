"""An ensemble run through a window, and what it shows of the observations there."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key, PyTree

from skyens.assimilation._ensemble import count_members, observe
from skyens.dynamics import member_keys
from skyens.observations import Observation


def observe_window(
    step: Callable[..., Any],
    ensemble: PyTree[Array],
    observations: Observation,
    *,
    steps_between: int,
    key: Key[Array, ""] | None,
) -> tuple[Float[Array, "observation"], Float[Array, "member observation"]]:
    """Return innovation and predicted anomalies of all observations, both whitened.

    They are stacked on a leading axis, entry i is seen `(i + 1) * steps_between` steps
    after the start. Each call gives a member the same keys, so that a step that draws
    at random is the same function of the state in each iteration.

    Raises:
        ValueError: the observations have no leading axis.
    """
    if observations.value.ndim == 0:
        raise ValueError(
            "`observations` are stacked on a leading axis, one entry for each time of "
            "the window; got a value without axes. Use jax.vmap(observe)(data)."
        )
    keys = None if key is None else member_keys(key, count_members(ensemble))

    def forecast(ensemble, number):
        if keys is None:
            return jax.vmap(lambda state: step(state, None, key=None))(ensemble), None
        one = lambda state, key: step(state, None, key=jr.fold_in(key, number))
        return jax.vmap(one)(ensemble, keys), None

    def see(ensemble, x):
        observation, numbers = x
        ensemble, _ = jax.lax.scan(forecast, ensemble, numbers)
        return ensemble, observe(ensemble, observation)

    entries = len(observations.value)
    numbers = jnp.arange(entries * steps_between).reshape(entries, steps_between)
    ensemble = jax.tree.map(jnp.asarray, ensemble)
    _, (innovation, anomalies) = jax.lax.scan(see, ensemble, (observations, numbers))
    anomalies = jnp.moveaxis(anomalies, 1, 0)
    return innovation.reshape(-1), anomalies.reshape(anomalies.shape[0], -1)
