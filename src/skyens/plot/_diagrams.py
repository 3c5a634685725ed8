"""Diagrams: spectra, spread against skill, ranks, quantiles."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Real

from skyens.plot._frame import Numbers, diagram_axes, done, vector
from skyens.plot._style import COLOURS, QUIET, TRUTH, style, with_units


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
    ax = diagram_axes(ax)
    colours = iter(COLOURS * len(spectrum))
    for label, power in spectrum.items():
        power = vector(f"spectrum[{label!r}]", power, degree.size, "degrees")
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
    return done(ax, title)


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
    ax = diagram_axes(ax)
    for label, colour in zip(rmse, COLOURS * len(rmse), strict=False):
        error = vector(f"rmse[{label!r}]", rmse[label], hours.size, "lead times")
        ax.plot(hours, error, color=colour, marker="o", label=label)
        if label in spread:
            width = vector(
                f"spread[{label!r}]", spread[label], hours.size, "lead times"
            )
            ax.plot(hours, width, color=colour, marker="o", mfc="white", ls="--")
    ax.set_ylim(bottom=0)
    ax.set_xticks(hours)
    ax.set_xlabel("lead time (h)")
    ax.set_ylabel(with_units("error and spread", units))
    ax = done(ax, title)
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
    ax = diagram_axes(ax)
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
    return done(ax, title, grid="y", columns=2, legend="upper center")


@style()
def quantile_quantile(
    quantiles: Mapping[str, tuple[Real[Numbers, "..."], Real[Numbers, "..."]]],
    *,
    ax: Any = None,
    units: str = "",
    title: str = "",
) -> Any:
    """Draw quantiles of forecasts against those of the truth, and return the axes.

    On the diagonal, forecasts have the climate of the truth.

    Args:
        quantiles: by label `(forecast, truth)`, each `(level,)`: what
            `scores.QuantileQuantile` gives.
        ax: axes; a new figure if left out.
        units: of both, as in CF.
        title: above the diagram.

    Raises:
        ValueError: there are none, or two are not vectors of one length, or not finite.
    """
    if not quantiles:
        raise ValueError("`quantiles` must hold at least one pair, got none.")
    ax = diagram_axes(ax, square=True)
    ends: list[float] = []
    for label, colour in zip(quantiles, COLOURS * len(quantiles), strict=False):
        truth = np.asarray(quantiles[label][1], np.float64)
        if truth.ndim != 1 or truth.size == 0:
            raise ValueError(
                f"`quantiles[{label!r}]` must be two vectors, got {truth.shape}."
            )
        name = f"quantiles[{label!r}]"
        forecast = vector(name, quantiles[label][0], truth.size, "quantiles of truth")
        ends += [truth.min(), truth.max(), forecast.min(), forecast.max()]
        if not np.isfinite(ends).all():
            raise ValueError(f"`{name}` must be finite.")
        ax.plot(truth, forecast, color=colour, marker="o", markersize=4, label=label)
    margin = 0.03 * (max(ends) - min(ends)) or 0.5
    limits = min(ends) - margin, max(ends) + margin
    ax.plot(limits, limits, color=TRUTH, linewidth=1.2, label="the same climate")
    ax.set(xlim=limits, ylim=limits, aspect="equal")
    ax.set_xlabel(with_units("quantiles of the truth", units))
    ax.set_ylabel(with_units("quantiles of the forecasts", units))
    return done(ax, title, legend="lower right")
