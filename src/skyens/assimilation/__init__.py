"""Conditioning states on observations: filters, their pieces, and cycling.

A method is called `(background, observation, *, key=None)` and returns `(analysis,
info)`. The background is any pytree of arrays with a leading member axis; the
observation is a `skyens.observations.Observation`.
"""

from skyens.assimilation._cycle import Cycle as Cycle, cycle as cycle
from skyens.assimilation._ensemble import Info as Info
from skyens.assimilation._etkf import ETKF as ETKF, gram as gram, svd as svd
from skyens.assimilation._inflation import (
    Inflated as Inflated,
    RelaxToPriorSpread as RelaxToPriorSpread,
    ensemble_spread as ensemble_spread,
)
from skyens.assimilation._kalman import kalman_update as kalman_update
from skyens.assimilation._letkf import LETKF as LETKF
from skyens.assimilation._localisation import (
    Localisation as Localisation,
    gaspari_cohn as gaspari_cohn,
)
