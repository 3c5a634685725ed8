"""Diffusion: priors as denoisers, samplers, and posteriors over observations.

A denoiser is any callable `denoiser(x, sigma, *, condition=None)` that returns the
expected clean state, given `x = clean + sigma * noise`, for one sample. A schedule
names the noise levels, a method walks down them (`sample`), and `guide` turns a
denoiser and an `Observation` into the denoiser of the posterior, so that whatever
consumes a prior consumes a posterior too. Batches come from `jax.vmap` over keys.
"""

from skyens.diffusion._denoisers import (
    Denoiser as Denoiser,
    DiagonalGaussianDenoiser as DiagonalGaussianDenoiser,
    GaussianDenoiser as GaussianDenoiser,
    LowRankGaussianDenoiser as LowRankGaussianDenoiser,
)
from skyens.diffusion._guidance import (
    MMPS as MMPS,
    GuidedDenoiser as GuidedDenoiser,
    guide as guide,
)
from skyens.diffusion._noise import Noise as Noise, White as White
from skyens.diffusion._samplers import (
    DPMSolver2M as DPMSolver2M,
    Euler as Euler,
    Heun as Heun,
    Method as Method,
    sample as sample,
)
from skyens.diffusion._schedule import EDM as EDM, Schedule as Schedule
