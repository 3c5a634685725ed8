"""The scorecard: a coloured table of how much better or worse one system is."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Real

from skyens.plot._canvas import even_levels
from skyens.plot._frame import Numbers
from skyens.plot._style import DIFFERENCE, QUIET, TEXT, WIDTH, style

_ROW = 0.27  # inches
_MOST = 24  # columns in which numbers can be read


@style()
def scorecard(
    score: Real[Numbers, "..."],
    reference: Real[Numbers, "..."],
    *,
    rows: Sequence[str | Sequence[str]],
    lead_time: Real[Numbers, "..."] | Sequence[str],
    significant: Bool[Numbers, "..."] | None = None,
    higher_is_better: bool = False,
    largest: float | int | None = None,
    names: tuple[str, str] = ("forecast", "reference"),
    ax: Any = None,
    title: str = "",
) -> Any:
    """Draw a table of the change of a score from a reference, in percent; return axes.

    Blue is better and red is worse, whichever way the score runs; the sign of a number
    is that of the change. Bold numbers in a frame are significant.

    Args:
        score: of the system that is judged, `(row, lead_time)`: of a dataset,
            `result["crps"].stack(row=("variable", "level")).T.values`.
        reference: of the system it is compared with.
        rows: a label for each row, or several, from the outer to the inner
            (`("temperature", "850 hPa", "tropics")`); one that is the same as above is
            written once, and a line parts the rows where the first changes.
        lead_time: of the columns, hours, or text.
        significant: which changes are significant, `(row, lead_time)`.
        higher_is_better: as for correlations.
        largest: percent at which colours end; that of the largest change if left out.
        names: of both systems, for the text below.
        ax: axes; a new figure, as high as there are rows, if left out.
        title: above the table.

    Raises:
        ValueError: shapes or labels do not fit, no change is finite, or `largest` is
            not positive.
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import BoundaryNorm

    judged, other = (np.asarray(x, np.float64) for x in (score, reference))
    if judged.ndim != 2 or judged.shape != other.shape:
        raise ValueError(
            "`score` and `reference` must be (row, lead_time) and of one shape, got "
            f"{judged.shape} and {other.shape}."
        )
    labels = _labels(rows, judged.shape[0])
    columns = _columns(lead_time, judged.shape[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        change = 100 * (judged - other) / np.abs(other)
    change[~np.isfinite(change)] = np.nan
    if np.isnan(change).all():
        raise ValueError("`score` differs from `reference` nowhere by a finite part.")
    if largest is None:
        largest = float(np.nanmax(np.abs(change)))
    elif not largest > 0:
        raise ValueError(f"`largest` must be above 0 percent, got {largest}.")
    if ax is None:
        height = _ROW * judged.shape[0] + 1.5 + (0.3 if title else 0)
        ax = plt.subplots(figsize=(WIDTH, height))[1]
    levels = even_levels(float(largest))
    beyond = np.nanmax(np.abs(change)) > levels[-1]
    # Reversed for scores that shall be high: blue stays the better.
    colours = plt.get_cmap(DIFFERENCE[:-2] if higher_is_better else DIFFERENCE)
    norm = BoundaryNorm(levels, colours.N, extend="both" if beyond else "neither")
    mesh = ax.pcolormesh(
        change, cmap=colours, norm=norm, edgecolor="white", linewidth=1
    )
    ax.set_facecolor("#eeeeee")  # what is not known
    cells = colours(norm(np.ma.masked_invalid(change)))[..., :3]
    # Perceived lightness; what is written must stand out.
    ink = np.where(cells @ np.array([0.299, 0.587, 0.114]) < 0.5, "white", "black")
    ink[np.isnan(change)] = "black"
    sure = np.zeros(change.shape, bool)
    if significant is not None:
        sure = np.asarray(significant)
        if sure.shape != change.shape:
            raise ValueError(
                f"`significant` must have the shape of `score`, {change.shape}, got "
                f"{sure.shape}."
            )
        sure = sure & np.isfinite(change)
    if judged.shape[1] <= _MOST:
        _numbers(ax, change, ink, sure)
    _frames(ax, sure, ink)
    _name_rows(ax, labels, judged.shape[1])
    ax.set_xticks(np.arange(len(columns)) + 0.5, columns)
    ax.xaxis.tick_top()
    ax.xaxis.set_label_position("top")
    ax.set_xlabel("lead time (h)" if not isinstance(lead_time, Sequence) else "")
    ax.set_ylim(judged.shape[0], 0)
    ax.tick_params(length=0, labelsize=TEXT - 0.5)
    for spine in ax.spines.values():
        spine.set_visible(False)
    _colour_bar(ax, mesh, levels, names, significant is not None)
    if title:
        ax.set_title(title, pad=10)
    return ax


def _labels(rows: Sequence[Any], size: int) -> list[tuple[str, ...]]:
    labels = [(row,) if isinstance(row, str) else tuple(map(str, row)) for row in rows]
    if len(labels) != size or len({len(label) for label in labels}) > 1:
        raise ValueError(
            f"`rows` must hold {size} labels of one kind, one for each row, got "
            f"{len(labels)} with {sorted({len(label) for label in labels})} parts."
        )
    return labels


def _columns(lead_time: Any, size: int) -> list[str]:
    hours = lead_time if isinstance(lead_time, Sequence) else np.asarray(lead_time)
    texts = [value if isinstance(value, str) else f"{value:g}" for value in hours]
    if len(texts) != size:
        raise ValueError(
            f"`lead_time` must label the {size} columns, got {len(texts)} values."
        )
    # So many that they would touch: every second, third, ...
    every = int(np.ceil(size / _MOST))
    return [text if i % every == 0 else "" for i, text in enumerate(texts)]


def _numbers(ax: Any, change: np.ndarray, ink: np.ndarray, sure: np.ndarray) -> None:
    """Write each change into its cell."""
    # Below 8 points nobody reads: fewer digits where cells are narrow.
    digits = 1 if change.shape[1] <= 14 else 0
    for (i, j), value in np.ndenumerate(change):
        text = f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
        ax.text(
            j + 0.5,
            i + 0.52,
            text if np.isfinite(value) else "?",
            ha="center",
            va="center",
            fontsize=TEXT - 2,
            fontweight="bold" if sure[i, j] else "normal",
            color=ink[i, j],
        )


def _frames(ax: Any, sure: np.ndarray, ink: np.ndarray) -> None:
    """Draw a frame inside each cell that is significant."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    inset = 0.07 if sure.shape[1] <= _MOST else 0.15  # clear of the white between
    width = 1 - 2 * inset
    frames = [Rectangle((j + inset, i + 0.1), width, 0.8) for i, j in np.argwhere(sure)]
    look = {"facecolor": "none", "edgecolor": list(ink[sure]), "linewidth": 0.9}
    ax.add_collection(PatchCollection(frames, **look))


def _name_rows(ax: Any, labels: list[tuple[str, ...]], columns: int) -> None:
    """Write labels left of the rows, outer ones once, and part their groups."""
    from matplotlib.transforms import blended_transform_factory

    ax.set_yticks(np.arange(len(labels)) + 0.5, [label[-1] for label in labels])
    *outer, _ = zip(*labels, strict=True)
    width = lambda texts: 0.075 * max(map(len, texts)) + 0.2  # inches of such letters
    left = width([label[-1] for label in labels])
    beside = blended_transform_factory(ax.transAxes, ax.transData)
    for level, texts in reversed(list(enumerate(outer, 1))):
        for i, text in enumerate(texts):
            same = i > 0 and labels[i - 1][:level] == labels[i][:level]
            if not same:
                ax.annotate(
                    text,
                    (0, i + 0.5),
                    (-72 * left, 0),
                    xycoords=beside,
                    textcoords="offset points",
                    ha="right",
                    va="center",
                    fontsize=TEXT - 0.5,
                    fontweight="bold" if level == 1 else "normal",
                )
        left += width(texts)
    for i in range(1, len(labels)):
        if len(labels[0]) > 1 and labels[i][0] != labels[i - 1][0]:
            ax.axhline(i, color=QUIET, linewidth=1.2)


def _colour_bar(
    ax: Any,
    mesh: Any,
    levels: np.ndarray,
    names: tuple[str, str],
    marked: bool,
) -> None:
    """Draw the colours' percents below the table, and what they mean."""
    bar = ax.get_figure().colorbar(
        mesh,
        ax=ax,
        orientation="horizontal",
        shrink=0.7,
        aspect=45,
        pad=0.02,
        ticks=levels,
        extendfrac=0.03,
    )
    text = f"{names[0]} against {names[1]}: change in %, blue is better"
    bar.set_label(text + (", framed is significant" if marked else ""))
    bar.ax.tick_params(labelsize=TEXT - 0.5, color=QUIET)
    bar.outline.set(linewidth=0.5, edgecolor=QUIET)
