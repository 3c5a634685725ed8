"""The local ensemble transform Kalman filter on the sphere."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from skyens.assimilation._ensemble import (
    Info,
    chi_square,
    count_members,
    counts,
    observe,
    recombine,
    split,
)
from skyens.assimilation._etkf import (
    Anomalies,
    Decomposition,
    degrees_of_freedom,
    gram,
    increment_matrix,
    positive_inflation,
    random_turn,
    transform,
)
from skyens.assimilation._localisation import Localisation
from skyens.observations import Observation


class LETKF(eqx.Module):
    """Local ensemble transform Kalman filter for fields `(..., latitude, longitude)`.

    An `ETKF` at every grid point, which sees the observations near it: their error
    variances are divided by the localisation's taper. All levels and variables of a
    column share its weights. Where no observation is in reach, the background comes
    back as it is, uninflated. With an infinite length it is the `ETKF`.

    Rows of latitude are done one after the other, so that memory holds one row's
    `(longitude, member, neighbour)` at a time; gradients compute it anew.

    On CPUs set `OPENBLAS_NUM_THREADS=1` before Python starts: LAPACK's threads make
    many small eigenproblems slower, up to a hundredfold on busy cores.

    Source: Hunt et al. (2007), Physica D 230, 112-126.
    """

    localisation: Localisation
    inflation: Float[Array, ""]
    rotate: bool = eqx.field(static=True)
    where: Callable[[Any], Any] | None = eqx.field(static=True)
    decompose: Callable[[Anomalies], Decomposition] = eqx.field(static=True)

    def __init__(
        self,
        localisation: Localisation,
        inflation: float | Float[Array, ""] = 1.0,
        rotate: bool = False,
        *,
        where: Callable[[Any], Any] | None = None,
        decompose: Callable[[Anomalies], Decomposition] = gram,
    ):
        """Set how to localise, and the rest as for `ETKF`.

        Raises:
            EquinoxRuntimeError: `inflation` is not above 0.
        """
        self.localisation = localisation
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

        The degrees of freedom in the info are a map, `(latitude, longitude)`: what each
        local analysis takes from its observations, 0 where there are none.

        Raises:
            ValueError: a leaf to update is not on the localisation's grid (leave it out
                by `where`), the errors of the observations are not independent (a
                mixture of them is nowhere), the localisation was built for another
                number of observations, or as for `ETKF`.
            EquinoxRuntimeError: the observations are not where the localisation was
                built for.
        """
        if not observation.error.independent:
            raise ValueError(
                "LETKF needs independent observation errors, `Diagonal` say, got "
                f"{type(observation.error).__name__}; ETKF takes any."
            )
        members = count_members(background)
        update, rest = split(background, self.where)
        index, taper = self.localisation.neighbours(observation)
        for leaf in jax.tree.leaves(update):
            if leaf.shape[1:][-2:] != index.shape[:2]:
                raise ValueError(
                    f"a leaf of shape {leaf.shape} does not end with (latitude, "
                    f"longitude) = {index.shape[:2]}, the localisation's grid. Leave "
                    "it out: LETKF(..., where=...)."
                )
        innovation, anomalies = observe(background, observation)
        number = counts(observation)
        turn = random_turn(self.rotate, members, anomalies.dtype, key)
        counted = observation.mask.reshape(-1)

        def local(index, taper, ensemble):
            root = _root(taper.astype(anomalies.dtype))
            nearby = anomalies[:, index] * root[None, :], innovation[index] * root
            weights, change = transform(*nearby, self.decompose)
            active = jnp.any(counted[index] & (taper > 0))
            matrix = increment_matrix(weights, change, active, self.inflation, turn)
            analysis = jax.tree.map(partial(recombine, matrix), ensemble)
            return analysis, degrees_of_freedom(change)

        # Within a row, longitude is the last axis of each leaf.
        row = jax.checkpoint(
            jax.vmap(local, in_axes=(0, 0, -1), out_axes=(-1, 0))  # pyright: ignore[reportArgumentType]
        )
        rows = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -2, 0), update)
        analysis, freedom = jax.lax.map(lambda x: row(*x), (index, taper, rows))
        analysis = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -2), analysis)
        weights, _ = transform(anomalies, innovation, self.decompose)
        consistency = chi_square(innovation, anomalies, weights, number["used"])
        info = Info(**number, chi_square=consistency, degrees_of_freedom=freedom)
        return eqx.combine(analysis, rest), info


def _root(taper: Array) -> Array:
    # Double where: the square root must never see the 0 it would differentiate.
    return jnp.where(taper > 0, jnp.sqrt(jnp.where(taper > 0, taper, 1)), 0)
