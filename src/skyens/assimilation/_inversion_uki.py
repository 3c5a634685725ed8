"""Unscented Kalman inversion."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from skyens.assimilation._ensemble import count_members, counts, matmul, split, whiten
from skyens.assimilation._inversion import (
    GaussianPrior,
    InversionInfo,
    flatten,
    moments,
    predict_healthy,
    prior_of,
    unflatten,
)
from skyens.assimilation._inversion_eks import with_prior
from skyens.assimilation._transform import Anomalies, Decomposition, svd, transform
from skyens.observations import Observation


class UKI(eqx.Module):
    """Unscented Kalman inversion: mean and covariance of D parameters by 2 D + 1 runs.

    Draws nothing at random. Each step forgets part of what it knows, the covariance C
    becoming `C / (1 - pace)`, and learns it again from observation and prior, both of
    the variance over `pace`. Where that is in balance stands the posterior: exactly for
    a linear model, the error falling by `1 - pace` in each step.

    The ensemble is one of sigma points: the mean, and pairs on either side of it, so
    that its mean and unbiased covariance are those found. `start` makes it from any
    ensemble with these moments. The model is run at up to two standard deviations.

    Where the run of one of a pair fails, the other's is mirrored; where both do, the
    step learns nothing along them; where that of the mean does, the mean of the others
    stands for it.

    Sources: Huang, Schneider & Stuart (2022), J. Comput. Phys. 463, 111262; Huang et
    al. (2022), Inverse Problems 38, 125006, for the posterior.
    """

    prior: GaussianPrior | None
    pace: Float[Array, ""]
    tolerance: Float[Array, ""]
    time: Float[Array, ""]
    decompose: Callable[[Anomalies], Decomposition] = eqx.field(static=True)

    def __init__(
        self,
        prior: GaussianPrior | None = None,
        *,
        pace: float | Float[Array, ""] = 0.5,
        tolerance: float | Float[Array, ""] = 1e-3,
        decompose: Callable[[Anomalies], Decomposition] = svd,
    ):
        """Set the prior, and how to go.

        Args:
            prior: of the parameters; None for that of the initial ensemble's moments.
            pace: of what is known, the part that each step learns anew, between 0 and
                1; smaller is steadier where the model is far from linear.
            tolerance: converged once a step changes the mean by less than this, in
                standard deviations, and the covariance by less than this part of it.
            decompose: as for `ETKF`.

        Raises:
            EquinoxRuntimeError: `pace` is not between 0 and 1, or `tolerance` is
                negative.
        """
        self.prior = prior
        pace, tolerance = jnp.asarray(pace, float), jnp.asarray(tolerance, float)
        between = (pace > 0) & (pace < 1)
        self.pace = eqx.error_if(pace, ~between, "`pace` must be between 0 and 1.")
        self.tolerance = eqx.error_if(
            tolerance, ~(tolerance >= 0), "`tolerance` must not be negative."
        )
        self.time = jnp.zeros_like(self.pace)
        self.decompose = decompose

    def start(self, ensemble0: PyTree[Array]) -> tuple["UKI", PyTree[Array]]:
        """Return the method at time 0 with a prior, and sigma points.

        These have the moments of `ensemble0`; leaves of integers are those of its first
        member.

        Raises:
            ValueError: there are no more members than parameters.
            EquinoxRuntimeError: their covariance is not positive definite.
        """
        prior = prior_of(ensemble0) if self.prior is None else self.prior
        method = eqx.tree_at(
            lambda method: (method.prior, method.time),
            self,
            (prior, jnp.zeros_like(self.time)),
            is_leaf=lambda node: node is None,
        )
        update, rest = split(ensemble0, None)
        at = GaussianPrior(*moments(ensemble0))
        points = _points(at.mean, at.factor.T, at.mean.size**0.5)
        first = lambda leaf: jnp.repeat(leaf[:1], len(points), axis=0)
        return method, eqx.combine(unflatten(points, update), jax.tree.map(first, rest))

    def __call__(
        self,
        ensemble: PyTree[Array],
        observation: Observation,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[PyTree[Array], InversionInfo]:
        """Return the sigma points after one step, and what there is to say of it.

        Raises:
            ValueError: the prior is missing, the members are not 2 D + 1, leaves
                disagree on their number, or one is complex.
        """
        if self.prior is None:
            raise ValueError(
                "`prior` is missing: give one, or take the method that `start` returns."
            )
        members = count_members(ensemble)
        update, rest = split(ensemble, None)
        flat = flatten(update)
        size = flat.shape[1]
        if members != 2 * size + 1:
            raise ValueError(
                f"the sigma points of {size} parameters are {2 * size + 1}, got "
                f"{members} members; `start` makes them from any ensemble."
            )
        pace = self.pace.astype(flat.dtype)
        mean = flat[0]
        # Rows b with C = b'b.
        rows = (flat[1 : size + 1] - flat[size + 1 :]) / (2 * size**0.5)
        spread = rows / jnp.sqrt(1 - pace)
        reach = min(2.0, size**0.5)
        points = _points(mean, spread, reach)
        runs = eqx.combine(unflatten(points, update), rest)
        predictions, healthy = predict_healthy(points, runs, observation)
        center, odd, even = _pairs(predictions, healthy, reach)
        innovation, departures = whiten(
            observation, center, jnp.concatenate([odd, even])
        )
        innovation = jnp.where(jnp.any(healthy), innovation, 0)
        both = jnp.concatenate([spread, jnp.zeros_like(spread)])
        # The prior is one more observation, and linear: its even part is 0.
        departures, innovation = with_prior(
            self.prior, mean, both, departures, innovation
        )
        # With Y = (N - 1)^1/2 Z, the transform is T^2 = (I + Z Z')^-1.
        root = jnp.sqrt(pace).astype(innovation.dtype)
        scale = (2 * size - 1) ** 0.5
        weights, change = transform(
            scale * root * departures, root * innovation, self.decompose
        )
        weights = scale * weights[:size].astype(flat.dtype)
        full = jnp.eye(2 * size, dtype=change.dtype) + change
        kept = matmul(full[:size], full[:, :size]).astype(flat.dtype)
        found = matmul(jnp.linalg.cholesky(kept).T, spread)
        moved = _points(mean + matmul(weights, spread), found, size**0.5)
        used = counts(observation)
        known = jnp.any(healthy)
        moved = jnp.where(known, moved, flat)
        time = self.time + self.pace
        # Changes in units of the covariance before the step.
        step = jnp.sum(weights**2) / (1 - pace)
        bent = kept / (1 - pace) - jnp.eye(size, dtype=kept.dtype)
        limit = self.tolerance.astype(flat.dtype) ** 2
        info = InversionInfo(
            **used,
            failed=jnp.sum(~healthy),
            misfit=_misfit(observation, predictions, healthy, used["used"]),
            time=time,
            converged=known & (step <= limit) & (jnp.sum(bent**2) <= limit),
            method=eqx.tree_at(lambda method: method.time, self, time),
        )
        return eqx.combine(unflatten(moved, update), rest), info


def _points(mean, rows, reach):
    """The mean, and pairs `reach` rows away on both sides."""
    away = reach * rows
    return jnp.concatenate([mean[None], mean[None] + away, mean[None] - away])


def _pairs(predictions, healthy, reach):
    """What the mean predicts, and odd and even parts of the pairs, per row."""
    size = len(predictions) // 2
    over = lambda flags: jnp.expand_dims(flags, tuple(range(1, predictions.ndim)))
    count = jnp.maximum(jnp.sum(healthy), 1).astype(predictions.dtype)
    average = jnp.sum(jnp.where(over(healthy), predictions, 0), axis=0) / count
    center = jnp.where(healthy[0], predictions[0], average)
    departures = jnp.where(over(healthy), predictions - center[None], 0)
    ahead, behind = departures[1 : size + 1], departures[size + 1 :]
    fine, well = over(healthy[1 : size + 1]), over(healthy[size + 1 :])
    ahead, behind = jnp.where(fine, ahead, -behind), jnp.where(well, behind, -ahead)
    return center, (ahead - behind) / (2 * reach), (ahead + behind) / (2 * reach)


def _misfit(observation, predictions, healthy, used):
    center, departures = predictions[0], predictions - predictions[:1]
    innovation, departures = whiten(observation, center, departures)
    square = jnp.sum((innovation[None] - departures) ** 2, axis=1)
    count = jnp.maximum(jnp.sum(healthy), 1) * jnp.maximum(used, 1)
    return jnp.sum(jnp.where(healthy, square, 0)) / count.astype(square.dtype)
