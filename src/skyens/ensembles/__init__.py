"""Ensembles: perturb analyses, run many members, and find those that failed."""

from skyens.ensembles._perturb import (
    HemisphericRMS as HemisphericRMS,
    breed as breed,
    centred as centred,
    failed_members as failed_members,
)
from skyens.ensembles._rollout import rollout as rollout
