"""Proper scores and verification statistics.

A score is a pure function of an ensemble and a truth, lower is better, differentiable,
point by point: `crps`, and `crps_normal` for a normal distribution. Training losses are
scores after linear maps. A statistic (`RMSE`, `Bias`, `AnomalyCorrelation`,
`SpreadSkill`, `RankHistogram`, `CRPS`) adds up what is needed of any number of
forecasts, as the `Statistic` protocol describes: its states are sums that merge in any
order, over time in `lax.scan`, and over devices by `all_merge`.
"""

from skyens.scores._crps import crps as crps
from skyens.scores._crps_statistic import CRPS as CRPS
from skyens.scores._mean_statistics import (
    RMSE as RMSE,
    AnomalyCorrelation as AnomalyCorrelation,
    Bias as Bias,
)
from skyens.scores._normal import crps_normal as crps_normal
from skyens.scores._rank_histogram import RankHistogram as RankHistogram
from skyens.scores._spread_skill import (
    SpreadAndSkill as SpreadAndSkill,
    SpreadSkill as SpreadSkill,
)
from skyens.scores._statistic import Statistic as Statistic, all_merge as all_merge
from skyens.scores._sums import Sum as Sum
