"""The house style: one look for every picture, without touching global settings."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

# Okabe & Ito (2008), distinguishable with any colour vision; black is for the truth.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
TRUTH = "#000000"
QUIET = "#666666"

FIELD = "viridis"  # even steps of lightness, also in grey
AMOUNT = "magma_r"  # from nothing (light) to much (dark): spread, error
DIFFERENCE = "RdBu_r"  # from below (blue) to above (red) zero

WIDTH = 9.0  # inches; 900 pixels of 100 to the inch, the width of a README
TEXT = 10.0  # points

_SETTINGS: dict[Any, Any] = {
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.07,
    "font.family": "DejaVu Sans",  # shipped with matplotlib
    "font.size": TEXT,
    "axes.titlesize": TEXT + 1,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": QUIET,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": TEXT - 0.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "savefig.facecolor": "white",
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in the house style inside a `with` block; settings return afterwards.

    Every function of this room draws so by itself; use it around pictures of your own.

    Raises:
        ImportError: matplotlib or cartopy is not installed.
    """
    try:
        import cartopy  # noqa: F401
        from cycler import cycler
        from matplotlib import rc_context
    except ImportError as error:
        raise ImportError(
            'Pictures need matplotlib and cartopy: pip install "skyens[plot]"'
        ) from error
    with rc_context({**_SETTINGS, "axes.prop_cycle": cycler(color=COLOURS)}):
        yield


def save(
    picture: "matplotlib.figure.Figure | matplotlib.axes.Axes",
    path: str | Path,
    *,
    dpi: int = 150,
) -> Path:
    """Write the picture to `path`, close it and return the path.

    Args:
        picture: what the functions of this room return.
        path: its ending decides on the format (`.png`, `.svg`, `.pdf`); missing folders
            are made.
        dpi: pixels per inch; figures of this room are 9 inches wide.
    """
    with style():
        import matplotlib.pyplot as plt
        from matplotlib.figure import Figure

        figure = picture if isinstance(picture, Figure) else picture.get_figure(True)
        assert isinstance(figure, Figure)  # every axes here has one
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=dpi, bbox_inches="tight", pad_inches=0.05)
        plt.close(figure)
    return path


def with_units(text: str, units: str) -> str:
    """Return `height (m)`, exponents raised; without brackets where `units` is 1.

    Either part may be empty.
    """
    if units in ("", "1"):
        return text
    raised = re.sub(r"(?<!\de)(?<=[A-Za-z])(-?\d+)", r"$^{\1}$", units)
    return f"{text} ({raised})" if text else raised


def finish(ax: "matplotlib.axes.Axes", *, grid: str = "both") -> None:
    """Give diagram axes quiet ticks and grid lines, now: ticks are made when drawn."""
    ax.tick_params(which="both", labelsize=TEXT - 0.5, color=QUIET)
    ax.grid(True, axis=grid, color="#dddddd", linewidth=0.6)  # pyright: ignore[reportArgumentType]
