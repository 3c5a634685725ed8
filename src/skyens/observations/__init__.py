"""What instruments see: values, operators that predict them, and their errors.

One `Observation` says what was measured, how a state would show it and how well it is
known; every filter, variational method and diffusion posterior takes it. Missing data
are masks of static shape. `stack` makes one observation of several.

Errors: `Diagonal`, `Dense` and `Block` are Gaussian; `StudentT` and `Huber` robust;
`Heteroscedastic` depends on what is predicted, `Proportional` in a common way.

Operators: `Index` and `Linear` see entries and sums of an array. `Interpolate` and
`SpectralInterpolate` see fields at places of the sphere, `LogPressure` columns at
pressures, `Sounding` both at once; `CoarseGrain` sees means over the cells of a coarser
grid. `WindSpeed` and `WindDirection` see a wind as anemometers do,
`BrightnessTemperature` a column as a satellite does, by `weighting_functions`. `Biased`
adds a bias with parameters, `LinearBias` say, and `Chain` sees through several.

Quality control takes an observation and returns it with the wrong entries rejected:
`range_check`, `gross_error_check` against an ensemble, `buddy_check` against its
neighbours, `reject_duplicates`, `thin` and `thin_to_grid`. `superob` averages cells.
"""

from skyens.observations._bias import Biased as Biased, LinearBias as LinearBias
from skyens.observations._block import Block as Block
from skyens.observations._chain import Chain as Chain
from skyens.observations._coarse import CoarseGrain as CoarseGrain
from skyens.observations._errors import (
    Dense as Dense,
    Diagonal as Diagonal,
    Error as Error,
)
from skyens.observations._heteroscedastic import (
    Heteroscedastic as Heteroscedastic,
    Proportional as Proportional,
)
from skyens.observations._observation import Observation as Observation
from skyens.observations._operators import (
    Index as Index,
    Interpolate as Interpolate,
    Linear as Linear,
)
from skyens.observations._quality import (
    buddy_check as buddy_check,
    gross_error_check as gross_error_check,
    range_check as range_check,
)
from skyens.observations._radiance import (
    BrightnessTemperature as BrightnessTemperature,
    weighting_functions as weighting_functions,
)
from skyens.observations._robust import Huber as Huber, StudentT as StudentT
from skyens.observations._spectral import SpectralInterpolate as SpectralInterpolate
from skyens.observations._stack import stack as stack
from skyens.observations._superob import superob as superob
from skyens.observations._thin import (
    reject_duplicates as reject_duplicates,
    thin as thin,
    thin_to_grid as thin_to_grid,
)
from skyens.observations._vertical import (
    LogPressure as LogPressure,
    Sounding as Sounding,
)
from skyens.observations._wind import (
    WindDirection as WindDirection,
    WindSpeed as WindSpeed,
)
