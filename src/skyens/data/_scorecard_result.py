"""From states to a dataset: names, dimensions, units, and NaN where nothing was."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_type_hints

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from skyens.data._tally import Index, Tally
from skyens.data._task import Task
from skyens.scores import Statistic

if TYPE_CHECKING:
    import xarray

_IN_FIELD_UNITS = {
    "RMSE", "Bias", "CRPS", "SpreadAndSkill.spread", "SpreadAndSkill.skill",
    "Quantiles.forecast", "Quantiles.truth", "Activities.members", "Activities.mean",
    "Activities.truth", "Best.distance",
}  # fmt: skip
_RATIOS = {
    "AnomalyCorrelation", "RankHistogram", "SpreadAndSkill.ratio", "ReliabilityTable",
    "ROCCurve", "ValueCurves", "OutlierShares", "ExceedanceRates",
    "Activities.members_ratio", "Activities.mean_ratio", "Best.frequency",
}  # fmt: skip

_TEXT = {
    "count": "number of points scored",
    "missing": "number of points without a truth or any member",
    "missing_members": "number of members missing at points scored",
}


@eqx.filter_jit
def _finalize(statistic, state):
    return statistic.finalize(state)


def result_of(
    tasks: Mapping[str, Task],
    tallies: Mapping[str, Tally],
    scores: Mapping[str, Statistic],
    named: bool,
) -> "xarray.Dataset":
    """Return the scores of all variables; `named` for the dimension `variable`."""
    import xarray

    parts = [_one(task, tallies[name], scores) for name, task in tasks.items()]
    units = [str(task.forecast.attrs.get("units", "")) for task in tasks.values()]
    if not named:
        return parts[0]
    names = xarray.Variable("variable", list(tasks))
    result = xarray.concat(
        parts, dim="variable", combine_attrs="drop_conflicts", join="exact"
    )
    result = result.assign_coords(variable=names, units=("variable", units))
    order = lambda dims: sorted(dims, key=lambda dim: dim != "variable")
    result = result.transpose(*order(result.dims), missing_dims="ignore")
    return result


def stack_states(task: Task, states: Mapping[str, tuple[Index, Any]]) -> Any:
    """Return one state with the axes of the result in front of all its leaves.

    Raises:
        ValueError: the leaves of a state do not lead with the axes that it keeps.
    """
    axes = list(task.axes)
    order = [axes.index(dim) for dim in task.order]
    kept = len(task.kept) + (task.regions is not None)

    def stack(*leaves):
        if any(leaf.ndim < kept for leaf in leaves):
            raise ValueError(
                "`return_states` needs statistics whose states lead with the axes that "
                f"they keep; one has a leaf of shape {leaves[0].shape}."
            )
        whole = np.zeros(task.shape + leaves[0].shape[kept:], leaves[0].dtype)
        for (index, _), leaf in zip(states.values(), leaves, strict=True):
            whole[index] = leaf
        rest = range(len(axes), whole.ndim)
        return jnp.asarray(np.transpose(whole, (*order, *rest)))

    return jax.tree.map(stack, *[state for _, state in states.values()])


def _one(task: Task, tally: Tally, scores: Mapping[str, Statistic]) -> "xarray.Dataset":
    """Return the scores of one variable."""
    import xarray

    axes = task.axes
    data: dict[str, xarray.DataArray] = {}
    used: dict[str, Any] = {}  # sizes and labels of axes of the scores' own
    coordinates = {dim: values for dim, values in axes.items() if values is not None}
    for score, statistic in scores.items():
        whole: dict[str, np.ndarray] = {}
        fields: dict[str, tuple[str, Any]] = {}
        for index, state in tally.states[score].values():
            value = _finalize(statistic, state)
            nothing = _nothing(state, tally.counts["count"][index])
            hint = get_type_hints(type(statistic).finalize).get("return")
            for name, leaf, kind, shape in _leaves(value, hint, type(statistic)):
                leaf = np.asarray(leaf)
                if leaf.dtype.kind == "f":
                    empty = np.expand_dims(
                        nothing, tuple(range(nothing.ndim, leaf.ndim))
                    )
                    leaf = np.where(empty, np.array(np.nan, leaf.dtype), leaf)
                if name not in whole:
                    rest = leaf.shape[nothing.ndim :]
                    whole[name] = np.zeros(task.shape + rest, leaf.dtype)
                    fields[name] = kind, shape
                whole[name][index] = leaf
        for name, values in whole.items():
            kind, shape = fields[name]
            full = f"{score}_{name}" if name else score
            own = _own_dims(full, shape, values.ndim - len(axes))
            dims = []
            for dim, size in zip(own, values.shape[len(axes) :], strict=True):
                label = _coordinate(statistic, dim, size)
                mark = size, None if label is None else tuple(label.tolist())
                # Levels of quantiles are no levels of pressure, and so on.
                taken = dim in ("variable", *task.forecast.dims, *axes)
                dim = f"{score}_{dim}" if taken or used.get(dim, mark) != mark else dim
                used[dim] = mark
                dims.append(dim)
                if label is not None:
                    coordinates[dim] = label
            array = xarray.DataArray(values, dims=(*axes, *dims))
            attributes = {
                "long_name": full.replace("_", " "),
                "statistic": type(statistic).__name__,
            }
            if (units := _units(kind, task)) is not None:
                attributes["units"] = units
            data[full] = array.transpose(*task.order, *dims).assign_attrs(attributes)
    for name, values in tally.counts.items():
        array = xarray.DataArray(values, dims=tuple(axes)).transpose(*task.order)
        data[name] = array.assign_attrs(long_name=_TEXT[name], units="1")
    result = xarray.Dataset(data, {k: (k, v) for k, v in coordinates.items()})
    for dim in axes:
        if dim in task.forecast.coords:
            result[dim].attrs |= task.forecast[dim].attrs
    return result


def _nothing(state: Any, count: Any) -> np.ndarray:
    """Return where a state has seen nothing that is valid."""
    nothing = np.asarray(np.asarray(count) == 0)
    weight = state.get("weight") if isinstance(state, dict) else None
    value = getattr(weight, "value", weight)
    if value is not None and np.shape(value) == nothing.shape:
        nothing = np.asarray(nothing | (np.asarray(value) == 0))
    return nothing


def _leaves(
    value: Any, hint: Any, kind: type, name: str = ""
) -> Iterator[tuple[str, Any, str, str]]:
    """Yield name, array, kind and shape annotation of each part of a result."""
    if isinstance(value, dict):
        parts, hints = value, {}
    elif hasattr(value, "_asdict"):
        parts, hints = value._asdict(), get_type_hints(type(value))
    else:
        owner = f"{kind.__name__}.{name}" if name else kind.__name__
        yield name, value, owner, str(getattr(hint, "dim_str", ""))
        return
    for part, one in parts.items():
        joined = f"{name}_{part}" if name else part
        yield from _leaves(one, hints.get(part), type(value), joined)


def _own_dims(name: str, shape: str, count: int) -> tuple[str, ...]:
    """Return the names of axes of a result's own, from its annotation if it has one."""
    words = shape.split()
    named = words[words.index("...") + 1 :] if "..." in words else []
    if len(named) == count and all(word.isidentifier() for word in named):
        return tuple(named)
    return tuple(f"{name}_{i}" for i in range(count))


def _coordinate(statistic: Any, dim: str, size: int) -> np.ndarray | None:
    """Return the settings of a statistic that label an axis: its thresholds."""
    owners = [statistic, *getattr(statistic, "__dict__", {}).values()]
    for owner in owners:
        for name in (dim, f"{dim}s", f"{dim[:-1]}ies"):
            values = getattr(owner, name, None)
            if isinstance(values, tuple | np.ndarray) and np.shape(values) == (size,):
                return np.asarray(values)
    return None


def _units(kind: str, task: Task) -> str | None:
    """Return the units of a result, where they are known."""
    if kind in _RATIOS or kind.split(".")[0] in _RATIOS:
        return "1"
    if kind in _IN_FIELD_UNITS:
        return task.forecast.attrs.get("units")
    return None
