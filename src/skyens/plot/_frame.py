"""The frame of a diagram: its axes, its checked numbers, its ticks and legend."""

from typing import Any

import jax
import numpy as np

from skyens.plot._style import WIDTH, finish

Numbers = jax.Array | np.ndarray


def diagram_axes(ax: Any, *, square: bool = False) -> Any:
    """Return `ax`, or the axes of a new figure."""
    import matplotlib.pyplot as plt

    size = (0.6 * WIDTH, 0.6 * WIDTH) if square else (0.7 * WIDTH, 0.45 * WIDTH)
    return plt.subplots(figsize=size)[1] if ax is None else ax


def vector(name: str, values: Any, size: int, of: str) -> np.ndarray:
    """Return `values` in float64, checked to be one for each `of` what it belongs to.

    Raises:
        ValueError: they are not.
    """
    values = np.asarray(values, np.float64)
    if values.shape != (size,):
        raise ValueError(f"`{name}` must have the {size} {of}, got {values.shape}.")
    return values


def done(
    ax: Any, title: str, *, grid: str = "both", columns: int = 1, legend: str = "best"
) -> Any:
    """Give axes their ticks, grid lines, legend and title, and return them."""
    finish(ax, grid=grid)
    # The best place among hundreds of bars takes seconds to find: say where.
    ax.legend(ncols=columns, loc=legend)
    if title:
        ax.set_title(title)
    return ax
