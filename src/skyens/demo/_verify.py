"""Verification against the real analyses: numbers by system, lead time and region."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from skyens import scores, sphere
from skyens.demo._world import LEADS, Analyses

if TYPE_CHECKING:
    import pandas

REGIONS = {
    "20N-80N": (20.0, 80.0),
    "20S-80S": (-80.0, -20.0),
    "tropics": (-20.0, 20.0),
}
TUNED_LEAD = LEADS[0]  # the one whose error set the amplitudes
CAUTION = (
    "One day and a half of one winter is a demonstration, not a climate of skill: four "
    "analyses, one start, errors that are correlated from point to point; and the "
    "design (noise, relaxation, training worlds) was settled with these scores in view."
)

Ensemble = Float[np.ndarray, "member lead latitude longitude"]


def region_weights(grid: sphere.Grid, region: str) -> Float[np.ndarray, "latitude 1"]:
    """Return the area weight of each row, 0 outside the region."""
    south, north = REGIONS[region]
    inside = (grid.latitude >= south) & (grid.latitude <= north)
    return (grid.weights * inside)[:, None]


def scorecard(
    systems: Mapping[str, Ensemble], analyses: Analyses
) -> "pandas.DataFrame":
    """Return one row for each system, lead time and region.

    Columns, in m where they have units: `rmse` of the ensemble mean; `crps`, fair for
    ensembles and the mean absolute error for a single forecast; `spread`;
    `spread_skill`, corrected for the number of members; `anomaly_correlation` of the
    mean, about the zonal mean of the first analysis, for want of a climatology. A lead
    that a system does not have is NaN in the array and has no row.
    """
    import pandas

    start = analyses.height[0, 0]
    climatology = np.broadcast_to(start.mean(-1, keepdims=True), start.shape)
    rows = []
    for system, ensemble in systems.items():
        members = ensemble.shape[0]
        for region in REGIONS:
            for index, lead in enumerate(LEADS):
                fields = ensemble[:, index]
                if np.isnan(fields).all():
                    continue
                rows.append(
                    {
                        "system": system,
                        "lead_time": int(lead),
                        "region": region,
                        "members": members,
                        **_scores(
                            fields,
                            analyses.truth[index],
                            climatology,
                            region_weights(analyses.grid, region),
                        ),
                    }
                )
    return pandas.DataFrame(rows)


def _scores(fields, truth, climatology, weights) -> dict[str, float]:
    fields, truth = jnp.asarray(fields), jnp.asarray(truth)
    weights = jnp.asarray(weights, fields.dtype)
    several = fields.shape[0] > 1
    accumulate = lambda stat, **more: stat.finalize(
        stat.update(stat.init(), fields, truth, weights=weights, **more)
    )
    result = {
        "rmse": accumulate(scores.RMSE()),
        "crps": accumulate(scores.CRPS(alpha=1.0 if several else 0.0)),
        "anomaly_correlation": accumulate(
            scores.AnomalyCorrelation(), climatology=jnp.asarray(climatology)
        ),
    }
    if several:
        spread = accumulate(scores.SpreadSkill())
        result |= {"spread": spread.spread, "spread_skill": spread.ratio}
    return {name: float(value) for name, value in result.items()}


def ranks(
    ensemble: Ensemble, analyses: Analyses, region: str = "20N-80N"
) -> Float[np.ndarray, " rank"]:
    """Return the share of verifications in each rank at the leads not tuned on."""
    stat = scores.RankHistogram(ensemble.shape[0])
    weights = jnp.asarray(region_weights(analyses.grid, region), ensemble.dtype)
    state = stat.init()
    for index in np.flatnonzero(LEADS != TUNED_LEAD):
        state = stat.update(
            state,
            jnp.asarray(ensemble[:, index]),
            jnp.asarray(analyses.truth[index]),
            weights=weights,
        )
    return np.asarray(stat.finalize(state))


def independent_cases(
    error: Float[np.ndarray, "latitude longitude"],
    grid: sphere.Grid,
    region: str = "20N-80N",
) -> float:
    """Return how many independent numbers an error field holds in a region, about.

    An isotropic field has `(sum P)^2 / sum(P^2 / (2 l + 1))` of them on the sphere, for
    power P by degree (Bretherton et al. 1999, J. Climate 12, 1990-2009, in
    spectral form); a region has its share of the area.
    """
    sht = sphere.SphericalHarmonics(grid, grid.largest_lmax)
    power = np.asarray(sht.power_spectrum(jnp.asarray(error)), np.float64)
    degree = np.arange(power.size)
    whole = power.sum() ** 2 / np.sum(power**2 / (2 * degree + 1))
    share = region_weights(grid, region).sum() / grid.weights.sum()
    return float(whole * share)


def aims(card: "pandas.DataFrame", systems: tuple[str, ...]) -> list[tuple[str, bool]]:
    """Return each aim in words with its numbers, and whether it is met."""
    table = card.set_index(["system", "lead_time", "region"])
    lines = []
    for system in systems:
        for region in REGIONS:
            for lead in LEADS[LEADS != TUNED_LEAD]:
                row = table.loc[(system, lead, region)]
                control = table.loc[("control", lead, region), "crps"]
                below = 1 - row["crps"] / control
                lines.append(
                    (
                        f"{system}, {lead} h, {region}: CRPS {row['crps']:.1f} m, "
                        f"{below:.0%} below the control's absolute error {control:.1f} "
                        "m (aim: at least 20%)",
                        bool(below >= 0.2),
                    )
                )
                ratio = row["spread_skill"]
                lines.append(
                    (
                        f"{system}, {lead} h, {region}: spread-skill {ratio:.2f} "
                        "(aim: 0.8 to 1.2)",
                        bool(0.8 <= ratio <= 1.2),
                    )
                )
    return lines
