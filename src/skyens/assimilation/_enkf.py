"""The stochastic ensemble Kalman filter, with perturbed observations."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
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


class EnKF(eqx.Module):
    """Ensemble Kalman filter with perturbed observations.

    Each member is updated by Kalman's gain of the ensemble's covariance towards its own
    draw of the observations. Mean and covariance are those of the Kalman update on
    average over the draws, and the mean is exactly its mean where they are `centred`.
    The members stay more Gaussian than those of square-root filters, at the price of
    sampling noise.

    All is done in the space of the members: the cost is linear in the sizes of the
    state and of the observation. For any error law it draws standard normal numbers
    and adds them to the whitened innovations. The anomalies of the analysis are then
    multiplied by `inflation`; where no observation is used the background comes back
    as it is, uninflated.

    Source: Burgers et al. (1998), Mon. Wea. Rev. 126, 1719-1724.
    """

    inflation: Float[Array, ""]
    rotate: bool = eqx.field(static=True)
    centred: bool = eqx.field(static=True)
    where: Callable[[Any], Any] | None = eqx.field(static=True)
    decompose: Callable[[Anomalies], Decomposition] = eqx.field(static=True)

    def __init__(
        self,
        inflation: float | Float[Array, ""] = 1.0,
        rotate: bool = False,
        *,
        centred: bool = True,
        where: Callable[[Any], Any] | None = None,
        decompose: Callable[[Anomalies], Decomposition] = svd,
    ):
        """Set how to update, as for `ETKF`.

        Args:
            inflation: factor of the analysis anomalies, dimensionless, above 0.
            rotate: whether to mix the members at random.
            centred: whether the perturbations' mean over the members is taken from
                them, so that it does not move the analysis.
            where: the part of the state to update.
            decompose: `svd` (accurate) or `gram` (fast).

        Raises:
            EquinoxRuntimeError: `inflation` is not above 0.
        """
        self.inflation = positive_inflation(inflation)
        self.rotate = rotate
        self.centred = centred
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
            ValueError: `key` is missing, there are fewer than two members, or leaves
                disagree on their number.
        """
        if key is None:
            raise ValueError("`key` is needed to perturb the observations; give one.")
        perturb_key, turn_key = jr.split(key)

        def weigh(anomalies, innovation):
            noise = jr.normal(perturb_key, anomalies.shape, anomalies.dtype)
            if self.centred:
                noise = noise - jnp.mean(noise, axis=0, keepdims=True)
            # The gain is linear: C^-1 Y applied to the innovation, and to each draw.
            gain = lambda seen: transform(anomalies, seen, self.decompose)
            weights, root = gain(innovation)
            drawn = jax.vmap(lambda seen: gain(seen)[0])(noise)
            common = jnp.mean(drawn, axis=0)
            # Without perturbations, T = (N - 1) C^-1, the square of the root's.
            change = 2 * root + matmul(root, root) + (drawn - common[None, :])
            return Weighing(weights, weights + common, change, degrees_of_freedom(root))

        return update(
            background,
            observation,
            weigh,
            inflation=self.inflation,
            rotate=self.rotate,
            where=self.where,
            key=turn_key,
        )
