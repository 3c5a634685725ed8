"""The ensemble Kalman filter with a localised covariance, solved at once."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key, PyTree

from skyens.assimilation._ensemble import (
    Info,
    centre,
    count_members,
    counts,
    matmul,
    observe,
    split,
    wide,
)
from skyens.assimilation._global_update import positive_inflation
from skyens.assimilation._letkf import check_independent
from skyens.assimilation._schur import Schur
from skyens.assimilation._square_root import inverse_root
from skyens.assimilation._vertical import flatten, levels_of
from skyens.observations import Observation

_BLOCK = 32


class LocalisedEnKF(eqx.Module):
    """Ensemble Kalman filter with the Schur product of covariance and taper.

    The gain is that of the localised covariances, all observations at once: what
    serial filters approach, whatever their order. It takes the square of the number of
    observations in memory and its cube in time, so it is for some thousands; points are
    done in blocks.

    Anomalies are updated with the square-root gain (deterministic; without taper the
    covariance is that of the `ETKF`), or, with `perturb`, every member by its own
    observation, drawn with the errors: a small ensemble then needs more inflation
    (seven members of 40 variables diverge at 1.04 and hold at 1.1).

    Sources: Houtekamer & Mitchell (2001), Mon. Wea. Rev. 129, 123-137; Whitaker &
    Hamill (2002), Mon. Wea. Rev. 130, 1913-1924, equation 10, for the gain.
    """

    localisation: Schur
    inflation: Float[Array, ""]
    perturb: bool = eqx.field(static=True)
    where: Callable[[Any], Any] | None = eqx.field(static=True)

    def __init__(
        self,
        localisation: Schur,
        inflation: float | Float[Array, ""] = 1.0,
        *,
        perturb: bool = False,
        where: Callable[[Any], Any] | None = None,
    ):
        """Set how to localise and inflate, and whether to perturb; it needs a key then.

        Raises:
            EquinoxRuntimeError: `inflation` is not above 0.
        """
        self.localisation = localisation
        self.inflation = positive_inflation(inflation)
        self.perturb = perturb
        self.where = where

    def __call__(
        self,
        background: PyTree[Array],
        observation: Observation,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[PyTree[Array], Info]:
        """Return the analysis ensemble, and what there is to say of it.

        Raises:
            ValueError: perturbed observations have no key, a leaf to update does not
                lie on the points (leave it out by `where`), the errors are not
                independent, or the observation does not say where it is.
        """
        check_independent(observation, "LocalisedEnKF")
        members = count_members(background)
        update, rest = split(background, self.where)
        schur = self.localisation
        shape = schur.geometry.shape
        levels = levels_of(schur.vertical, background, update, shape)
        located = schur.locate(observation)
        innovation, anomalies = observe(background, observation)
        mask = observation.mask.reshape(-1)
        spread = members - 1

        covariance = matmul(anomalies.T, anomalies) / spread
        covariance *= schur.between_observations(located).astype(covariance.dtype)
        identity = jnp.eye(mask.size, dtype=covariance.dtype)
        total = identity + covariance
        solve = lambda right: jax.scipy.linalg.solve(total, right, assume_a="pos")
        for_mean = solve(innovation)
        if self.perturb:
            if key is None:
                raise ValueError(
                    "`key` is needed to perturb observations; give one, or "
                    "perturb=False."
                )
            noise = jr.normal(key, anomalies.shape, anomalies.dtype)
            noise = jnp.where(mask[None], noise, 0)
            _, noise = centre(noise)
            for_anomalies = solve((noise - anomalies).T)
        else:
            # (S + S^1/2)^-1 = (S^1/2 + I)^-1 S^-1/2
            root = inverse_root(total)
            both = matmul(total, root)
            both = identity + (both + both.T) / 2
            right = -matmul(root, anomalies.T)
            for_anomalies = jax.scipy.linalg.solve(both, right, assume_a="pos")

        leaves, structure = jax.tree.flatten(update)
        flat = [flatten(x, len(shape), l) for x, l in zip(leaves, levels, strict=True)]

        def correct(x):
            point, ensembles = x
            weight = schur.from_point(located, point)
            weight = jnp.where(mask[None], weight, 0)
            return [
                self._correct(e, weight[jnp.asarray(l.numbers)], *both)
                for e, l in zip(ensembles, levels, strict=True)
            ]

        both = anomalies, for_mean, for_anomalies
        x = schur.geometry.points.T, [jnp.moveaxis(e, -1, 0) for e in flat]
        flat = jax.lax.map(correct, x, batch_size=_BLOCK)
        analysis = [
            jnp.moveaxis(x, 0, -1).reshape(leaf.shape)
            for x, leaf in zip(flat, leaves, strict=True)
        ]
        number = counts(observation)
        used = jnp.maximum(number["used"], 1).astype(innovation.dtype)
        info = Info(
            **number,
            chi_square=jnp.sum(innovation * for_mean) / used,
            degrees_of_freedom=jnp.trace(solve(covariance)),
            unreached=schur.unreached(located, mask),
        )
        return eqx.combine(jax.tree.unflatten(structure, analysis), rest), info

    def _correct(self, ensemble, weight, seen, for_mean, for_anomalies):
        """Update `(member, rest, level)` of one point; weights `(level, obs)`."""
        dtype = wide(ensemble.dtype)
        _, before = centre(ensemble.astype(dtype))
        convert = lambda array: array.astype(dtype)
        gain = jnp.einsum("nrl,no->rlo", before, convert(seen), precision="highest")
        gain = gain * convert(weight)[None] / (len(before) - 1)
        shift = matmul(gain, convert(for_mean))
        change = jnp.moveaxis(matmul(gain, convert(for_anomalies)), -1, 0)
        active = jnp.any(weight > 0, axis=-1)[None, None, :]
        inflation = jnp.where(active, convert(self.inflation), 1)
        increment = shift[None] + inflation * change + (inflation - 1) * before
        return (ensemble.astype(dtype) + increment).astype(ensemble.dtype)
