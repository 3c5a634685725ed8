"""Long trajectories from a denoiser that has only seen short ones."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from skyens.diffusion._denoisers import Denoiser, Scalar


class Windowed(eqx.Module):
    """The denoiser of a trajectory `(time, *state)`, from one of `window` times.

    Every window of successive times is denoised by itself. A time takes its clean
    state from the window that it is in the middle of, those at the ends from the first
    and the last one. As the noise vanishes, the score of a Markov chain is exact with
    windows of 3; the noisier the trajectory, the longer its memory and the wider they
    have to be. A trajectory of `window` times is denoised as it is.

    Guided by an observation of the whole trajectory it smooths: `guide(Windowed(...),
    observation, SDA())`.

    Source: Rozet & Louppe (2023), NeurIPS 36, arXiv:2306.10574, algorithm 2.
    """

    denoiser: Denoiser
    window: int = eqx.field(static=True)
    at_once: int | None = eqx.field(static=True)

    def __init__(self, denoiser: Denoiser, window: int, at_once: int | None = None):
        """Set the denoiser of `(window, *state)`, and how many windows go together.

        Args:
            denoiser: of a short trajectory, with a leading axis of time.
            window: its number of times, odd.
            at_once: how many windows to denoise in parallel, None for all; fewer need
                less memory.

        Raises:
            ValueError: `window` is even or below 1, or `at_once` is below 1.
        """
        if window < 1 or window % 2 == 0:
            raise ValueError(f"`window` must be odd and at least 1, got {window}.")
        if at_once is not None and at_once < 1:
            raise ValueError(f"`at_once` must be at least 1, got {at_once}.")
        self.denoiser, self.window, self.at_once = denoiser, window, at_once

    def __call__(
        self, x: Float[Array, "time *state"], sigma: Scalar, *, condition: Any = None
    ) -> Float[Array, "time *state"]:
        """Return the expected clean trajectory; `condition` goes to every window.

        Raises:
            ValueError: `x` has fewer times than `window`, or the denoiser returns
                another shape than it was given.
        """
        if x.shape[0] < self.window:
            raise ValueError(
                f"`x` must have at least the {self.window} times of a window, got "
                f"{x.shape[0]}."
            )
        starts = jnp.arange(x.shape[0] - self.window + 1)

        def denoise(start):
            part = jax.lax.dynamic_slice_in_dim(x, start, self.window)
            clean = self.denoiser(part, sigma, condition=condition)
            if clean.shape != part.shape:
                raise ValueError(
                    f"`denoiser` must keep the shape {part.shape} of a window, got "
                    f"{clean.shape}."
                )
            return clean

        if self.at_once is None:
            clean = jax.vmap(denoise)(starts)
        else:
            clean = jax.lax.map(denoise, starts, batch_size=self.at_once)
        side = self.window // 2
        ends = clean[0, :side], clean[-1, side + 1 :]
        return jnp.concatenate([ends[0], clean[:, side], ends[1]])
