"""Ensembles: perturb analyses, run many members, and find those that failed."""

from skyens.ensembles._perturb import HemisphericRMS as HemisphericRMS
from skyens.ensembles._perturb import breed as breed
from skyens.ensembles._perturb import centred as centred
from skyens.ensembles._perturb import failed_members as failed_members
from skyens.ensembles._rollout import rollout as rollout
