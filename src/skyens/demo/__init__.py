"""The first forecast: from real analyses to a verified ensemble, on a laptop.

`python -m skyens.demo` runs it; `tutorials/01_first_forecast.py` tells it step by step
with the same functions.
"""

import os

# The local filter solves thousands of eigenproblems of a hundred rows. Threads inside
# each cost a hundred times what they gain; this must be said before LAPACK is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from skyens.demo._learn import (
    build_step as build_step,
    initial_training as initial_training,
    train as train,
)
from skyens.demo._members import (
    assimilate as assimilate,
    at_leads as at_leads,
    dressed_persistence as dressed_persistence,
    forecast as forecast,
    starting_members as starting_members,
)
from skyens.demo._pictures import draw as draw
from skyens.demo._run import Settings as Settings, run as run
from skyens.demo._verify import (
    REGIONS as REGIONS,
    aims as aims,
    ranks as ranks,
    scorecard as scorecard,
)
from skyens.demo._world import (
    LEADS as LEADS,
    Analyses as Analyses,
    first_error as first_error,
    fit_model_error as fit_model_error,
    open_analyses as open_analyses,
    physics as physics,
)
