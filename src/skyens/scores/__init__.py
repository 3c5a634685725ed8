"""Proper scores and verification statistics.

A score is a pure function of an ensemble, or of the parameters of a distribution, and a
truth: lower is better, differentiable, point by point. Training losses are scores after
linear maps.

- Ensembles: `crps` and its weighted forms, `brier_score`, `ranked_probability_score`;
  vectors and fields: `energy_score`, `variogram_score`, `dawid_sebastiani_score`,
  `kernel_score`, `fractions_skill_score`. With `alpha=1` they are fair: unbiased in the
  number of members.
- Distributions in closed form: `crps_normal`, `log_score_normal`, and so on for eleven
  families; `quantile_score` and `interval_score` for parts of one.
- Statistics (`RMSE`, `CRPS`, `SpreadSkill`, `RankHistogram`, `Reliability`, `ROC`,
  `Spectra` and others) add up what is needed of any number of forecasts, as the
  `Statistic` protocol describes: states merge in any order, over time in `lax.scan`,
  and over devices by `all_merge`. `MeanScore` makes one of any score; `MemberStream`
  verifies members that are never held together.
- How certain is it: `bootstrap` and `paired_bootstrap` of states, `diebold_mariano`,
  `benjamini_hochberg`. And mend it: `BiasCorrection`, `fit_emos`.
"""

from skyens.scores._activity import Activities as Activities, Activity as Activity
from skyens.scores._ambiguity import (
    Ambiguity as Ambiguity,
    ambiguity_cross_entropy as ambiguity_cross_entropy,
    ambiguity_squared_error as ambiguity_squared_error,
)
from skyens.scores._best_member import Best as Best, BestMember as BestMember
from skyens.scores._bootstrap import (
    Bootstrap as Bootstrap,
    Comparison as Comparison,
    Interval as Interval,
    bias_corrected_interval as bias_corrected_interval,
    bootstrap as bootstrap,
    optimal_block_length as optimal_block_length,
    paired_bootstrap as paired_bootstrap,
    percentile_interval as percentile_interval,
    stationary_bootstrap_indices as stationary_bootstrap_indices,
)
from skyens.scores._brier import (
    brier_score as brier_score,
    brier_score_probability as brier_score_probability,
)
from skyens.scores._calibration import (
    EMOS as EMOS,
    BiasCorrection as BiasCorrection,
    Distribution as Distribution,
    Fit as Fit,
    ensemble_copula_coupling as ensemble_copula_coupling,
    fit_emos as fit_emos,
)
from skyens.scores._censored_normal import (
    crps_censored_normal as crps_censored_normal,
    log_score_censored_normal as log_score_censored_normal,
)
from skyens.scores._censored_shifted_gamma import (
    crps_censored_shifted_gamma as crps_censored_shifted_gamma,
    log_score_censored_shifted_gamma as log_score_censored_shifted_gamma,
)
from skyens.scores._crps import crps as crps
from skyens.scores._crps_quantile_terms import (
    crps_quantile_terms as crps_quantile_terms,
)
from skyens.scores._crps_statistic import CRPS as CRPS
from skyens.scores._dawid_sebastiani import (
    dawid_sebastiani_score as dawid_sebastiani_score,
)
from skyens.scores._desroziers import (
    Consistency as Consistency,
    Desroziers as Desroziers,
)
from skyens.scores._economic_value import (
    EconomicValue as EconomicValue,
    ValueCurves as ValueCurves,
)
from skyens.scores._energy import energy_score as energy_score
from skyens.scores._exceedance import (
    Exceedance as Exceedance,
    ExceedanceRates as ExceedanceRates,
)
from skyens.scores._exponential import (
    crps_exponential as crps_exponential,
    log_score_exponential as log_score_exponential,
)
from skyens.scores._extremes import (
    extreme_forecast_index as extreme_forecast_index,
    shift_of_tails as shift_of_tails,
)
from skyens.scores._fractions_skill import (
    FractionsSkill as FractionsSkill,
    fractions_skill_score as fractions_skill_score,
)
from skyens.scores._gamma import (
    crps_gamma as crps_gamma,
    log_score_gamma as log_score_gamma,
)
from skyens.scores._kernel_score import (
    GaussianKernel as GaussianKernel,
    InverseMultiquadricKernel as InverseMultiquadricKernel,
    kernel_score as kernel_score,
)
from skyens.scores._laplace import (
    crps_laplace as crps_laplace,
    log_score_laplace as log_score_laplace,
)
from skyens.scores._logarithmic import (
    log_score_binary as log_score_binary,
    log_score_categorical as log_score_categorical,
)
from skyens.scores._logistic import (
    crps_logistic as crps_logistic,
    log_score_logistic as log_score_logistic,
)
from skyens.scores._lognormal import (
    crps_lognormal as crps_lognormal,
    log_score_lognormal as log_score_lognormal,
)
from skyens.scores._maps import (
    harmonic_weights as harmonic_weights,
    patches as patches,
)
from skyens.scores._mean_score import MeanScore as MeanScore
from skyens.scores._mean_statistics import (
    RMSE as RMSE,
    AnomalyCorrelation as AnomalyCorrelation,
    Bias as Bias,
)
from skyens.scores._member_stream import (
    MemberScores as MemberScores,
    MemberState as MemberState,
    MemberStream as MemberStream,
)
from skyens.scores._multivariate_normal import (
    log_score_multivariate_normal as log_score_multivariate_normal,
)
from skyens.scores._normal import (
    crps_normal as crps_normal,
    log_score_normal as log_score_normal,
)
from skyens.scores._normal_mixture import (
    crps_normal_mixture as crps_normal_mixture,
    log_score_normal_mixture as log_score_normal_mixture,
)
from skyens.scores._outliers import Outliers as Outliers, OutlierShares as OutlierShares
from skyens.scores._quantile import (
    interval_score as interval_score,
    quantile_score as quantile_score,
    weighted_interval_score as weighted_interval_score,
)
from skyens.scores._quantile_quantile import (
    QuantileQuantile as QuantileQuantile,
    Quantiles as Quantiles,
)
from skyens.scores._rank_histogram import RankHistogram as RankHistogram
from skyens.scores._ranked_probability import (
    ranked_probability_score as ranked_probability_score,
)
from skyens.scores._reliability import (
    Reliability as Reliability,
    ReliabilityTable as ReliabilityTable,
)
from skyens.scores._roc import ROC as ROC, ROCCurve as ROCCurve
from skyens.scores._seeps import (
    seeps as seeps,
    seeps_matrix as seeps_matrix,
)
from skyens.scores._significance import (
    DieboldMariano as DieboldMariano,
    benjamini_hochberg as benjamini_hochberg,
    benjamini_yekutieli as benjamini_yekutieli,
    diebold_mariano as diebold_mariano,
)
from skyens.scores._spectra import (
    Spectra as Spectra,
    SpectraByDegree as SpectraByDegree,
)
from skyens.scores._spread_skill import (
    SpreadAndSkill as SpreadAndSkill,
    SpreadSkill as SpreadSkill,
)
from skyens.scores._statistic import Statistic as Statistic, all_merge as all_merge
from skyens.scores._stream_statistics import (
    StreamStatistics as StreamStatistics,
    StreamSummary as StreamSummary,
)
from skyens.scores._student_t import (
    crps_student_t as crps_student_t,
    log_score_student_t as log_score_student_t,
)
from skyens.scores._sums import Sum as Sum
from skyens.scores._truncated_normal import (
    crps_truncated_normal as crps_truncated_normal,
    log_score_truncated_normal as log_score_truncated_normal,
)
from skyens.scores._variogram import variogram_score as variogram_score
from skyens.scores._vertically_rescaled_crps import (
    vertically_rescaled_crps as vertically_rescaled_crps,
)
from skyens.scores._weighted_crps import (
    outcome_weighted_crps as outcome_weighted_crps,
    threshold_weighted_crps as threshold_weighted_crps,
)
