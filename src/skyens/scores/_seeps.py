"""SEEPS: the stable and equitable error in probability space, for precipitation."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from skyens.scores._checks import check_probability
from skyens.scores._members import (
    check_together,
    score_dtype,
    wide_dtype,
)


def seeps(
    forecast: Float[Array, "..."],
    truth: Float[Array, "..."],
    *,
    dry_probability: Float[Array, "..."],
    heavy_threshold: Float[Array, "..."],
    dry_threshold: float = 0.25,
    least: float = 0.1,
    most: float = 0.85,
) -> Float[Array, "..."]:
    """Return the error of precipitation in three categories, point by point.

    Dry, light and heavy, and of the wet days of the local climate two thirds are light
    and one third heavy: so the score means the same in a desert and in the tropics. It
    is 0 for the right category, and any constant forecast scores 1 in the climate. See
    `seeps_matrix` for its values. It depends on categories, and has no gradient.

    Where the climate has too few dry or wet days (`dry_probability` outside `[least,
    most]`), or where it or the threshold is not known (NaN), the score is 0: such
    points should get no weight in a mean.

    Args:
        forecast: precipitation of one forecast or, broadcast, of each member.
        truth: what fell, in the same units. All arrays broadcast.
        dry_probability: share of days in the climate at or below `dry_threshold`.
        heavy_threshold: in the same units, exceeded on a third of the climate's wet
            days; what is equal to it is heavy.
        dry_threshold: in the same units, up to which a day is dry. The default is in
            mm, and for the 24 hours of SYNOP reports.
        least: the smallest `dry_probability` that is scored.
        most: the largest.

    Raises:
        ValueError: the shapes do not broadcast, or not `0 < least < most < 1`.
        EquinoxRuntimeError: a known `dry_probability` lies outside [0, 1].

    Source: Rodwell et al. (2010), Q. J. R. Meteorol. Soc. 136, 1344-1363.
    """
    if not 0 < least < most < 1:
        raise ValueError(
            f"`least` and `most` must be such that 0 < least < most < 1, got {least} "
            f"and {most}."
        )
    shape = check_together(
        forecast=forecast,
        truth=truth,
        dry_probability=dry_probability,
        heavy_threshold=heavy_threshold,
    )
    dtype = score_dtype(forecast, truth)
    wide = wide_dtype(dtype)
    dry_probability = check_probability("dry_probability", dry_probability)
    forecast, truth, dry, heavy = (
        jnp.broadcast_to(x.astype(wide), shape)
        for x in (forecast, truth, dry_probability, heavy_threshold)
    )
    scored = (dry >= least) & (dry <= most) & ~jnp.isnan(heavy)
    matrix = seeps_matrix(jnp.where(scored, dry, 0.5))

    def category(amount):
        return jnp.where(amount <= dry_threshold, 0, jnp.where(amount < heavy, 1, 2))

    entry = (3 * category(forecast) + category(truth))[..., None]
    score = jnp.take_along_axis(matrix.reshape(*shape, 9), entry, axis=-1)[..., 0]
    score = jnp.where(jnp.isnan(forecast) | jnp.isnan(truth), jnp.nan, score)
    return jnp.where(scored, score, 0).astype(dtype)


def seeps_matrix(
    dry_probability: Float[Array, "*points"],
) -> Float[Array, "*points forecast=3 observed=3"]:
    """Return the SEEPS of each forecast (dry, light, heavy) for each that is observed.

    With `p1` dry and `p3 = (1 - p1) / 3` heavy days in the climate, half of

        0                        1 / (1 - p1)     1 / p3 + 1 / (1 - p1)
        1 / p1                   0                1 / p3
        1 / p1 + 1 / (1 - p3)    1 / (1 - p3)     0

    Source: Rodwell et al. (2010), Q. J. R. Meteorol. Soc. 136, 1344-1363.
    """
    dry = dry_probability
    heavy = (1 - dry) / 3
    none = jnp.zeros_like(dry)
    missed, unheavy = 1 / (1 - dry), 1 / (1 - heavy)
    rows = [
        [none, missed, 1 / heavy + missed],
        [1 / dry, none, 1 / heavy],
        [1 / dry + unheavy, unheavy, none],
    ]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2) / 2
