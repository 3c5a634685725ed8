"""The edge to files and xarray: samples, labelled fields, scorecards, stores.

Fields enter and leave by the names of their dimensions, and nothing is ever aligned,
filled or reordered silently: what does not fit is an error that says where. The samples
(`open_sample`) are small, real and shipped with the package. Reading them needs netCDF4
and writing stores needs zarr: `pip install "skyens[io]"`.
"""

from skyens.data._fields import (
    check_coordinates as check_coordinates,
    check_finite as check_finite,
    from_xarray as from_xarray,
    grid_of as grid_of,
    to_arrays as to_arrays,
    to_dataset as to_dataset,
    to_xarray as to_xarray,
)
from skyens.data._forecast import forecast_dataset as forecast_dataset
from skyens.data._names import conventional_names as conventional_names
from skyens.data._normalise import fit_normaliser as fit_normaliser
from skyens.data._samples import (
    open_sample as open_sample,
    station_positions as station_positions,
)
from skyens.data._scorecard import (
    scorecard as scorecard,
    scorecard_states as scorecard_states,
)
from skyens.data._stations import (
    station_observation as station_observation,
    station_windows as station_windows,
)
from skyens.data._store import check_output as check_output, write_zarr as write_zarr
