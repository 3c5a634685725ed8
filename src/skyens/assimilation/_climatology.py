"""Climatology: the analysis that no observation moves, what others must beat."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Key, PyTree

from skyens.assimilation._background_covariance import (
    BackgroundCovariance,
    draw_perturbation,
)
from skyens.assimilation._ensemble import Info, count_members, counts, split
from skyens.observations import Observation


class Climatology(eqx.Module):
    """Answer with the climatology, whatever background and observations say.

    Every member becomes the `mean`, or with a `covariance` a draw from the climatology,
    for which it needs a key. The info counts no observation as used.
    """

    mean: PyTree[Array]
    covariance: BackgroundCovariance | None
    where: Callable[[Any], Any] | None = eqx.field(static=True)

    def __init__(
        self,
        mean: PyTree[Any],
        covariance: BackgroundCovariance | None = None,
        *,
        where: Callable[[Any], Any] | None = None,
    ):
        """Set the climatology.

        Args:
            mean: one state.
            covariance: of the climate about it; None for the mean alone.
            where: the part of the state to update; otherwise all its leaves of real
                numbers.
        """
        self.mean = jax.tree.map(jnp.asarray, mean)
        self.covariance = covariance
        self.where = where

    def __call__(
        self,
        background: PyTree[Array],
        observation: Observation,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[PyTree[Array], Info]:
        """Return the climatology's members, and an info of nothing used.

        Raises:
            ValueError: the mean is not a state like the members, or a draw has no key.
        """
        count_members(background, least=1)
        update, rest = split(background, self.where)
        mean, _ = split(self.mean, self.where)
        analysis = climate_members(mean, self.covariance, update, key=key)
        number = counts(observation) | {"used": jnp.asarray(0)}
        nothing = jnp.zeros((), jnp.result_type(float))
        info = Info(**number, chi_square=nothing, degrees_of_freedom=nothing)
        return eqx.combine(analysis, rest), info


def climate_members(
    mean: PyTree[Array | None],
    covariance: BackgroundCovariance | None,
    ensemble: PyTree[Array | None],
    *,
    key: Key[Array, ""] | None,
) -> PyTree[Array | None]:
    """Return as many draws from a climatology as `ensemble` has members, in its dtypes.

    Without a covariance all are the mean.

    Raises:
        ValueError: the mean is not a state like the members, or a draw has no key.
    """
    shapes = jax.tree.map(lambda leaf: leaf.shape, mean)
    wanted = jax.tree.map(lambda leaf: leaf.shape[1:], ensemble)
    if shapes != wanted:
        raise ValueError(f"`mean` has shapes {shapes}, the members have {wanted}.")
    repeat = lambda one, many: jnp.broadcast_to(one.astype(many.dtype), many.shape)
    members = jax.tree.map(lambda one, many: repeat(one[None], many), mean, ensemble)
    if covariance is None:
        return members
    if key is None:
        raise ValueError("`key` is needed to draw from the climatology.")
    keys = jr.split(key, len(jax.tree.leaves(members)[0]))
    state = jax.tree.map(lambda leaf: leaf[0], members)
    draw = jax.vmap(lambda key: draw_perturbation(covariance, state, key=key))
    return jax.tree.map(jnp.add, members, draw(keys))
