"""Walk any state down any levels: the loop that several methods share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from skyens.diffusion._checked import checked_range, visited_levels
from skyens.diffusion._denoisers import Denoiser
from skyens.diffusion._noise import Noise
from skyens.diffusion._samplers import Method


def walk(
    denoise: Callable,
    method: Method,
    sigmas: Float[Array, "levels"],
    x: Float[Array, "*state"],
    *,
    noise: Noise,
    key: PRNGKeyArray,
) -> Float[Array, "*state"]:
    """Return what `x`, at the first of the levels, becomes at the last of them.

    `denoise(x, sigma)` is the denoiser. The levels decrease.
    """
    draw = lambda *, key: noise(x.shape, x.dtype, key=key)

    def step(carry, this):
        now, index = this
        state, memory = carry
        key_now = jr.fold_in(key, index)
        return method.step(denoise, state, memory, now, noise=draw, key=key_now), None

    # Ratios and logarithms in the levels' precision, then cast, as in `sample`.
    plan = jax.tree.map(lambda part: part.astype(x.dtype), method.plan(sigmas))
    steps = jnp.arange(sigmas.size - 1)
    return jax.lax.scan(step, (x, method.init(x)), (plan, steps))[0][0]


def checked_walks(
    denoiser: Denoiser,
    method: Method,
    walks: Float[Array, "walk levels"],
    sigmas: Float[Array, "some"],
) -> Float[Array, "some"]:
    """Return `sigmas`, or fail if a method leaves the denoiser's range on one walk.

    Raises:
        EquinoxRuntimeError: a level, such as one that churn raises, lies outside of it.
    """
    visited = jax.vmap(lambda levels: visited_levels(method, levels))(walks)
    return checked_range(denoiser, sigmas, visited.ravel())


def ladder(
    high: Float[Array, ""], low: Float[Array, ""], steps: int
) -> Float[Array, "levels"]:
    """Return `steps + 1` levels from `high` down to `low` and 0, spaced as EDM's."""
    share = jnp.linspace(0, 1, steps, dtype=high.dtype)
    root = (1 - share) * high ** (1 / 7) + share * low ** (1 / 7)
    # The ends are exact: rounding must not leave the denoiser's range.
    levels = (root**7).at[0].set(high).at[-1].set(low)
    return jnp.append(levels, jnp.zeros((), high.dtype))
