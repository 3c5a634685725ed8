"""Priors and walks that several files share.

Walks need no chance: they lead from one fixed noise down given levels.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.diffusion import GaussianMixtureDenoiser, sample


class Fixed(eqx.Module):
    """Noise that is always the same array."""

    value: jax.Array

    def __call__(self, shape, dtype, *, key):
        return self.value.astype(dtype).reshape(shape)


class GivenLevels(eqx.Module):
    """A user's own schedule: levels given one by one."""

    levels: jax.Array

    def alpha(self, time):
        return jnp.ones_like(time)

    def sigma(self, time):
        return time

    def sigmas(self, steps):
        return self.levels


@jax.jit
def _end_of_walk(method, denoiser, levels, noise):
    schedule, steps = GivenLevels(levels), levels.size - 1
    settings = {"method": method, "steps": steps, "dtype": noise.dtype}
    draw = Fixed(noise)
    return sample(
        denoiser, schedule, noise.shape, key=jr.key(0), noise=draw, **settings
    )


@pytest.fixture(scope="session")
def given_levels():
    """Return the schedule made of an array of levels."""
    return GivenLevels


@pytest.fixture(scope="session")
def end_of_walk():
    """Return the walk of a method: `(method, denoiser, levels, noise) -> end`."""
    return _end_of_walk


@pytest.fixture(scope="session")
def modes():
    """Return the maker of priors of 25 far modes, `(dimension) -> denoiser`.

    Source: Cardoso et al. (2023), MCGdiff, arXiv:2308.07983; in units in which equal
    weights would give every entry the variance 1.
    """

    def make(dimension):
        steps = np.arange(-2, 3)
        pairs = 8.0 * np.stack(np.meshgrid(steps, steps), axis=-1).reshape(25, 2)
        weights = np.random.default_rng(0).chisquare(1, size=25)
        means = jnp.asarray(np.tile(pairs, dimension // 2) / 129**0.5)
        return GaussianMixtureDenoiser(means, 1 / 129, weights=jnp.asarray(weights))

    return make
