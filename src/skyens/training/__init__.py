"""Fit parameters: what is trained, one pure update, and checkpoints.

`make_step` turns a loss and an Optax optimiser into a pure update of a `TrainState`;
the loop around it is yours. `trainable` is the one filter of what is trained. `save`
and `load` keep a state on disk so that the run resumes exactly.
"""

from skyens.training._checkpoint import (
    Checkpoint as Checkpoint,
    load as load,
    save as save,
)
from skyens.training._progress import progress as progress
from skyens.training._step import (
    Metrics as Metrics,
    TrainState as TrainState,
    ema_model as ema_model,
    make_step as make_step,
    scan_steps as scan_steps,
)
from skyens.training._trainable import trainable as trainable
