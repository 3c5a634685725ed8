"""Diffusion: priors as denoisers, samplers, and posteriors over observations.

A denoiser is any callable `denoiser(x, sigma, *, condition=None)` that returns the
expected clean state, given `x = clean + sigma * noise`, for one sample. A schedule
names the noise levels, a method walks down them (`sample`), and `guide` turns a
denoiser and an `Observation` into the denoiser of the posterior, so that whatever
consumes a prior consumes a posterior too. Batches come from `jax.vmap` over keys.
"""

from skyens.diffusion._denoisers import Denoiser as Denoiser
from skyens.diffusion._denoisers import (
    DiagonalGaussianDenoiser as DiagonalGaussianDenoiser,
)
from skyens.diffusion._denoisers import GaussianDenoiser as GaussianDenoiser
from skyens.diffusion._denoisers import (
    LowRankGaussianDenoiser as LowRankGaussianDenoiser,
)
from skyens.diffusion._guidance import MMPS as MMPS
from skyens.diffusion._guidance import GuidedDenoiser as GuidedDenoiser
from skyens.diffusion._guidance import guide as guide
from skyens.diffusion._noise import Noise as Noise
from skyens.diffusion._noise import White as White
from skyens.diffusion._samplers import DPMSolver2M as DPMSolver2M
from skyens.diffusion._samplers import Euler as Euler
from skyens.diffusion._samplers import Heun as Heun
from skyens.diffusion._samplers import Method as Method
from skyens.diffusion._samplers import sample as sample
from skyens.diffusion._schedule import EDM as EDM
from skyens.diffusion._schedule import Schedule as Schedule
