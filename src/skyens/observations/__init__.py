"""What instruments see: values, operators that predict them, and their errors.

One `Observation` says what was measured, how a state would show it and how well it is
known; every filter, variational method and diffusion posterior takes it. Missing data
are masks of static shape.
"""

from skyens.observations._errors import (
    Dense as Dense,
    Diagonal as Diagonal,
    Error as Error,
)
from skyens.observations._observation import Observation as Observation
from skyens.observations._operators import (
    Index as Index,
    Interpolate as Interpolate,
    Linear as Linear,
)
