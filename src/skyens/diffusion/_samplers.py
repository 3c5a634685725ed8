"""Samplers: walk a noisy state down the levels of a schedule, one `lax.scan`."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from skyens.assimilation._progress import Bar
from skyens.diffusion._checked import (
    checked_denoiser,
    checked_levels,
    first_failure,
    report_failure,
)
from skyens.diffusion._denoisers import Denoiser
from skyens.diffusion._noise import Noise, White
from skyens.diffusion._schedule import Schedule
from skyens.diffusion._steppers_multistep import DPMSolver2M


@runtime_checkable
class Method(Protocol):
    """A stepper: what it needs of the levels, what it remembers, and one step.

    One that calls the denoiser beyond the schedule's levels, as churn does, has besides
    a method `visited(sigmas)` that returns the levels it calls it at.
    """

    def plan(self, sigmas: Float[Array, "levels"]) -> Any:
        """Return arrays with one leading entry per step, from the levels alone."""
        ...

    def init(self, x: Float[Array, "*state"]) -> Any:
        """Return the memory before the first step."""
        ...

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
        """Return state and memory one level down; `now` is this step's plan.

        `denoise(x, sigma)` is the denoiser, `noise(key=key)` a sample of unit noise.
        """
        ...


_DPM_SOLVER = DPMSolver2M()
_WHITE = White()


def sample(
    denoiser: Denoiser,
    schedule: Schedule,
    shape: tuple[int, ...],
    *,
    key: PRNGKeyArray,
    method: Method = _DPM_SOLVER,
    steps: int = 18,
    noise: Noise = _WHITE,
    condition: Any = None,
    dtype: DTypeLike = float,
    checkpoint: bool = False,
    progress: bool | str = False,
) -> Float[Array, "*state"]:
    """Draw one sample of `shape` and `dtype`, in the units of the denoiser's states.

    It starts from pure noise at the first level, as if the clean states' mean m and
    variance v were nothing against it: to first order the samples are off by
    `m sqrt(v) / sigma_max` in mean. Centre and scale states, and choose the schedule,
    so that this is small. Many samples: `jax.vmap` over keys.

    `condition` is handed to every call of the denoiser. Gradients flow to everything
    the denoiser and the schedule hold. `checkpoint` recomputes each step in reverse
    mode instead of storing its inside. `progress` shows a bar, or what to write before
    it.

    A denoiser that knows the levels it was trained between says so by attributes
    `sigma_min` and `sigma_max`; all levels must stay inside. What becomes NaN or
    infinite on the way says from which level on: as an error, or under tracing as a
    warning, which lets other samples be.

    Raises:
        ValueError: `steps` is below 1, the schedule does not give `steps + 1` levels,
            the denoiser returns another shape or dtype than it was given, or the noise
            another than it was asked for.
        EquinoxRuntimeError: the levels do not decrease, one of them, but for the last,
            is not positive or leaves the range the denoiser was trained in, or the
            state does not stay finite.
    """
    sigmas = checked_levels(denoiser, schedule, steps, method)
    denoise = checked_denoiser(denoiser, condition)
    bar = Bar(steps, progress if isinstance(progress, str) else "Sampling")
    start, walk = jr.split(key)
    # Without 64 bits `float`, the default, is single.
    wanted = jnp.dtype(jax.dtypes.canonicalize_dtype(dtype))

    def draw(*, key):
        z = noise(shape, wanted, key=key)
        if z.shape != tuple(shape) or z.dtype != wanted:
            raise ValueError(
                f"`noise` must have the shape {tuple(shape)} and the dtype {wanted} "
                f"asked for, got {z.dtype}{z.shape}."
            )
        return z

    def step(carry, this):
        x, memory, failed = carry
        now, sigma, index = this
        key = jr.fold_in(walk, index)
        x, memory = method.step(denoise, x, memory, now, noise=draw, key=key)
        failed = first_failure(failed, sigma, jnp.isfinite(x).all())
        if progress:
            bar.tell(index)
        return (x, memory, failed), None

    x = draw(key=start)
    # Ratios and logarithms are taken in the schedule's precision, then cast: levels
    # that differ there may be equal in the state's.
    plan = jax.tree.map(lambda part: part.astype(x.dtype), method.plan(sigmas))
    x = sigmas[0].astype(x.dtype) * x
    body = jax.checkpoint(step, prevent_cse=False) if checkpoint else step
    carry = x, method.init(x), jnp.zeros((), sigmas.dtype)
    each = plan, sigmas[:-1], jnp.arange(steps)
    (x, _, failed), _ = jax.lax.scan(body, carry, each)
    return report_failure(x, failed)
