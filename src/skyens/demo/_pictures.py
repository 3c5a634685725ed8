"""The pictures of the demo, as files."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from skyens import plot, sphere
from skyens.demo._verify import Ensemble, independent_cases, ranks
from skyens.demo._world import LEADS, Analyses

if TYPE_CHECKING:
    import pandas

PICTURES = (
    "forecast.png",
    "spaghetti.png",
    "increment.png",
    "spectra.png",
    "spread_skill.png",
    "rank_histogram.png",
)


def draw(
    folder: Path,
    systems: Mapping[str, Ensemble],
    analyses: Analyses,
    card: "pandas.DataFrame",
    increment: np.ndarray,
    stations: Mapping[str, jax.Array],
) -> list[Path]:
    """Draw the six pictures into `folder` and return their paths."""
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    grid, truth, last = analyses.grid, analyses.truth[-1], int(LEADS[-1])
    ensemble = systems["physics"]
    pictures = [
        plot.map_forecast(
            ensemble[:, -1].mean(0),
            ensemble[:, -1].std(0, ddof=1),
            truth,
            grid,
            units="m",
            label="500 hPa height",
            title=f"{len(ensemble)} members of the physics, {last} h ahead",
        ),
        plot.spaghetti(
            ensemble[:, -1],
            grid,
            contour=5400,
            truth=truth,
            units="m",
            label="500 hPa height",
            title=f"Every member's 5400 m contour, {last} h ahead",
        ),
        plot.increment(
            increment,
            grid,
            station_latitude=np.asarray(stations["latitude"]),
            station_longitude=np.asarray(stations["longitude"]),
            levels=np.arange(-90, 91, 20),
            units="m",
            title="What the stations change at 12 h",
        ),
        _spectra(systems, analyses),
        _spread_skill(card),
        _rank_histogram(ensemble, analyses),
    ]
    paths = []
    for name, picture in zip(PICTURES, pictures, strict=True):
        plot.save(picture, folder / name)
        paths.append(folder / name)
    plt.close("all")
    return paths


def _spectra(systems: Mapping[str, Ensemble], analyses: Analyses):
    sht = sphere.SphericalHarmonics(analyses.grid, analyses.grid.largest_lmax)
    power = lambda field: np.asarray(sht.power_spectrum(jnp.asarray(field)))
    lines = {"analysis": power(analyses.truth[-1])}
    for name in ("physics", "neural"):
        last = systems[name][:, -1]
        lines[f"{name} members"] = power(last[:20]).mean(0)
        lines[f"{name} mean"] = power(last.mean(0))
    degrees = np.arange(1, sht.lmax + 1)
    return plot.spectra(
        degrees,
        {name: line[1:] for name, line in lines.items()},
        truth="analysis",
        units="m2",
        title=f"Power of 500 hPa height by degree, {LEADS[-1]} h ahead",
    )


def _rank_histogram(ensemble: Ensemble, analyses: Analyses):
    # Twenty members tell as much as a hundred where so few cases are independent.
    few = ensemble[:: max(1, len(ensemble) // 20)]
    error = ensemble[:, -1].mean(0) - analyses.truth[-1]
    cases = independent_cases(error, analyses.grid)
    return plot.rank_histogram(
        cases * ranks(few, analyses),
        cases=cases,
        title=f"Rank of the analysis, 20N-80N, 24 and 36 h ({cases:.0f} cases)",
    )


def _spread_skill(card: "pandas.DataFrame"):
    table = card[card["region"] == "20N-80N"].set_index(["system", "lead_time"])
    column = lambda name: {
        system: np.array([table.loc[(system, lead), name] for lead in LEADS])
        for system in ("physics", "neural")
    }
    return plot.spread_skill(
        LEADS,
        column("spread"),
        column("rmse"),
        units="m",
        title="Spread and error of the mean, 20N-80N",
    )
