"""Covariance localisation by modulated ensembles, in gain form."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from skyens.assimilation._ensemble import (
    Info,
    Recorded,
    centre,
    chi_square,
    count_members,
    counts,
    matmul,
    observe,
    predict_members,
    split,
    wide,
)
from skyens.assimilation._global_update import (
    degrees_of_freedom,
    positive_inflation,
    random_turn,
)
from skyens.assimilation._transform import Anomalies, Decomposition, svd, transform
from skyens.observations import Observation


class Modulated(eqx.Module):
    """Gain-form ensemble transform Kalman filter with a localised covariance.

    The background's covariance is that of the ensemble times, entry by entry, a
    localisation `sum_k w_k w_k'` with K roots w_k. It is the covariance of K N
    modulated anomalies `w_k * a_i`, from which the gain of the mean and, for the
    anomalies of the N members, the gain of a square-root filter follow. So
    localisation is in state space and holds for observations that see the whole state,
    a column or a global mean, where tapering observation errors does not apply.

    Operators are applied to the modulated members, one mode after the other: memory
    holds one modulated ensemble at a time, and K N whitened predictions. The anomalies
    are then multiplied by `inflation`; where no observation is used the background
    comes back as it is, uninflated.

    Source: Bishop et al. (2017), Mon. Wea. Rev. 145, 4575-4592.
    """

    roots: PyTree[Array]
    inflation: Float[Array, ""]
    rotate: bool = eqx.field(static=True)
    where: Callable[[Any], Any] | None = eqx.field(static=True)
    decompose: Callable[[Anomalies], Decomposition] = eqx.field(static=True)

    def __init__(
        self,
        roots: PyTree[Any],
        inflation: float | Float[Array, ""] = 1.0,
        rotate: bool = False,
        *,
        where: Callable[[Any], Any] | None = None,
        decompose: Callable[[Anomalies], Decomposition] = svd,
    ):
        """Set how to localise, and the rest as for `ETKF`.

        Args:
            roots: of the localisation, `(mode, *state)`, from `localisation_roots` or
                `sphere_roots` say. One array serves every leaf to update, whose shape
                must end with its axes after the first: all variables and levels then
                share it. A pytree of the structure of the state has one for each leaf,
                None for those that are not updated.
            inflation: factor of the analysis anomalies, dimensionless, above 0.
            rotate: whether to mix the members at random, which needs a key.
            where: the part of the state to update.
            decompose: `svd` (accurate) or `gram` (fast), of `(mode * member,
                observation)`.

        Raises:
            ValueError: `roots` do not share the same number of modes.
            EquinoxRuntimeError: `inflation` is not above 0.
        """
        self.roots = jax.tree.map(jnp.asarray, roots)
        sizes = {root.shape[:1] for root in jax.tree.leaves(self.roots)}
        if len(sizes) != 1 or () in sizes:
            shapes = [root.shape for root in jax.tree.leaves(self.roots)]
            raise ValueError(
                "all `roots` need the same leading axis of modes, got the shapes "
                f"{shapes}."
            )
        self.inflation = positive_inflation(inflation)
        self.rotate = rotate
        self.where = where
        self.decompose = decompose

    def __call__(
        self,
        background: PyTree[Array],
        observation: Observation,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[PyTree[Array], Info]:
        """Return the analysis ensemble, and what there is to say of it.

        Raises:
            ValueError: the roots do not fit a leaf, the predictions were recorded along
                a window (those of modulated members were not), or as for `ETKF`.
        """
        if isinstance(observation.operator, Recorded):
            raise ValueError(
                "the observation has predictions of the members as they were along the "
                "window; modulated members have none. Observe at the analysis time."
            )
        members = count_members(background)
        update, rest = split(background, self.where)
        if eqx.is_array(self.roots):
            roots = jax.tree.map(lambda leaf: _fit(leaf, self.roots), update)
        else:
            roots = jax.tree.map(_fit, update, self.roots)
        # One law of the errors for all: that at the mean prediction of the members.
        mean, _ = centre(predict_members(background, observation))
        law = observation.gaussian_error(mean.astype(wide(mean.dtype)))
        observation = eqx.tree_at(lambda o: o.error, observation, law)
        innovation, own = observe(background, observation)

        def predict(root):
            modulated = eqx.combine(jax.tree.map(_modulate, update, root), rest)
            return observe(modulated, observation)[1]

        anomalies = jax.lax.map(jax.checkpoint(predict), roots)
        modes, size = len(anomalies), len(anomalies) * members
        scale = ((size - 1) / (members - 1)) ** 0.5
        anomalies = scale * anomalies.reshape(size, -1)
        weigh = lambda seen: transform(anomalies, seen, self.decompose)
        weights, change = weigh(innovation)
        # The gain of the anomalies is that of the mean times (I + T)^-1.
        gains = jax.vmap(lambda seen: weigh(seen)[0])(own)
        both = change + 2 * jnp.eye(size, dtype=change.dtype)
        gains = jax.scipy.linalg.solve(both, gains.T, assume_a="pos").T

        number = counts(observation)
        turn = random_turn(self.rotate, members, anomalies.dtype, key)
        if turn is None:
            turn = jnp.eye(members, dtype=anomalies.dtype)
        active = number["used"] > 0
        factor = jnp.where(active, self.inflation.astype(turn.dtype), 1)
        turn = jnp.where(active, factor * turn, jnp.eye(members, dtype=turn.dtype))
        matrices = scale * (weights[None, :] - matmul(turn, gains))
        matrices = jnp.moveaxis(matrices.reshape(members, modes, members), 1, 0)
        own_matrix = turn - jnp.eye(members, dtype=turn.dtype)
        recombine = lambda leaf, root: _recombine(own_matrix, matrices, leaf, root)
        analysis = jax.tree.map(recombine, update, roots)
        info = Info(
            **number,
            chi_square=chi_square(innovation, anomalies, weights, number["used"]),
            degrees_of_freedom=degrees_of_freedom(change),
        )
        return eqx.combine(analysis, rest), info


def _fit(leaf: Array, root: Array) -> Array:
    """The root in the dtype of the leaf's increments, broadcast along other axes."""
    shape, tail = leaf.shape[1:], root.shape[1:]
    if shape[len(shape) - len(tail) :] != tail:
        raise ValueError(
            f"roots of shape {root.shape} do not fit a leaf of shape {leaf.shape}, "
            "which must end with their axes after the first. Leave it out by `where`, "
            "or give one array of roots for each leaf."
        )
    between = (1,) * (len(shape) - len(tail))
    return root.reshape(root.shape[:1] + between + tail).astype(wide(leaf.dtype))


def _modulate(leaf: Array, root: Array) -> Array:
    mean, anomalies = centre(leaf.astype(root.dtype))
    return (mean[None] + root[None] * anomalies).astype(leaf.dtype)


def _recombine(own: Array, matrices: Array, leaf: Array, roots: Array) -> Array:
    """`leaf + own @ anomalies + sum_k matrices_k @ (roots_k * anomalies)`."""
    _, anomalies = centre(leaf.astype(roots.dtype))
    flat = anomalies.reshape(len(anomalies), -1)
    mix = lambda matrix: matmul(matrix.astype(flat.dtype), flat).reshape(leaf.shape)

    def add(increment, x):
        matrix, root = x
        return increment + root[None] * mix(matrix), None

    increment, _ = jax.lax.scan(jax.checkpoint(add), mix(own), (matrices, roots))
    return (leaf.astype(roots.dtype) + increment).astype(leaf.dtype)
