"""Diagrams: spectra, spread against skill, ranks."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Real

from skyens.plot._style import COLOURS, QUIET, TRUTH, WIDTH, finish, style, with_units

Numbers = jax.Array | np.ndarray


@style()
def spectra(
    degrees: Real[Numbers, " degree"],
    spectrum: Mapping[str, Real[Numbers, "..."]],
    *,
    truth: str | None = None,
    ax: Any = None,
    units: str = "",
    title: str = "",
) -> Any:
    """Draw power against total wavenumber, both logarithmic, and return the axes.

    Degree 0 has no place on a logarithmic axis and is left out, as is power of 0.

    Args:
        degrees: total wavenumbers.
        spectrum: by label, the power of each degree, `(degree,)`.
        truth: the label to be drawn in black, over the others.
        ax: axes; a new figure if left out.
        units: of the power, as in CF (`"m2"`).
        title: above the diagram.

    Raises:
        ValueError: a spectrum has another length than `degrees`, or `truth` is no
            label.
    """
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    degree = np.asarray(degrees)
    if truth is not None and truth not in spectrum:
        raise ValueError(f"`truth` must be one of {list(spectrum)}, got {truth!r}.")
    ax = _axes(ax)
    colours = iter(COLOURS * len(spectrum))
    for label, power in spectrum.items():
        power = _vector(f"spectrum[{label!r}]", power, degree.size, "degrees")
        shown = (degree > 0) & (power > 0)
        if label == truth:
            look = {"color": TRUTH, "linewidth": 2.2, "zorder": 3}
        else:
            look = {"color": next(colours)}
        ax.loglog(degree[shown], power[shown], label=label, **look)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("total wavenumber (degree)")
    ax.set_ylabel(with_units("power per degree", units))
    return _done(ax, title)


@style()
def spread_skill(
    lead_time: Real[Numbers, " lead_time"],
    spread: Mapping[str, Real[Numbers, "..."]],
    rmse: Mapping[str, Real[Numbers, "..."]],
    *,
    ax: Any = None,
    units: str = "",
    title: str = "",
) -> Any:
    """Draw spread (dashed) and error of the mean (solid) by lead time; return the axes.

    A reliable ensemble's two lines lie on each other.

    Args:
        lead_time: hours.
        spread: by ensemble, the root mean variance of members times
            `sqrt((M + 1) / M)`, `(lead_time,)`.
        rmse: by ensemble, the root mean square error of the ensemble's mean. One that
            has no spread (a control forecast) may be left out of `spread`.
        ax: axes; a new figure if left out.
        units: of both, as in CF.
        title: above the diagram.

    Raises:
        ValueError: an ensemble has spread but no error, or other lead times.
    """
    from matplotlib.lines import Line2D

    hours = np.asarray(lead_time, np.float64)
    if alone := [label for label in spread if label not in rmse]:
        raise ValueError(f"`rmse` must name each of `spread`, lacks {alone}.")
    ax = _axes(ax)
    for label, colour in zip(rmse, COLOURS * len(rmse), strict=False):
        error = _vector(f"rmse[{label!r}]", rmse[label], hours.size, "lead times")
        ax.plot(hours, error, color=colour, marker="o", label=label)
        if label in spread:
            width = _vector(
                f"spread[{label!r}]", spread[label], hours.size, "lead times"
            )
            ax.plot(hours, width, color=colour, marker="o", mfc="white", ls="--")
    ax.set_ylim(bottom=0)
    ax.set_xticks(hours)
    ax.set_xlabel("lead time (h)")
    ax.set_ylabel(with_units("error and spread", units))
    ax = _done(ax, title)
    lines = [
        Line2D([], [], color=QUIET, marker="o", label="error of the mean"),
        Line2D([], [], color=QUIET, marker="o", mfc="white", ls="--", label="spread"),
    ]
    handles = ax.get_legend_handles_labels()[0] + lines
    ax.legend(handles=handles)
    return ax


@style()
def rank_histogram(
    counts: Real[Numbers, " rank"],
    *,
    cases: float | int | None = None,
    ax: Any = None,
    title: str = "",
) -> Any:
    """Draw how often the truth had each rank among the members, and return the axes.

    Bars are relative to the expectation of a reliable ensemble, the line at 1. The band
    holds 95 percent of each bar if all `cases` are independent (normal approximation to
    the binomial distribution); neighbouring points of a field are not, so give the
    number of cases that are, where it is known.

    Args:
        counts: `(member + 1,)`, weighted or not.
        cases: the number of independent cases; the sum of `counts` if left out.
        ax: axes; a new figure if left out.
        title: above the diagram.

    Raises:
        ValueError: there are fewer than two ranks, nothing was counted, a count is
            negative or not finite, or `cases` is not positive.
    """
    count = np.asarray(counts, np.float64)
    if count.ndim != 1 or count.size < 2:
        raise ValueError(f"`counts` must have at least 2 ranks, got {count.shape}.")
    if not np.all(np.isfinite(count)) or np.any(count < 0) or count.sum() == 0:
        raise ValueError(
            "`counts` must be finite, not negative and not all 0, got values from "
            f"{count.min()} to {count.max()}."
        )
    cases = float(count.sum()) if cases is None else float(cases)
    if not cases > 0:
        raise ValueError(f"`cases` must be above 0, got {cases}.")
    ax = _axes(ax)
    rank = np.arange(1, count.size + 1)
    ax.bar(rank, count * count.size / count.sum(), width=0.9, color=COLOURS[5])
    # Standard deviation of a binomial frequency over its mean 1 / ranks, times 1.96.
    half = 1.96 * np.sqrt((count.size - 1) / cases)
    low = max(0.0, 1 - half)
    ax.axhspan(low, 1 + half, color=QUIET, alpha=0.25, lw=0, label="95 % of reliable")
    ax.axhline(1, color=TRUTH, linewidth=1.2, label="expected")
    ax.set_ylim(0, 1.25 * max(1 + half, count.max() * count.size / count.sum()))
    ax.set_xlim(0.4, count.size + 0.6)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("rank of the truth among the members")
    ax.set_ylabel("frequency / expected")
    return _done(ax, title, grid="y", columns=2, legend="upper center")


def _axes(ax: Any) -> Any:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(0.7 * WIDTH, 0.45 * WIDTH))[1] if ax is None else ax


def _vector(name: str, values: Any, size: int, of: str) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.shape != (size,):
        raise ValueError(f"`{name}` must have the {size} {of}, got {values.shape}.")
    return values


def _done(
    ax: Any, title: str, *, grid: str = "both", columns: int = 1, legend: str = "best"
) -> Any:
    finish(ax, grid=grid)
    # The best place among hundreds of bars takes seconds to find: say where.
    ax.legend(ncols=columns, loc=legend)
    if title:
        ax.set_title(title)
    return ax
