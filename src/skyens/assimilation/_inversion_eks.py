"""The ensemble Kalman sampler, corrected for the size of the ensemble."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key, PyTree

from skyens.assimilation._ensemble import count_members, counts, matmul, split
from skyens.assimilation._inversion import (
    GaussianPrior,
    InversionInfo,
    draw_failed,
    flatten,
    look,
    needed_key,
    prior_of,
    unflatten,
)
from skyens.assimilation._inversion_eki import above_zero
from skyens.assimilation._transform import Anomalies, Decomposition, svd, transform
from skyens.observations import Observation


class EKS(eqx.Module):
    """Ensemble Kalman sampler: members that wander as draws from the posterior.

    Each member follows a Langevin equation whose gradient is estimated from the
    ensemble, and whose noise has the ensemble's covariance C:

        d theta_j = -C grad V(theta_j) dt + (D + 1) / N (theta_j - mean) dt
                    + (2 C)^1/2 dW_j,

    V being the misfit and the prior's; the middle term, for D parameters and N members,
    makes the posterior stationary for any N > D + 1 (ALDI). The root of C is that of
    the anomalies, so members stay in their span. It forgets its start like exp(-t).

    The drift, about the members' regression of the model, is taken half implicitly: a
    step is stable however precise the observations are, and in the linear case leaves
    the posterior as it is. Its length is `pace` over the norm of the drift, as in the
    first source, or `pace` where that is below 1.

    A method with memory of the pseudo-time, and of the prior.

    Sources: Garbuno-Inigo et al. (2020), SIAM J. Appl. Dyn. Syst. 19, 412-441; Nüsken
    & Reich (2019), arXiv:1908.10890, and Garbuno-Inigo, Nüsken & Reich (2020), SIAM J.
    Appl. Dyn. Syst. 19, 1633-1658, for the correction.
    """

    prior: GaussianPrior | None
    pace: Float[Array, ""]
    finish: Float[Array, ""]
    time: Float[Array, ""]
    decompose: Callable[[Anomalies], Decomposition] = eqx.field(static=True)

    def __init__(
        self,
        prior: GaussianPrior | None = None,
        *,
        pace: float | Float[Array, ""] = 0.5,
        finish: float | Float[Array, ""] = 10.0,
        decompose: Callable[[Anomalies], Decomposition] = svd,
    ):
        """Set the prior, and how to go.

        Args:
            prior: of the parameters; None for that of the initial ensemble's moments.
            pace: the largest length of a step, above 0.
            finish: pseudo-time to stop at.
            decompose: as for `ETKF`.

        Raises:
            EquinoxRuntimeError: `pace` or `finish` is not above 0.
        """
        self.prior = prior
        self.pace = above_zero("pace", pace)
        self.finish = above_zero("finish", finish)
        self.time = jnp.zeros_like(self.finish)
        self.decompose = decompose

    def start(self, ensemble0: PyTree[Array]) -> tuple["EKS", PyTree[Array]]:
        """Return the method at time 0 with a prior, and the ensemble as it is.

        Raises:
            ValueError: the prior is missing, and the ensemble too small to tell it.
        """
        prior = prior_of(ensemble0) if self.prior is None else self.prior
        return eqx.tree_at(
            lambda method: (method.prior, method.time),
            self,
            (prior, jnp.zeros_like(self.time)),
            is_leaf=lambda node: node is None,
        ), ensemble0

    def __call__(
        self,
        ensemble: PyTree[Array],
        observation: Observation,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[PyTree[Array], InversionInfo]:
        """Return the parameters after one step, and what there is to say of it.

        Raises:
            ValueError: `key` or the prior is missing, there are fewer than two members,
                leaves disagree on their number, or one is complex.
        """
        draw_key, noise_key = jr.split(needed_key(key))
        if self.prior is None:
            raise ValueError(
                "`prior` is missing: give one, or take the method that `start` returns."
            )
        members = count_members(ensemble)
        update, rest = split(ensemble, None)
        flat = flatten(update)
        seen = look(flat, eqx.combine(update, rest), observation)
        number = counts(observation)
        # The prior is one more observation, of the parameters themselves.
        anomalies, innovation = with_prior(
            self.prior, seen.mean, seen.anomalies, seen.predicted, seen.innovation
        )
        dtype = innovation.dtype
        count = jnp.maximum(seen.count, 1).astype(dtype)
        healthy = seen.healthy[:, None]
        residual = jnp.where(healthy, innovation[None, :] - anomalies, 0)
        drift = matmul(residual, anomalies.T) / count
        squared = jnp.sum(drift**2)
        norm = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
        pace, remaining = self.pace.astype(dtype), self.finish - self.time
        # Without a drift there is nothing to follow but the noise: a step of `pace`.
        length = pace / jnp.maximum(norm, 1)
        length = jnp.minimum(length, remaining.astype(dtype))
        last = length >= remaining.astype(dtype)
        time = jnp.where(last, self.finish, self.time + length.astype(self.time.dtype))
        spreading = (flat.shape[1] + 1) / count * jnp.eye(members, dtype=dtype)
        noise = jr.normal(noise_key, (members, members), dtype)
        move = length * (drift + spreading) + jnp.sqrt(2 * length / count) * noise
        half = jnp.sqrt(length * (members - 1) / (2 * count))
        _, change = transform(half * anomalies, innovation, self.decompose)
        # T^2 = (I + h / 2 Y Y' / N)^-1, the implicit half of the drift.
        root = jnp.eye(members, dtype=dtype) + change
        matrix = matmul(matmul(move, root), root).astype(flat.dtype)
        moved = draw_failed(
            flat + matmul(matrix, seen.anomalies), seen, flat, key=draw_key
        )
        mean, _ = seen.misfits()
        info = InversionInfo(
            **number,
            failed=jnp.sum(~seen.healthy),
            misfit=2 * mean / jnp.maximum(number["used"], 1).astype(mean.dtype),
            time=time,
            converged=time >= self.finish,
            method=eqx.tree_at(lambda method: method.time, self, time),
        )
        return eqx.combine(unflatten(moved, update), rest), info


def with_prior(
    prior: GaussianPrior,
    mean: Float[Array, "parameter"],
    anomalies: Float[Array, "member parameter"],
    predicted: Float[Array, "member observation"],
    innovation: Float[Array, "observation"],
) -> tuple[Float[Array, "member every"], Float[Array, "every"]]:
    """Return whitened anomalies and innovation with those of the prior appended.

    Raises:
        ValueError: the prior is of another number of parameters.
    """
    if prior.mean.size != mean.size:
        raise ValueError(
            f"`prior` is of {prior.mean.size} parameters, the ensemble has {mean.size}."
        )
    dtype = innovation.dtype
    own = prior.whiten(anomalies).astype(dtype)
    left = prior.whiten(prior.mean.astype(mean.dtype) - mean).astype(dtype)
    return (
        jnp.concatenate([predicted, own], axis=1),
        jnp.concatenate([innovation, left]),
    )
