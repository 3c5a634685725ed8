"""Diffusion: priors as denoisers, samplers, and posteriors over observations.

A denoiser is any callable `denoiser(x, sigma, *, condition=None)` that returns the
expected clean state, given `x = clean + sigma * noise`, for one sample. A schedule
names the noise levels, a method walks down them (`sample`), and `guide` turns a
denoiser and an `Observation` into the denoiser of the posterior, so that whatever
consumes a prior consumes a posterior too. Batches come from `jax.vmap` over keys.
"""

from skyens.diffusion._classifier_free import ClassifierFree as ClassifierFree
from skyens.diffusion._consistency import (
    ConsistencyLoss as ConsistencyLoss,
    Renoise as Renoise,
)
from skyens.diffusion._denoisers import (
    Denoiser as Denoiser,
    DiagonalGaussianDenoiser as DiagonalGaussianDenoiser,
    GaussianDenoiser as GaussianDenoiser,
    LowRankGaussianDenoiser as LowRankGaussianDenoiser,
)
from skyens.diffusion._ensemble_denoiser import EnsembleDenoiser as EnsembleDenoiser
from skyens.diffusion._ensemble_guidance import (
    ensemble_guidance as ensemble_guidance,
)
from skyens.diffusion._flow import (
    flow as flow,
    flow_term as flow_term,
    log_prob as log_prob,
    reverse_sde as reverse_sde,
    reverse_terms as reverse_terms,
)
from skyens.diffusion._guidance import (
    MMPS as MMPS,
    GuidedDenoiser as GuidedDenoiser,
    guide as guide,
)
from skyens.diffusion._guidance_approximations import (
    DPS as DPS,
    SDA as SDA,
    TMPD as TMPD,
    PiGDM as PiGDM,
)
from skyens.diffusion._latent import Coder as Coder, LatentSpace as LatentSpace
from skyens.diffusion._levels import (
    Levels as Levels,
    LogNormalLevels as LogNormalLevels,
    LogUniformLevels as LogUniformLevels,
    ScheduleLevels as ScheduleLevels,
)
from skyens.diffusion._likelihood_step import (
    Langevin as Langevin,
    Perturbed as Perturbed,
)
from skyens.diffusion._losses import DenoisingLoss as DenoisingLoss
from skyens.diffusion._mixture import GaussianMixtureDenoiser as GaussianMixtureDenoiser
from skyens.diffusion._noise import (
    Noise as Noise,
    Spherical as Spherical,
    White as White,
)
from skyens.diffusion._parameterisation import (
    AdaptedDenoiser as AdaptedDenoiser,
    AdaptedNetwork as AdaptedNetwork,
    Parameterisation as Parameterisation,
    PredictsClean as PredictsClean,
    PredictsNoise as PredictsNoise,
    PredictsScore as PredictsScore,
    PredictsV as PredictsV,
    PredictsVelocity as PredictsVelocity,
    as_denoiser as as_denoiser,
    as_network as as_network,
)
from skyens.diffusion._precondition import Preconditioned as Preconditioned
from skyens.diffusion._proposals import (
    Flow as Flow,
    Guided as Guided,
    Kernel as Kernel,
    LocallyOptimal as LocallyOptimal,
    Proposal as Proposal,
    Unguided as Unguided,
    Way as Way,
)
from skyens.diffusion._samplers import Method as Method, sample as sample
from skyens.diffusion._schedule import (
    EDM as EDM,
    Schedule as Schedule,
    VarianceExploding as VarianceExploding,
    dispersion as dispersion,
    drift as drift,
    level as level,
)
from skyens.diffusion._schedule_interpolating import (
    CosineVariancePreserving as CosineVariancePreserving,
    RectifiedFlow as RectifiedFlow,
    VariancePreserving as VariancePreserving,
)
from skyens.diffusion._score_filter import ScoreFilter as ScoreFilter
from skyens.diffusion._sequence import (
    SequenceForecast as SequenceForecast,
    time_features as time_features,
)
from skyens.diffusion._smc import Particles as Particles, smc as smc
from skyens.diffusion._split_gibbs import (
    DAPS as DAPS,
    PlugAndPlay as PlugAndPlay,
    split_gibbs as split_gibbs,
)
from skyens.diffusion._steppers import DDIM as DDIM, Euler as Euler, Heun as Heun
from skyens.diffusion._steppers_multistep import (
    DPMSolver2M as DPMSolver2M,
    DPMSolver2S as DPMSolver2S,
    DPMSolver3M as DPMSolver3M,
)
from skyens.diffusion._steppers_sde import (
    DPMSolverSDE as DPMSolverSDE,
    ExponentialSDE as ExponentialSDE,
    PredictorCorrector as PredictorCorrector,
)
from skyens.diffusion._traces import (
    ExactTrace as ExactTrace,
    Hutchinson as Hutchinson,
    Trace as Trace,
)
from skyens.diffusion._twists import (
    Annealed as Annealed,
    Look as Look,
    MomentMatched as MomentMatched,
    Noised as Noised,
    Plain as Plain,
    PseudoInverse as PseudoInverse,
    StateTwist as StateTwist,
    Twist as Twist,
)
from skyens.diffusion._units import InUnits as InUnits, Normalised as Normalised
from skyens.diffusion._windowed import Windowed as Windowed
