"""Consistency: distil a denoiser into samples of one or a few evaluations.

A consistency model maps every point of a path of the probability flow to the path's
clean end. It has a denoiser's signature, and `sample` draws from it: in one step by
`Euler`, in a few by `Renoise`.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from skyens.diffusion._broadcast import wide
from skyens.diffusion._checked import checked_levels
from skyens.diffusion._denoisers import Denoiser, Scalar
from skyens.diffusion._levels import spread_uniform
from skyens.diffusion._losses import check_entries, check_key, mean_over, split_batch
from skyens.diffusion._noise import Noise, White
from skyens.diffusion._schedule import Schedule

_WHITE = White()


class ConsistencyLoss(eqx.Module):
    """How far a model disagrees with itself at neighbouring levels of one path.

    It is a loss of `training.make_step`: `loss(model, batch, *, key)`, of batches as
    `DenoisingLoss` takes them. The model at the higher level learns what it says at
    the lower one, and learns there in turn; at level 0 a model must return its input,
    as `Preconditioned` does. Start from the teacher's weights if there is one.

    With a `teacher`, the neighbour is where one Heun step along the teacher's flow
    leads (distillation); without, it has the same clean state and the same noise,
    which is the same in the limit of many levels (training from data alone).

    The distance is pseudo-Huber, `sqrt(r^2 + c^2) - c` of the root mean square r.

    Source: Song et al. (2023), ICML, arXiv:2303.01469, algorithms 2 and 3; Song &
    Dhariwal (2024), ICLR, arXiv:2310.14189, for the distance and the lack of a moving
    average in the target.
    """

    sigmas: Float[Array, "levels"]
    teacher: Denoiser | None = eqx.field(metadata={"trainable": False})
    noise: Noise
    entries: Float[Array, "*weights"] | None
    scale: Float[Array, ""]

    def __init__(
        self,
        schedule: Schedule,
        steps: int = 18,
        *,
        teacher: Denoiser | None = None,
        noise: Noise = _WHITE,
        entries: Float[Array, "*weights"] | None = None,
        scale: Scalar = 0.03,
    ):
        """Set the path's levels and its neighbours.

        Args:
            schedule: its levels of `steps` steps are the ones that are compared; the
                model's samples start at the first.
            steps: how many pairs of neighbours there are; more are more exact, and
                learn more slowly.
            teacher: a denoiser; None learns from data alone.
            noise: the noise law of the model and its teacher.
            entries: weights of the state's entries, as in `DenoisingLoss`.
            scale: c, in the state's units: smaller errors count quadratically, larger
                ones linearly.

        Raises:
            ValueError: `steps` is below 1, or the schedule does not give `steps + 1`
                levels.
            EquinoxRuntimeError: the levels do not decrease or leave the range the
                teacher was trained in, `scale` is not positive and finite, or `entries`
                are negative, not finite, or all 0.
        """
        self.sigmas = checked_levels(teacher, schedule, steps)
        scale = jnp.asarray(scale, float)
        self.teacher, self.noise, self.entries = teacher, noise, check_entries(entries)
        self.scale = eqx.error_if(
            scale,
            ~((scale > 0) & jnp.isfinite(scale)),
            "`scale` must be positive and finite.",
        )

    def __call__(
        self, model: Denoiser, batch: PyTree[Array], *, key: PRNGKeyArray | None
    ) -> Float[Array, ""]:
        """Return the mean loss over a batch, in its dtype, float32 at least.

        Raises:
            ValueError: there is no `key`, or shapes do not fit each other.
        """
        clean, condition = split_batch(batch)
        key, size = check_key(key), clean.shape[0]
        level_key, noise_key = jr.split(key)
        uniform = spread_uniform(size, wide(clean.dtype), key=level_key)
        steps = self.sigmas.size - 1
        index = jnp.minimum((uniform * steps).astype(int), steps - 1)
        sigmas = self.sigmas.astype(clean.dtype)
        one = lambda clean, high, low, condition, key: self.between(
            model, clean, high, low, condition=condition, key=key
        )
        keys = jr.split(noise_key, size)
        losses = jax.vmap(one)(clean, sigmas[index], sigmas[index + 1], condition, keys)
        return jnp.mean(losses)

    def between(
        self,
        model: Denoiser,
        clean: Float[Array, "*state"],
        high: Float[Array, ""],
        low: Float[Array, ""],
        *,
        condition: Any = None,
        key: PRNGKeyArray | None,
    ) -> Float[Array, ""]:
        """Return the loss of one sample, between two levels of its path."""
        noise = self.noise(clean.shape, clean.dtype, key=check_key(key))
        noisy = clean + high * noise
        if self.teacher is None:
            less_noisy = clean + low * noise
        else:
            less_noisy = self._flow(self.teacher, noisy, high, low, condition)
        target = jax.lax.stop_gradient(model(less_noisy, low, condition=condition))
        error = model(noisy, high, condition=condition) - target
        square = mean_over(error.astype(wide(clean.dtype)) ** 2, self.entries)
        scale = self.scale.astype(square.dtype)
        # Not `sqrt(r^2 + c^2) - c`, which cancels where errors are small.
        return square / (jnp.sqrt(square + scale**2) + scale)

    def _flow(self, teacher, x, high, low, condition):
        """Return the state at the level `low`, by Heun, into 0 by Euler."""
        slope = lambda x, sigma: (x - teacher(x, sigma, condition=condition)) / sigma
        first = slope(x, high)
        reached = x + (low - high) * first
        # At 0 the slope is not known and not used; it must stay finite.
        second = slope(reached, jnp.where(low > 0, low, high))
        corrected = x + (low - high) * (first + second) / 2
        return jnp.where(low > 0, corrected, reached)


class Renoise(eqx.Module):
    """Denoise, then add the whole noise of the next level: for consistency models.

    Their errors do not pile up, as every step starts from a clean state. With an
    ordinary denoiser the samples would be those of its expected states, too smooth.

    Source: Song et al. (2023), arXiv:2303.01469, algorithm 1.
    """

    def plan(self, sigmas: Float[Array, "levels"]) -> Any:
        """Return each step's level and the next."""
        return sigmas[:-1], sigmas[1:]

    def init(self, x: Float[Array, "*state"]) -> Any:
        """Remember nothing."""
        return None

    def step(
        self,
        denoise: Callable,
        x: Float[Array, "*state"],
        memory: Any,
        now: Any,
        *,
        noise: Callable,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, "*state"], Any]:
        """Return the clean state with the noise of the next level."""
        sigma, after = now
        return denoise(x, sigma) + after * noise(key=key), None
