"""The error-subspace transform Kalman filter."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from skyens.assimilation._ensemble import Info, matmul
from skyens.assimilation._etkf import (
    Anomalies,
    Decomposition,
    degrees_of_freedom,
    positive_inflation,
    svd,
    transform,
)
from skyens.assimilation._global_update import Weighing, update
from skyens.observations import Observation


class ESTKF(eqx.Module):
    """Error-subspace transform Kalman filter.

    N anomalies that sum to 0 span N - 1 directions. This filter projects them there
    and takes the symmetric square root in that subspace, then goes back by the
    projection's transpose. Mean and covariance are those of the Kalman update with the
    ensemble's covariance, as for `ETKF`, whose members it gives too, up to rounding.
    The anomalies are then multiplied by `inflation`; where no observation is used the
    background comes back as it is, uninflated.

    Source: Nerger et al. (2012), Mon. Wea. Rev. 140, 2335-2345.
    """

    inflation: Float[Array, ""]
    rotate: bool = eqx.field(static=True)
    where: Callable[[Any], Any] | None = eqx.field(static=True)
    decompose: Callable[[Anomalies], Decomposition] = eqx.field(static=True)

    def __init__(
        self,
        inflation: float | Float[Array, ""] = 1.0,
        rotate: bool = False,
        *,
        where: Callable[[Any], Any] | None = None,
        decompose: Callable[[Anomalies], Decomposition] = svd,
    ):
        """Set how to update, as for `ETKF`.

        Args:
            inflation: factor of the analysis anomalies, dimensionless, above 0.
            rotate: whether to mix the members at random, which needs a key.
            where: the part of the state to update.
            decompose: `svd` (accurate) or `gram` (fast).

        Raises:
            EquinoxRuntimeError: `inflation` is not above 0.
        """
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
            ValueError: there are fewer than two members, leaves disagree on their
                number, or a rotation has no key.
        """

        def weigh(anomalies, innovation):
            project = subspace(len(anomalies), anomalies.dtype)
            inside = matmul(project.T, anomalies)
            # A row of zeros keeps the divisor N - 1 of the transform.
            padded = jnp.concatenate([inside, jnp.zeros_like(anomalies[:1])])
            weights, root = transform(padded, innovation, self.decompose)
            weights = matmul(project, weights[:-1])
            change = matmul(matmul(project, root[:-1, :-1]), project.T)
            return Weighing(weights, weights, change, degrees_of_freedom(root))

        return update(
            background,
            observation,
            weigh,
            inflation=self.inflation,
            rotate=self.rotate,
            where=self.where,
            key=key,
        )


def subspace(members: int, dtype: np.dtype) -> Float[Array, "member rank"]:
    """Return orthonormal directions across the mean: Nerger et al. (2012), eq. 10."""
    root = members**-0.5
    matrix = np.eye(members, members - 1) - 1 / (members * (root + 1))
    matrix[-1] = -root
    return jnp.asarray(matrix, dtype)
