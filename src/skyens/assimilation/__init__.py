"""Conditioning states on observations: methods, their pieces, and cycling.

A method is called `(background, observation, *, key=None)` and returns `(analysis,
info)`. The background is any pytree of arrays with a leading member axis; the
observation is a `skyens.observations.Observation`. `cycle` alternates any of them with
forecasts, and `twin` makes a truth to test them on.

- Ensemble Kalman filters: `EnKF`, `ETKF`, `DEnKF`, `ESTKF`, `EnSRF`, `EnKFN`; of
  limited reach `LETKF`, `EnSRF` with a localisation, `LocalisedEnKF`, `Modulated`.
- Inflation: `Inflated` with `Multiplicative`, `Additive`, `RelaxToPriorSpread`,
  `RelaxToPriorPerturbations`; `AdaptiveInflation`.
- Smoothers: `EnKS`, `IEnKS`, `ESMDA`, `ensemble_rts`.
- With given covariances: `Climatology`, `OptimalInterpolation`, `ThreeDVar`,
  `FourDVar`, `HybridEnVar`, and for Gaussians `kalman_filter`, `rts_smoother` and
  `ExtendedKalmanFilter`.
- Particle filters, of `Weighted` members: `BootstrapFilter`, `AuxiliaryFilter`,
  `OptimalProposal`, `TemperedFilter`, `LocalParticleFilter`.
- Parameters: `invert` with `EKI`, `UKI` or `EKS`.
- Robust errors: `Reweighted` asks them again about each analysis.
- Localisation, on a `Sphere` or a `Plane`: `Localisation` or `Moving` (and `Vertical`,
  `CoarseWeights`) for the `LETKF`, `Schur` for `EnSRF` and `LocalisedEnKF`,
  `localisation_roots` and `sphere_roots` for `Modulated`.
- Background covariances: `DenseCovariance`, `DiagonalCovariance`, `SpectralCovariance`,
  `EnsembleCovariance`, `HybridCovariance`, estimated by `estimate_dense`,
  `estimate_diagonal` and `estimate_spectral` from an ensemble, or from
  `forecast_differences`.
- To look: `single_observation`, `moments` and `errors`, and the diagnostics of a cycle,
  `AgainstObservations`, `AgainstTruth` and `Information`.
- `Replace` makes up for members that failed.
"""

from skyens.assimilation._adaptive_inflation import (
    AdaptiveInflation as AdaptiveInflation,
)
from skyens.assimilation._background_covariance import (
    BackgroundCovariance as BackgroundCovariance,
    DenseCovariance as DenseCovariance,
    DiagonalCovariance as DiagonalCovariance,
    covariance_times as covariance_times,
    draw_perturbation as draw_perturbation,
)
from skyens.assimilation._background_covariance_ensemble import (
    EnsembleCovariance as EnsembleCovariance,
    HybridCovariance as HybridCovariance,
    SharedCorrelation as SharedCorrelation,
)
from skyens.assimilation._background_covariance_estimate import (
    estimate_dense as estimate_dense,
    estimate_diagonal as estimate_diagonal,
    estimate_spectral as estimate_spectral,
    forecast_differences as forecast_differences,
)
from skyens.assimilation._background_covariance_spectral import (
    SpectralCovariance as SpectralCovariance,
    degree_covariances as degree_covariances,
    gaspari_cohn_spectrum as gaspari_cohn_spectrum,
)
from skyens.assimilation._climatology import Climatology as Climatology
from skyens.assimilation._coarse_weights import CoarseWeights as CoarseWeights
from skyens.assimilation._cycle import Cycle as Cycle, cycle as cycle
from skyens.assimilation._denkf import DEnKF as DEnKF
from skyens.assimilation._diagnostics import (
    AgainstObservations as AgainstObservations,
    AgainstTruth as AgainstTruth,
    Diagnostic as Diagnostic,
    Information as Information,
    Seen as Seen,
    Taken as Taken,
)
from skyens.assimilation._enkf import EnKF as EnKF
from skyens.assimilation._enkf_n import EnKFN as EnKFN
from skyens.assimilation._enks import EnKS as EnKS, smoothed as smoothed
from skyens.assimilation._ensemble import Info as Info
from skyens.assimilation._ensemble_rts import ensemble_rts as ensemble_rts
from skyens.assimilation._ensrf import EnSRF as EnSRF
from skyens.assimilation._es_mda import ESMDA as ESMDA
from skyens.assimilation._estkf import ESTKF as ESTKF
from skyens.assimilation._etkf import ETKF as ETKF
from skyens.assimilation._extended_kalman import (
    ExtendedKalmanFilter as ExtendedKalmanFilter,
    GaussianStep as GaussianStep,
)
from skyens.assimilation._failures import Replace as Replace
from skyens.assimilation._geometry import Plane as Plane, Sphere as Sphere
from skyens.assimilation._hybrid import HybridEnVar as HybridEnVar
from skyens.assimilation._ienks import IEnKS as IEnKS
from skyens.assimilation._inflation import (
    Additive as Additive,
    Inflated as Inflated,
    Multiplicative as Multiplicative,
    RelaxToPriorPerturbations as RelaxToPriorPerturbations,
    RelaxToPriorSpread as RelaxToPriorSpread,
    ensemble_spread as ensemble_spread,
)
from skyens.assimilation._inversion import (
    GaussianPrior as GaussianPrior,
    Inversion as Inversion,
    InversionInfo as InversionInfo,
    invert as invert,
)
from skyens.assimilation._inversion_eki import EKI as EKI
from skyens.assimilation._inversion_eks import EKS as EKS
from skyens.assimilation._inversion_uki import UKI as UKI
from skyens.assimilation._kalman import (
    Filtered as Filtered,
    Gaussian as Gaussian,
    kalman_filter as kalman_filter,
    kalman_update as kalman_update,
)
from skyens.assimilation._letkf import LETKF as LETKF
from skyens.assimilation._localisation import (
    Localisation as Localisation,
    Moving as Moving,
    Step as Step,
    gaspari_cohn as gaspari_cohn,
)
from skyens.assimilation._localisation_roots import (
    localisation_roots as localisation_roots,
    sphere_roots as sphere_roots,
)
from skyens.assimilation._localised_enkf import LocalisedEnKF as LocalisedEnKF
from skyens.assimilation._modulated import Modulated as Modulated
from skyens.assimilation._moments import (
    Errors as Errors,
    Moments as Moments,
    errors as errors,
    moments as moments,
)
from skyens.assimilation._optimal_interpolation import (
    OptimalInterpolation as OptimalInterpolation,
)
from skyens.assimilation._particle import BootstrapFilter as BootstrapFilter
from skyens.assimilation._particle_auxiliary import AuxiliaryFilter as AuxiliaryFilter
from skyens.assimilation._particle_local import (
    LocalParticleFilter as LocalParticleFilter,
)
from skyens.assimilation._particle_noise import (
    AdditiveNoise as AdditiveNoise,
    Kernel as Kernel,
)
from skyens.assimilation._particle_optimal import OptimalProposal as OptimalProposal
from skyens.assimilation._particle_tempered import TemperedFilter as TemperedFilter
from skyens.assimilation._resampling import (
    SSP as SSP,
    Multinomial as Multinomial,
    OptimalTransport as OptimalTransport,
    Residual as Residual,
    Stratified as Stratified,
    Systematic as Systematic,
)
from skyens.assimilation._reweighted import Reweighted as Reweighted
from skyens.assimilation._rts import Smoothed as Smoothed, rts_smoother as rts_smoother
from skyens.assimilation._schur import Schur as Schur
from skyens.assimilation._single_observation import (
    Increment as Increment,
    single_observation as single_observation,
)
from skyens.assimilation._transform import gram as gram, svd as svd
from skyens.assimilation._twin import Twin as Twin, twin as twin
from skyens.assimilation._variational import ThreeDVar as ThreeDVar
from skyens.assimilation._variational_minimisers import (
    Incremental as Incremental,
    Minimiser as Minimiser,
    Minimum as Minimum,
    ObservationSpace as ObservationSpace,
    TrueCost as TrueCost,
)
from skyens.assimilation._variational_window import FourDVar as FourDVar
from skyens.assimilation._vertical import Vertical as Vertical
from skyens.assimilation._weighted import Weighted as Weighted
