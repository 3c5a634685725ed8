"""Forecasts by diffusion: the next frames, given the last one and the hour it is at."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from skyens.diffusion._denoisers import Denoiser
from skyens.diffusion._latent import LatentSpace
from skyens.diffusion._noise import Noise, White
from skyens.diffusion._samplers import DPMSolver2M, Method, sample
from skyens.diffusion._schedule import Schedule
from skyens.nn import Condition

HOURS_OF_DAY, HOURS_OF_YEAR = 24, 8766  # of the Julian year

_DPM_SOLVER = DPMSolver2M()
_WHITE = White()


def time_features(hour: Int[Array, "*time"]) -> Float[Array, "*time feature"]:
    """Return where an hour lies in the day and in the year, dimensionless.

    Cosine and sine of the phase in the day, then in the year. `hour` counts whole
    hours since 1800-01-01, as the keys of a run do; any hour is as good as another.
    """
    phases = [
        (hour % period).astype(float) * (2 * math.pi / period)
        for period in (HOURS_OF_DAY, HOURS_OF_YEAR)
    ]
    return jnp.stack([wave(p) for p in phases for wave in (jnp.cos, jnp.sin)], axis=-1)


class SequenceForecast(eqx.Module):
    """A step that draws the next `frames` of a sequence at once, `hours` apart.

    The denoiser knows `(frames * channel, *space)`, frame after frame, given the
    latent before them as `Condition.fields` and the `time_features` of its hour as
    `Condition.vector`: forecasts start at any hour. What is drawn is its own start
    for the next step, so a rollout goes on as long as one likes. The state is

        {"frames": latents, "hour": hour of the last of them};

    `start` makes one, `fields` decodes its frames, and `dynamics.rollout(forecast,
    state, steps, key=key, reduce=forecast.fields)` is a forecast of `steps * frames`.
    Only the denoiser is trained, on the batches that `examples` makes.

    Source: Zhuang et al. (2025), LaDCast, arXiv:2506.09193; with one frame and no
    autoencoder Price et al. (2025), GenCast, Nature 637, 84-90.
    """

    denoiser: Denoiser
    space: LatentSpace
    schedule: Schedule = eqx.field(metadata={"trainable": False})
    method: Method = eqx.field(metadata={"trainable": False})
    noise: Noise = eqx.field(metadata={"trainable": False})
    frames: int = eqx.field(static=True)
    hours: int = eqx.field(static=True)
    steps: int = eqx.field(static=True)

    def __init__(
        self,
        denoiser: Denoiser,
        space: LatentSpace,
        schedule: Schedule,
        *,
        frames: int = 4,
        hours: int = 6,
        method: Method = _DPM_SOLVER,
        steps: int = 18,
        noise: Noise = _WHITE,
    ):
        """Set what is drawn, and how.

        Args:
            denoiser: of `frames` latents as one state, conditional.
            space: the latents.
            schedule: noise levels of the sampler.
            frames: how many frames are drawn at once.
            hours: from one frame to the next.
            method: of `sample`.
            steps: of `sample`, for one draw.
            noise: the noise law of the denoiser.

        Raises:
            ValueError: `frames`, `hours` or `steps` is below 1.
        """
        counts = dict(frames=frames, hours=hours, steps=steps)
        if bad := {name: count for name, count in counts.items() if count < 1}:
            raise ValueError(f"counts must be at least 1, got {bad}.")
        self.denoiser, self.space, self.schedule = denoiser, space, schedule
        self.method, self.noise = method, noise
        self.frames, self.hours, self.steps = frames, hours, steps

    def start(
        self, field: Float[Array, "*field"], hour: int | Int[Array, ""]
    ) -> dict[str, PyTree]:
        """Return the state of a forecast from one `field`, at an `hour` since 1800.

        The field stands in each of the frames; the last is what the forecast sees.
        """
        latent = self.space.encode(field)
        frames = jnp.broadcast_to(latent[None], (self.frames, *latent.shape))
        return {"frames": frames, "hour": jnp.asarray(hour, int)}

    def __call__(
        self,
        state: dict[str, PyTree],
        forcing: Any = None,
        *,
        key: PRNGKeyArray | None,
    ) -> dict[str, PyTree]:
        """Return the state `frames * hours` hours later.

        Raises:
            ValueError: there is no `key`, or a `forcing` is given.
        """
        if key is None:
            raise ValueError("`key` must be a key: a forecast is drawn.")
        if forcing is not None:
            raise ValueError("a forecast by diffusion takes no `forcing`.")
        frames, hour = state["frames"], state["hour"]
        drawn = sample(
            self.denoiser,
            self.schedule,
            (frames.shape[0] * frames.shape[1], *frames.shape[2:]),
            key=key,
            method=self.method,
            steps=self.steps,
            noise=self.noise,
            condition=_condition(frames[-1], hour),
            dtype=frames.dtype,
        )
        ahead = hour + self.frames * self.hours
        return {"frames": drawn.reshape(frames.shape), "hour": ahead}

    def fields(self, state: dict[str, PyTree]) -> Float[Array, "frame *field"]:
        """Return the frames of a state, decoded, in physical units."""
        return jax.vmap(self.space.decode)(state["frames"])

    def examples(
        self,
        latents: Float[Array, "time channel *space"],
        hour: int | Int[Array, ""],
        first: Int[Array | np.ndarray, " batch"],
        *,
        spacing: int = 1,
    ) -> tuple[Float[Array, "batch channels *space"], Condition]:
        """Return a batch of `DenoisingLoss`: frames, and what they are forecast from.

        Args:
            latents: a record of latents, as `space.encode` makes them.
            hour: of the first of these, since 1800-01-01.
            first: where in the record each example's forecast starts, any hour.
            spacing: hours from one latent of the record to the next.

        Raises:
            ValueError: the frames do not lie on the record's times.
            EquinoxRuntimeError: an example starts before the record, or ends after it.
        """
        if spacing < 1 or self.hours % spacing:
            raise ValueError(
                f"frames are {self.hours} hours apart, which must be a multiple of "
                f"`spacing`, got {spacing}."
            )
        stride, first = self.hours // spacing, jnp.asarray(first)
        last = latents.shape[0] - 1 - self.frames * stride
        first = eqx.error_if(
            first,
            (first < 0) | (first > last),
            f"`first` must lie in [0, {last}], for {self.frames} frames {stride} times "
            f"apart in a record of {latents.shape[0]}.",
        )
        ahead = jnp.arange(1, self.frames + 1, dtype=first.dtype) * stride
        frames = latents[first[:, None] + ahead[None]]
        clean = frames.reshape(first.size, -1, *latents.shape[2:])
        hours = jnp.asarray(hour, int) + spacing * first.astype(int)
        return clean, jax.vmap(_condition)(latents[first], hours)


def _condition(latent: Array, hour: Array) -> Condition:
    """Return what a forecast is told; networks cast it to their input's dtype."""
    return Condition(fields=latent, vector=time_features(hour).astype(latent.dtype))
