"""The stochastic ensemble Kalman filter, with perturbed observations."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key, PyTree

from skyens.assimilation._ensemble import Info, matmul, white_noise
from skyens.assimilation._global_update import Weighing, positive_inflation, update
from skyens.assimilation._transform import Decompose, gain
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
    decompose: Decompose = eqx.field(static=True)

    def __init__(
        self,
        inflation: float | Float[Array, ""] = 1.0,
        rotate: bool = False,
        *,
        centred: bool = True,
        where: Callable[[Any], Any] | None = None,
        decompose: Decompose = None,
    ):
        """Set how to update, as for `ETKF`.

        Args:
            inflation: factor of the analysis anomalies, dimensionless, above 0.
            rotate: whether to mix the members at random.
            centred: whether the perturbations' mean over the members is taken from
                them, so that it does not move the analysis.
            where: the part of the state to update.
            decompose: None, `svd` or `gram`.

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
            noise = white_noise(perturb_key, anomalies.shape, anomalies.dtype)
            gained = gain(anomalies, self.decompose)
            common = jnp.mean(noise, axis=0)
            noise = noise - common[None, :]
            expected = weights = matmul(gained, innovation)
            if not self.centred:
                weights = matmul(gained, innovation + common)
            # I + change takes each member towards its own draw.
            change = matmul(noise - anomalies, gained.T)
            freedom = jnp.sum(gained * anomalies)
            return Weighing(expected, weights, change, freedom)

        return update(
            background,
            observation,
            weigh,
            inflation=self.inflation,
            rotate=self.rotate,
            where=self.where,
            key=turn_key,
        )
