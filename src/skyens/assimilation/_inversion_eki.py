"""Ensemble Kalman inversion."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, Key, PyTree, Scalar

from skyens.assimilation._ensemble import count_members, counts, matmul, split
from skyens.assimilation._inversion import (
    InversionInfo,
    draw_failed,
    flatten,
    look,
    needed_key,
    unflatten,
)
from skyens.assimilation._transform import Anomalies, Decomposition, svd, transform
from skyens.observations import Observation


class EKI(eqx.Module):
    """Ensemble Kalman inversion: the observation assimilated bit by bit.

    A step of length h in pseudo-time is a Kalman update with the error variance over h.
    At time 1 the observation has been assimilated once: the ensemble then represents
    the posterior, exactly so for a linear model and a Gaussian prior with the
    ensemble's moments. With `finish=inf` it goes on towards the best fit in the span of
    the initial members, and collapses onto it.

    By the symmetric square root, or, with `perturb`, of perturbed observations as in
    the first source. A method with memory of the time: `start` sets it to 0.

    Sources: Iglesias et al. (2013), Inverse Problems 29, 045001; Iglesias & Yang
    (2021), Inverse Problems 37, 025008, for the step.
    """

    pace: Float[Array, ""] | None
    finish: Float[Array, ""]
    time: Float[Array, ""]
    perturb: bool = eqx.field(static=True)
    decompose: Callable[[Anomalies], Decomposition] = eqx.field(static=True)

    def __init__(
        self,
        pace: float | Float[Array, ""] | None = None,
        *,
        finish: float | Float[Array, ""] = 1.0,
        perturb: bool = False,
        decompose: Callable[[Anomalies], Decomposition] = svd,
    ):
        """Set how far to go, and how fast.

        Args:
            pace: length of a step in pseudo-time, above 0; None for as long as the
                misfits allow: short while they are large (data misfit controller).
            finish: pseudo-time to stop at, above 0; 1 is the posterior.
            perturb: whether to perturb the observations.
            decompose: as for `ETKF`.

        Raises:
            EquinoxRuntimeError: `pace` or `finish` is not above 0.
        """
        self.pace = None if pace is None else above_zero("pace", pace)
        self.finish = above_zero("finish", finish)
        self.time = jnp.zeros_like(self.finish)
        self.perturb = perturb
        self.decompose = decompose

    def start(self, ensemble0: PyTree[Array]) -> tuple["EKI", PyTree[Array]]:
        """Return the method at time 0, and the ensemble as it is."""
        zero = jnp.zeros_like(self.time)
        return eqx.tree_at(lambda method: method.time, self, zero), ensemble0

    def __call__(
        self,
        ensemble: PyTree[Array],
        observation: Observation,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[PyTree[Array], InversionInfo]:
        """Return the parameters after one step, and what there is to say of it.

        Raises:
            ValueError: `key` is missing, there are fewer than two members, leaves
                disagree on their number, or one is complex.
        """
        draw_key, noise_key = jr.split(needed_key(key))
        count_members(ensemble)
        update, rest = split(ensemble, None)
        flat = flatten(update)
        seen = look(flat, eqx.combine(update, rest), observation)
        number = counts(observation)
        mean, variance = seen.misfits()
        length, time = self._length(mean, variance, number["used"])
        inflate = seen.inflate.astype(mean.dtype)
        root = jnp.sqrt(length)
        scaled = root * inflate * seen.predicted
        weigh = lambda seen: transform(scaled, seen, self.decompose)
        weights, change = weigh(root * seen.innovation)
        weights = inflate * weights
        if self.perturb:
            noise = jr.normal(noise_key, seen.predicted.shape, change.dtype)
            drawn = jax.vmap(lambda seen: weigh(seen)[0])(noise)
            # Without perturbations T = (N - 1) C^-1, the square of the root's.
            change = 2 * change + matmul(change, change) + inflate * drawn
        matrix = (weights[None, :] + change).astype(flat.dtype)
        moved = flat + matmul(matrix, seen.anomalies)
        moved = draw_failed(moved, seen, flat, key=draw_key)
        used = number["used"]
        info = InversionInfo(
            **number,
            failed=jnp.sum(~seen.healthy),
            misfit=2 * mean / jnp.maximum(used, 1).astype(mean.dtype),
            time=time,
            converged=time >= self.finish,
            method=eqx.tree_at(lambda method: method.time, self, time),
        )
        return eqx.combine(unflatten(moved, update), rest), info

    def _length(
        self, mean: Scalar, variance: Scalar, used: Int[Array, ""]
    ) -> tuple[Scalar, Float[Array, ""]]:
        """Length of the step, in the misfits' dtype, and the time after it."""
        remaining = self.finish - self.time
        if self.pace is None:
            half = used.astype(mean.dtype) / 2
            # Where all is explained, or nothing seen, one step does the rest.
            explained = (mean <= 0) | (variance <= 0) | (used == 0)
            ratio = lambda bottom: half / jnp.where(explained, 1, bottom)
            length = jnp.maximum(ratio(mean), jnp.sqrt(ratio(variance)))
            length = jnp.where(explained, jnp.inf, length).astype(self.time.dtype)
        else:
            length = self.pace
        last = length >= remaining
        length = jnp.where(last, remaining, length)
        time = jnp.where(last, self.finish, self.time + length)
        return jnp.where(jnp.isfinite(length), length, 1).astype(mean.dtype), time


def above_zero(name: str, number: float | Float[Array, ""]) -> Float[Array, ""]:
    """Return `number` as an array.

    Raises:
        EquinoxRuntimeError: it is not above 0.
    """
    array = jnp.asarray(number, float)
    return eqx.error_if(array, ~(array > 0), f"`{name}` must be above 0.")
