"""Forecasts as datasets: who, when and where, as the CF conventions say it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Shaped

from skyens.data._fields import to_xarray
from skyens.data._names import COORDINATE_ATTRIBUTES
from skyens.sphere import Grid

if TYPE_CHECKING:
    import xarray


def forecast_dataset(
    fields: Mapping[str, Shaped[jax.Array | np.ndarray, "... latitude longitude"]],
    grid: Grid,
    *,
    start: Any,
    lead_time: Any,
    member: Any = None,
    level: float | int | None = None,
    units: Mapping[str, str] | None = None,
    attributes: Mapping[str, str] | None = None,
) -> "xarray.Dataset":
    """Assemble the fields of one forecast as a CF dataset.

    Its coordinates are `member`, `lead_time`, `latitude`, `longitude`, `valid_time`
    (along `lead_time`) and the scalars `forecast_reference_time` and `level`. NaN may
    stay: it marks members that failed.

    Args:
        fields: by variable name, each `(member, lead_time, latitude, longitude)`, or
            `(lead_time, latitude, longitude)` for what all members share (a mean).
        grid: the grid of the last two axes.
        start: the time at which the forecast starts, UTC, as `numpy.datetime64` takes
            it (`"2017-01-01T12"`).
        lead_time: times since the start, `numpy.timedelta64`, `(lead_time,)`, rising.
        member: numbers of the members; counted from 0 if left out.
        level: pressure in hPa, if all fields lie on one.
        units: CF units by variable name, where the name does not tell them.
        attributes: global attributes, such as `title`, `source` and `comment`.

    Raises:
        ValueError: the sizes of fields and coordinates do not agree, lead times are not
            of `timedelta64`, finite and rising, or units are unknown.
    """
    import xarray

    lead = np.atleast_1d(np.asarray(lead_time))
    if lead.dtype.kind != "m" or lead.ndim != 1:
        raise ValueError(
            "`lead_time` must be a vector of numpy.timedelta64 (hours are "
            f"`hours * np.timedelta64(1, 'h')`), got {lead.dtype} {lead.shape}."
        )
    if np.isnat(lead).any() or not np.all(np.diff(lead) > np.timedelta64(0)):
        raise ValueError(f"`lead_time` must rise from step to step, got {lead}.")
    lead = lead.astype("timedelta64[ns]")
    reference = np.datetime64(start).astype("datetime64[ns]")
    if np.isnat(reference):
        raise ValueError(f"`start` must be a time, got {start!r}.")
    shapes = {name: tuple(field.shape) for name, field in fields.items()}
    members = {shape[0] for shape in shapes.values() if len(shape) == 4}
    if not fields or len(members) > 1 or {len(s) for s in shapes.values()} - {3, 4}:
        raise ValueError(
            "`fields` must hold at least one field, all ([member,] lead_time, latitude,"
            f" longitude) and with as many members, got {shapes}."
        )
    if member is None and members:
        member = np.arange(members.pop())
    scalar = {} if level is None else {"level": float(level)}
    variables = {}
    for name, field in fields.items():
        axes = {"member": member} if field.ndim == 4 else {}
        variables[name] = to_xarray(
            field,
            grid,
            axes | {"lead_time": lead} | scalar,
            name=name,
            units=(units or {}).get(name),
        )
    dataset = xarray.Dataset(variables).assign_coords(
        forecast_reference_time=reference, valid_time=("lead_time", reference + lead)
    )
    for name in ("forecast_reference_time", "valid_time"):
        dataset[name].attrs |= COORDINATE_ATTRIBUTES[name]
    return dataset.assign_attrs({"Conventions": "CF-1.11", **(attributes or {})})
