"""The deterministic ensemble Kalman filter: half the gain for the anomalies."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
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


class DEnKF(eqx.Module):
    """Deterministic ensemble Kalman filter.

    The mean is that of the Kalman update, and the anomalies are updated with half its
    gain, `A - K H A / 2`: an approximation of the square root that keeps a little more
    spread, `(I - K H) P + K H P H' K' / 4`, which inflates by itself where observations
    are strong. The anomalies are then multiplied by `inflation`; where no observation
    is used the background comes back as it is, uninflated.

    Source: Sakov & Oke (2008), Tellus A 60, 361-371, equation 15.
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
            weights, root = transform(anomalies, innovation, self.decompose)
            # (I + (N - 1) C^-1) / 2 - I, and (N - 1) C^-1 = (I + root)^2.
            change = root + matmul(root, root) / 2
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
