"""Are differences significant: of two series of scores, and of many at once?"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.scipy.special import betainc
from jaxtyping import Array, Bool, Float

from skyens.scores._checks import check_probability


class DieboldMariano(NamedTuple):
    """What `diebold_mariano` gives, for each series."""

    mean: Float[Array, "*series"]  # the mean difference, in the scores' units
    statistic: Float[Array, "*series"]  # Student-t if the mean is 0
    p_value: Float[Array, "*series"]  # two-sided


def benjamini_hochberg(
    p_values: Float[Array, "..."], *, where: Bool[Array, "..."] | None = None
) -> Float[Array, "..."]:
    """Return p values adjusted for all being looked at, by the false discovery rate.

    Of those that stay below `q` no more than the share `q` is expected to be there by
    chance, if tests are independent or positively dependent: `min over p_j >= p_i of
    (m p_j / rank_j)`, at most 1.

    Neighbouring points of a map are dependent, and the procedure then keeps to less
    than it allows: Wilks advises `q = 2 alpha` for fields, where `alpha` is the chance
    that may be taken of finding anything where nothing is.

    Args:
        p_values: of all tests at once, of any shape.
        where: broadcasts to them; what is False was not tested, and gets 1.

    Raises:
        ValueError: `where` does not broadcast to `p_values`.
        EquinoxRuntimeError: known values lie outside [0, 1]; traced ones give NaN, and
            NaN stays and makes all tests NaN.

    Source: Benjamini & Hochberg (1995), J. R. Stat. Soc. B 57, 289-300; for fields:
        Wilks (2016), Bull. Amer. Meteorol. Soc. 97, 2263-2273.
    """
    return _adjust(p_values, where, dependent=False)


def benjamini_yekutieli(
    p_values: Float[Array, "..."], *, where: Bool[Array, "..."] | None = None
) -> Float[Array, "..."]:
    """Return p values adjusted as by `benjamini_hochberg`, under any dependence.

    They are larger by `1 + 1/2 + ... + 1/m`, some 10 for a map of 10,000 points. For
    fields Wilks finds `benjamini_hochberg` to do, see there. Arguments and errors are
    the same.

    Source: Benjamini & Yekutieli (2001), Ann. Stat. 29, 1165-1188.
    """
    return _adjust(p_values, where, dependent=True)


def diebold_mariano(
    differences: Float[Array, "time *series"],
    *,
    horizon: int = 1,
    bandwidth: int | None = None,
) -> DieboldMariano:
    """Test whether two forecasts have the same mean score, from the series of both.

    The mean difference over its standard error. Forecasts `horizon` steps ahead have
    errors that overlap, and differences correlated over `horizon - 1` lags, so that the
    variance of the mean sums these autocovariances; the statistic is corrected for
    short series and compared with Student's t of `time - 1` degrees of freedom.

    Sums of autocovariances may come out negative, and where they do, or all differences
    are equal, statistic and p value are NaN. `bandwidth`, if given, sums so many
    autocovariances instead with weights falling linearly (Newey & West), never
    negative: choose it larger than `horizon`, as weather too is correlated in time.

    Args:
        differences: score of one forecast minus that of another, time leading.
        horizon: how many steps ahead forecasts were made, at least 1.
        bandwidth: how many lags are weighted, or None.

    Raises:
        ValueError: there are fewer than two times, or no more than `horizon` or
            `bandwidth`, or these are below 1 and 0.

    Source: Diebold & Mariano (1995), J. Bus. Econ. Stat. 13, 253-263; correction:
        Harvey et al. (1997), Int. J. Forecast. 13, 281-291; weights: Newey & West
        (1987), Econometrica 55, 703-708.
    """
    length = differences.shape[0]
    lags = horizon - 1 if bandwidth is None else bandwidth
    if horizon < 1 or lags < 0:
        raise ValueError(
            "`horizon` must be at least 1 and `bandwidth` at least 0, got "
            f"{horizon} and {bandwidth}."
        )
    if length < 2 or length <= max(horizon, lags):
        raise ValueError(
            f"`differences` has {length} times: too few for `horizon` {horizon} and "
            f"{lags} lags."
        )
    mean = jnp.mean(differences, axis=0)
    departures = differences - mean[None]
    variance = jnp.mean(departures**2, axis=0)
    for lag in range(1, lags + 1):
        weight = 1 if bandwidth is None else 1 - lag / (bandwidth + 1)
        product = departures[lag:] * departures[:-lag]
        variance += 2 * weight * jnp.sum(product, axis=0) / length
    # Equal differences leave of their departures what rounding left.
    noise = (4 * jnp.finfo(mean.dtype).eps * jnp.abs(mean)) ** 2
    positive = variance > noise
    error = jnp.sqrt(jnp.where(positive, variance, 1) / length)
    overlap = length + 1 - 2 * horizon + horizon * (horizon - 1) / length
    statistic = mean / error * (overlap / length) ** 0.5
    statistic = jnp.where(positive, statistic, jnp.nan)
    freedom = length - 1
    tail = freedom / (freedom + statistic**2)
    half = jnp.asarray(0.5, mean.dtype)
    p_value = betainc(freedom * half, half, tail)
    return DieboldMariano(mean, statistic, p_value)


def _adjust(p_values, where, dependent: bool):
    p_values = check_probability("p_values", p_values)
    outside = (p_values < 0) | (p_values > 1)
    p_values = jnp.where(outside, jnp.nan, p_values)
    tested = jnp.ones((), bool) if where is None else where
    try:
        tested = jnp.broadcast_to(tested, p_values.shape).ravel()
    except ValueError:
        raise ValueError(
            f"`where` of shape {tested.shape} does not broadcast to `p_values` of "
            f"shape {p_values.shape}."
        ) from None
    flat = jnp.where(tested, p_values.ravel(), 1)
    # What was not tested comes last, where no rank counts it.
    order = jnp.lexsort((flat, ~tested))
    number = jnp.sum(tested, dtype=flat.dtype)
    rank = jnp.arange(1, flat.size + 1, dtype=flat.dtype)
    if dependent:
        number *= jnp.sum(jnp.where(rank <= number, 1 / rank, 0))
    scaled = jnp.where(tested[order], flat[order] * number / rank, 1)
    least = jnp.minimum(lax.cummin(scaled, reverse=True), 1)
    adjusted = jnp.zeros_like(flat).at[order].set(least)
    return adjusted.reshape(p_values.shape)
