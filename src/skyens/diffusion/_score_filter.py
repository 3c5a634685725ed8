"""The score filter: an analysis by a diffusion that the ensemble itself defines."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key, PyTree

from skyens.assimilation import Info
from skyens.assimilation._ensemble import (
    centre,
    chi_square,
    count_members,
    counts,
    matmul,
    observe,
    split,
)
from skyens.assimilation._global_update import positive_inflation
from skyens.assimilation._transform import gain
from skyens.diffusion._checked import checked_levels
from skyens.diffusion._ensemble_denoiser import EnsembleDenoiser
from skyens.diffusion._guidance import MMPS, guide
from skyens.diffusion._noise import White
from skyens.diffusion._samplers import Method
from skyens.diffusion._schedule import EDM, Schedule
from skyens.diffusion._steppers_sde import DPMSolverSDE
from skyens.diffusion._walk import walk
from skyens.observations import Observation

_MMPS = MMPS()
_DPM_SOLVER = DPMSolverSDE()
_SCHEDULE = EDM(0.01, 10.0)
_WHITE = White()


class ScoreFilter(eqx.Module):
    """An ensemble filter that samples the posterior by reverse diffusion.

    The prior is the kernel density of the background (`EnsembleDenoiser`), in units of
    each entry's mean and spread. Every member is moved to a draw of its own kernel,
    noised, and denoised under the guidance of the observation. Nothing is trained. The
    operator is linearised anew at every level, about what each member knows by then,
    where a Kalman filter linearises once, about the background: operators may be
    strongly nonlinear, as long as their slope does not vanish everywhere.

    Where operator and errors are linear and Gaussian, `bandwidth=1` samples Kalman's
    posterior, with steps enough. Small ensembles need `shrinkage` or `inflation`, as
    Kalman filters need localisation; a shrinkage of 1 treats every entry by itself.
    Where Kalman filters with localisation do not fail, they are more accurate.

    Source: Bao, Zhang & Zhang (2024), Comput. Methods Appl. Mech. Eng. 432, 117447,
    arXiv:2309.00983, for the filter. There each member is a kernel without width, and
    the likelihood's slope at the noisy state is damped in time; here kernels have one,
    and guidance stands for the posterior's slope.
    """

    guidance: Callable
    sampler: Method
    schedule: Schedule
    bandwidth: Float[Array, ""]
    shrinkage: Float[Array, ""]
    inflation: Float[Array, ""]
    steps: int = eqx.field(static=True)
    where: Callable[[Any], Any] | None = eqx.field(static=True)

    def __init__(
        self,
        bandwidth: float | Float[Array, ""] = 1.0,
        shrinkage: float | Float[Array, ""] = 0.2,
        inflation: float | Float[Array, ""] = 1.0,
        *,
        steps: int = 20,
        guidance: Callable = _MMPS,
        sampler: Method = _DPM_SOLVER,
        schedule: Schedule = _SCHEDULE,
        where: Callable[[Any], Any] | None = None,
    ):
        """Set the prior, and how to walk from noise to the analysis.

        Args:
            bandwidth: of the kernels, over the spread, in (0, 1]; 1 is one Gaussian.
            shrinkage: of the kernels' correlations, in [0, 1]; 1 leaves none.
            inflation: factor of the analysis anomalies, dimensionless, above 0.
            steps: of the diffusion.
            guidance: `method(denoise, observation, x, sigma)`, as for `guide`.
            sampler: how to step; one with noise mends what guidance gets wrong earlier.
            schedule: the levels, in units of the background's spread: from some 10 to
                below what the observations leave of it.
            where: the part of the state to update; all real leaves if None.

        Raises:
            ValueError: `steps` is below 1.
            EquinoxRuntimeError: `bandwidth` is not in (0, 1], `shrinkage` not in [0, 1]
                or `inflation` not above 0.
        """
        if steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {steps}.")
        bandwidth, shrinkage = (
            jnp.asarray(bandwidth, float),
            jnp.asarray(shrinkage, float),
        )
        good = (bandwidth > 0) & (bandwidth <= 1) & (shrinkage >= 0) & (shrinkage <= 1)
        self.bandwidth = eqx.error_if(
            bandwidth,
            ~good,
            "`bandwidth` must lie in (0, 1] and `shrinkage` in [0, 1].",
        )
        self.shrinkage = shrinkage
        self.inflation = positive_inflation(inflation)
        self.guidance, self.sampler, self.schedule = guidance, sampler, schedule
        self.steps, self.where = steps, where

    def __call__(
        self,
        background: PyTree[Array],
        observation: Observation,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[PyTree[Array], Info]:
        """Return the analysis ensemble, and what there is to say of it.

        `info.chi_square` and `info.degrees_of_freedom` are those of a Kalman filter
        with this background. Where nothing is observed the background comes back.

        Raises:
            ValueError: `key` is missing, there are fewer than two members, leaves
                disagree on their number, one is complex, or the schedule does not give
                `steps + 1` levels.
            EquinoxRuntimeError: the levels do not decrease, or one of them, but for the
                last, is not positive.
        """
        if key is None:
            raise ValueError("`key` is needed to sample the posterior; give one.")
        members = count_members(background)
        part, rest = split(background, self.where)
        flat, unflatten = _flatten(part)
        mean = jnp.mean(flat, axis=0)
        deviation = jnp.std(flat, axis=0, ddof=1)
        # An entry without spread stays as it is, whatever its units.
        spread = jnp.where(deviation > 0, deviation, 1)
        white = (flat - mean[None]) / spread[None]
        prior = EnsembleDenoiser(white, self.bandwidth, self.shrinkage)
        sigmas = checked_levels(prior, self.schedule, self.steps, self.sampler)
        start_key, noise_key, walk_key = jr.split(key, 3)
        noise = jr.normal(noise_key, flat.shape, flat.dtype)
        start = prior.sample(key=start_key) + sigmas[0].astype(flat.dtype) * noise

        def analyse(x, rest, key):
            decode = lambda x: eqx.combine(unflatten(mean + deviation * x), rest)
            guided = guide(prior, observation.pullback(decode), self.guidance)
            x = walk(guided, self.sampler, sigmas, x, noise=_WHITE, key=key)
            return mean + deviation * x

        moved = jax.vmap(analyse)(start, rest, jr.split(walk_key, members))
        number = counts(observation)
        middle, anomalies = centre(moved)
        moved = middle[None] + self.inflation.astype(flat.dtype) * anomalies
        moved = jnp.where(number["used"] > 0, moved, flat)
        analysis = jax.vmap(unflatten)(moved)
        return eqx.combine(analysis, rest), _judge(background, observation, number)


def _judge(background, observation, number):
    innovation, anomalies = observe(background, observation)
    gained = gain(anomalies, None)
    weights = matmul(gained, innovation)
    return Info(
        **number,
        chi_square=chi_square(innovation, anomalies, weights, number["used"]),
        degrees_of_freedom=jnp.sum(gained * anomalies),
    )


def _flatten(ensemble):
    """Return members as rows of the widest of their dtypes, and the way back of one."""
    leaves, structure = jax.tree.flatten(ensemble)
    if any(jnp.iscomplexobj(leaf) for leaf in leaves):
        raise ValueError(
            "a leaf to update is complex: give real and imaginary parts, or leave it "
            "out by `where`."
        )
    dtypes = [leaf.dtype for leaf in leaves]
    wide = max([jnp.dtype(jnp.float32), *dtypes], key=lambda d: jnp.finfo(d).bits)
    shapes = [leaf.shape[1:] for leaf in leaves]
    rows = [leaf.reshape(len(leaf), -1).astype(wide) for leaf in leaves]
    ends = [sum(row.shape[1] for row in rows[: i + 1]) for i in range(len(rows))]

    def unflatten(row):
        parts = zip(jnp.split(row, ends[:-1]), shapes, dtypes, strict=True)
        return structure.unflatten([p.reshape(s).astype(d) for p, s, d in parts])

    return jnp.concatenate(rows, axis=1), unflatten
