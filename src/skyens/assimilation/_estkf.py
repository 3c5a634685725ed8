"""The error-subspace transform Kalman filter."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from skyens.assimilation._ensemble import matmul
from skyens.assimilation._global_update import (
    SquareRootFilter,
    Weighing,
    degrees_of_freedom,
)
from skyens.assimilation._transform import transform


class ESTKF(SquareRootFilter):
    """Error-subspace transform Kalman filter.

    N anomalies that sum to 0 span N - 1 directions. This filter projects them there
    and takes the symmetric square root in that subspace, then goes back by the
    projection's transpose. Mean and covariance are those of the Kalman update with the
    ensemble's covariance, as for `ETKF`, whose members it gives too, up to rounding.
    The anomalies are then multiplied by `inflation`; where no observation is used the
    background comes back as it is, uninflated.

    Source: Nerger et al. (2012), Mon. Wea. Rev. 140, 2335-2345.
    """

    # Said again: type checkers would write one of their own for a module's subclass.
    __init__ = SquareRootFilter.__init__

    def _weigh(self, anomalies, innovation):
        project = subspace(len(anomalies), anomalies.dtype)
        inside = matmul(project.T, anomalies)
        # A row of zeros keeps the divisor N - 1 of the transform.
        padded = jnp.concatenate([inside, jnp.zeros_like(anomalies[:1])])
        weights, root = transform(padded, innovation, self.decompose)
        weights = matmul(project, weights[:-1])
        change = matmul(matmul(project, root[:-1, :-1]), project.T)
        return Weighing(weights, weights, change, degrees_of_freedom(root))


def subspace(members: int, dtype: np.dtype) -> Float[Array, "member rank"]:
    """Return orthonormal directions across the mean: Nerger et al. (2012), eq. 10."""
    root = members**-0.5
    matrix = np.eye(members, members - 1) - 1 / (members * (root + 1))
    matrix[-1] = -root
    return jnp.asarray(matrix, dtype)
