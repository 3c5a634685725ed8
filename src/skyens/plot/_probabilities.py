"""Diagrams of probabilities of an event: reliability, discrimination, value."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Real

from skyens.plot._frame import Numbers, diagram_axes, done, vector
from skyens.plot._style import COLOURS, QUIET, TEXT, TRUTH, finish, style

_DRAWS = 4000  # of the bins of a reliable forecast
_BAND = (0.05, 0.95)


@style()
def reliability(
    tables: Mapping[str, tuple[Real[Numbers, "..."], ...]],
    *,
    cases: float | int | None = None,
    climate: float | None = None,
    ax: Any = None,
    title: str = "",
) -> Any:
    """Draw how often an event came against how probable it was forecast to be.

    Grey bars hold 90 percent of the frequencies that reliable forecasts would have in
    as many independent cases (Broecker & Smith): a point outside of its bar is hardly
    reliable. Points in the shaded part add to the Brier skill over the climate. The
    inset shows how often each probability was forecast.

    Args:
        tables: by label `(probability, frequency, count)`, each `(bin,)`: what
            `scores.Reliability` gives, of one threshold. Fields after the third are
            not looked at; bins without cases are not drawn.
        cases: the number of independent cases in all; the sum of the counts if left
            out. Neighbouring points of a field are not independent.
        climate: the frequency of the event; that of the first table if left out.
        ax: axes; a new figure if left out.
        title: above the diagram.

    Raises:
        ValueError: a table has not three vectors of one length, values outside [0, 1]
            or no case, or `cases` is not positive.

    Source: Broecker & Smith (2007), Wea. Forecasting 22, 651-661.
    """
    if not tables:
        raise ValueError("`tables` must hold at least one table, got none.")
    if cases is not None and not cases > 0:
        raise ValueError(f"`cases` must be above 0, got {cases}.")
    checked = {label: _table(label, table) for label, table in tables.items()}
    if climate is None:
        _, frequency, count = next(iter(checked.values()))
        climate = float(np.average(frequency, weights=count))
    ax = diagram_axes(ax, square=True)
    _skill(ax, climate)
    inset = _inset(ax)
    for i, (label, (probability, frequency, count)) in enumerate(checked.items()):
        colour = COLOURS[i % len(COLOURS)]
        number = np.rint(count if cases is None else count * cases / count.sum())
        low, high = _reliable(probability, number.astype(np.int64))
        ax.vlines(
            probability,
            low,
            high,
            color=QUIET,
            alpha=0.35,
            linewidth=5,
            label=None if i else "90 % of reliable",
        )
        ax.plot(probability, frequency, color=colour, marker="o", label=label)
        inset.plot(
            probability, count / count.sum(), color=colour, marker=".", linewidth=1
        )
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    ax.set_xlabel("forecast probability")
    ax.set_ylabel("observed frequency")
    inset.set(xlim=(-0.02, 1.02), ylim=(0, None), xticks=[0, 0.5, 1])
    ax = done(ax, title)
    # Curves may run anywhere inside: the legend stands beside.
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax


@style()
def roc(
    curves: Mapping[str, tuple[Any, ...]],
    *,
    ax: Any = None,
    title: str = "",
) -> Any:
    """Draw hit rate against false alarm rate; the area is in the legend.

    Args:
        curves: by label `(hit_rate, false_alarm_rate, area)`, two `(warning,)` and a
            number: what `scores.ROC` gives, of one threshold.
        ax: axes; a new figure if left out.
        title: above the diagram.

    Raises:
        ValueError: a curve has not two vectors of one length with values in [0, 1] and
            one area.
    """
    if not curves:
        raise ValueError("`curves` must hold at least one curve, got none.")
    ax = diagram_axes(ax, square=True)
    ax.plot([0, 1], [0, 1], color=QUIET, linewidth=1, ls="--", label="no skill (0.50)")
    for label, colour in zip(curves, COLOURS * len(curves), strict=False):
        hits, alarms, area = curves[label][:3]
        if np.ndim(area):
            raise ValueError(
                f"`curves[{label!r}]` must be of one threshold, got areas of shape "
                f"{np.shape(area)}."
            )
        hits, alarms = _shares(f"curves[{label!r}]", hits, alarms)
        text = f"{label} ({float(area):.2f})"
        ax.plot(alarms, hits, color=colour, marker="o", markersize=4, label=text)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    ax.set_xlabel("false alarm rate")
    ax.set_ylabel("hit rate")
    ax = done(ax, title, legend="lower right")
    ax.get_legend().set_title("area under the curve", {"size": TEXT - 0.5})
    return ax


@style()
def economic_value(
    cost_loss: Real[Numbers, " cost_loss"],
    value: Mapping[str, Real[Numbers, "..."]],
    *,
    ax: Any = None,
    title: str = "",
) -> Any:
    """Draw what forecasts are worth to users with different ratios of cost to loss.

    1 is a perfect forecast, 0 the climate; users for whom it is below do not use it.

    Args:
        cost_loss: above 0 and below 1, rising.
        value: by label, `(cost_loss,)`: the `envelope` that `scores.EconomicValue`
            gives, or the `value` of one number of members.
        ax: axes; a new figure if left out.
        title: above the diagram.

    Raises:
        ValueError: a value has other ratios, or ratios are outside (0, 1) or do not
            rise.
    """
    from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullFormatter

    ratios = np.asarray(cost_loss, np.float64)
    inside = (ratios > 0) & (ratios < 1)
    if ratios.ndim != 1 or not inside.all() or (np.diff(ratios) <= 0).any():
        raise ValueError(
            f"`cost_loss` must rise between 0 and 1, both left out, got {ratios}."
        )
    ax = diagram_axes(ax)
    for label, colour in zip(value, COLOURS * len(value), strict=False):
        worth = vector(f"value[{label!r}]", value[label], ratios.size, "ratios")
        ax.plot(ratios, worth, color=colour, label=label)
    ax.set_xscale("log")
    ticks = [t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1) if t >= ratios[0] / 2]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set(xlim=(ratios[0], 1), ylim=(0, 1))
    ax.set_xlabel("cost / loss")
    ax.set_ylabel("relative economic value")
    return done(ax, title, legend="upper right")


def _table(
    label: str, table: tuple[Any, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return probability, frequency and count of the bins that have any case."""
    name = f"tables[{label!r}]"
    if len(table) < 3:
        raise ValueError(f"`{name}` must be (probability, frequency, count).")
    probability, frequency = _shares(name, table[0], table[1])
    count = vector(f"{name}[2]", table[2], probability.size, "bins")
    if not np.isfinite(count).all() or (count < 0).any() or not count.any():
        raise ValueError(f"`{name}[2]` must be finite, not negative and not all 0.")
    seen = count > 0
    return probability[seen], frequency[seen], count[seen]


def _shares(name: str, first: Any, second: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return two vectors of one length with values in [0, 1]."""
    one = np.asarray(first, np.float64)
    if one.ndim != 1:
        raise ValueError(
            f"`{name}[0]` must be a vector (select one threshold), got {one.shape}."
        )
    other = vector(f"{name}[1]", second, one.size, "values of the first")
    both = np.stack([one, other])
    if not np.all((both >= -1e-6) & (both <= 1 + 1e-6)):
        raise ValueError(
            f"`{name}` must lie in [0, 1], got values from {both.min()} to "
            f"{both.max()}."
        )
    return one, other


def _reliable(
    probability: np.ndarray, number: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the band of the frequencies in bins of reliable forecasts."""
    draws = np.random.default_rng(0)
    chance = np.clip(probability, 0, 1)
    count = draws.binomial(number, chance, (_DRAWS, probability.size))
    low, high = np.quantile(count, _BAND, axis=0) / np.maximum(number, 1)
    return low, high


def _inset(ax: Any) -> Any:
    """Return axes in the upper left corner, on white, for the share of forecasts."""
    from matplotlib.patches import Rectangle

    corner = {"transform": ax.transAxes, "facecolor": "white", "zorder": 3}
    ax.add_patch(Rectangle((0.005, 0.635), 0.43, 0.36, **corner))
    inset = ax.inset_axes((0.09, 0.69, 0.32, 0.25), zorder=4)
    finish(inset)
    inset.tick_params(labelsize=TEXT - 2)
    inset.set_title("share of forecasts", fontsize=TEXT - 2, fontweight="normal")
    return inset


def _skill(ax: Any, climate: float) -> None:
    """Draw the lines of perfect reliability, no resolution and no skill."""
    half = climate / 2  # as far from the diagonal as from the climate
    look: dict[str, Any] = {"color": QUIET, "alpha": 0.1, "lw": 0}
    ax.fill_between([0, climate], [half, climate], 0, **look)
    ax.fill_between([climate, 1], [climate, half + 0.5], 1, **look)
    ax.plot([0, 1], [0, 1], color=TRUTH, linewidth=1.2, label="reliable")
    look = {"color": QUIET, "linewidth": 0.9}
    ax.plot([0, 1], [half, half + 0.5], ls=":", label="no skill", **look)
    ax.axhline(climate, ls="--", label="climate", **look)
    ax.axvline(climate, ls="--", **look)
