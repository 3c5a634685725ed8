"""Normalisation: the mean and standard deviation of each channel of a dataset."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from skyens.data._fields import channel_of, check_finite, grid_of
from skyens.nn import Channels, Normaliser

if TYPE_CHECKING:
    import xarray


def fit_normaliser(
    dataset: "xarray.Dataset", channels: Channels, *, keep: Sequence[str] = ()
) -> Normaliser:
    """Return the normaliser that gives each channel mean 0 and standard deviation 1.

    Rows count by the area they stand for (the grid's quadrature weights), so that the
    poles do not count too much; all else counts equally.

    Args:
        dataset: holds the variables that `channels` names (`geopotential`, or
            `geopotential_500` for one value of `level`), finite, on a known grid.
        channels: names and units, in the order of the channel axis.
        keep: dimensions along which statistics are kept apart: `()` for one number per
            channel, `("latitude",)` or `("latitude", "longitude")`.

    Raises:
        ValueError: a variable is missing, has other units, has values that are not
            finite, or does not vary; or `keep` is none of the three.
    """
    keep = tuple(keep)
    if keep not in ((), ("latitude",), ("latitude", "longitude")):
        raise ValueError(
            "`keep` must be (), ('latitude',) or ('latitude', 'longitude'), got "
            f"{keep}."
        )
    import xarray

    weights = xarray.DataArray(grid_of(dataset).weights, dims="latitude")
    means, stds = [], []
    for name, units in zip(channels.names, channels.units, strict=True):
        field = channel_of(dataset, name, units)
        check_finite(field)
        # Sums of many float32 geopotentials would lose the digits that vary.
        field = field.astype(np.float64)
        others = [dim for dim in field.dims if dim not in keep]
        weighted = field.weighted(weights)
        mean = weighted.mean(others).transpose(*keep).values
        std = weighted.std(others).transpose(*keep).values
        # What is below this is the rounding of the mean, not a variation.
        if constant := int(np.sum(std <= 1e-12 * np.abs(mean))):
            raise ValueError(
                f"`{name}` cannot be normalised: {constant} of {std.size} standard "
                "deviations are 0."
            )
        means.append(mean)
        stds.append(std)
    return Normaliser(np.stack(means), np.stack(stds))
