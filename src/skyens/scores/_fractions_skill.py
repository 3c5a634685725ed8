"""The fractions skill score: is there as much of an event nearby as forecast?"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from skyens.scores._brier import Event, event_dtype
from skyens.scores._checks import check_probability
from skyens.scores._members import check_together, wide_dtype
from skyens.scores._sample import sample
from skyens.scores._sums import Sums, add_terms, empty_sums, merge_sums, ratio
from skyens.sphere import Grid, cap_mean


def fractions_skill_score(
    grid: Grid,
    forecast: Event,
    truth: Event,
    *,
    radius_degrees: float,
    where: Bool[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Return the skill in the fraction of events around each point; 1 is perfect.

    `1 - sum(a (F - O)^2) / sum(a (F^2 + O^2))`, with `F` and `O` the means of forecast
    and truth over a spherical cap and `a` the area of a cell. A larger cap forgives
    larger displacements, and the cap has one size at any latitude. Higher is better:
    this is a skill, from 0 to 1, and its complement a loss. Where no cap holds an event
    of either, or nothing is valid, there is no skill to measure, and it is 0.

    For many forecasts the sums belong added up first: see `FractionsSkill`.

    Args:
        grid: on which forecast and truth lie.
        forecast: `(..., latitude, longitude)`, whether the event is forecast, or its
            probability, such as the mean over members; this one is differentiated.
        truth: likewise, whether it happened.
        radius_degrees: of the caps, in [0, 180].
        where: which points count, in caps and in the sums; broadcasts to the fields.

    Returns:
        The score of each field, `(...)`, in the dtype of the forecast.

    Raises:
        ValueError: the fields do not lie on `grid` or do not broadcast, or the radius
            is no such angle.
        EquinoxRuntimeError: a known value that counts lies outside [0, 1].

    Source: Roberts & Lean (2008), Mon. Wea. Rev. 136, 78-97.
    """
    grid.check(forecast, "forecast")
    grid.check(truth, "truth")
    dtype = event_dtype(forecast, truth)
    wide = wide_dtype(dtype)
    arrays = {"forecast": forecast, "truth": truth}
    shape = check_together(**arrays, **({} if where is None else {"where": where}))
    forecast, truth = (
        jnp.broadcast_to(x.astype(wide), shape) for x in (forecast, truth)
    )
    if where is not None:
        where = jnp.broadcast_to(where, shape)
        forecast, truth = (jnp.where(where, x, 0) for x in (forecast, truth))
    forecast = check_probability("forecast", forecast)
    truth = check_probability("truth", truth)
    error, reference = _squares(grid, radius_degrees, forecast, truth, where)
    area = jnp.asarray(grid.cell_areas, wide).reshape(*(1,) * (len(shape) - 2), -1, 1)
    total = lambda x: jnp.sum(area * x, axis=(-2, -1))
    return _skill(total(error), total(reference)).astype(dtype)


class FractionsSkill(eqx.Module):
    """The fractions skill score of an event over all that was seen; 1 is perfect.

    The event is a value above `threshold`, and its probability at a point the share of
    the valid members; a point without members has no part in any cap and no weight.
    Squares are added up over all forecasts, and divided at the end. The last two axes
    of what is scored are those of `grid`, and `weights` are usually
    `grid.cell_areas[:, None]`. It counts, and has no gradient. Arguments and state: see
    `Statistic`.

    Source: Roberts & Lean (2008), Mon. Wea. Rev. 136, 78-97.
    """

    grid: Grid = eqx.field(static=True)
    radius_degrees: float = eqx.field(static=True)
    threshold: float = eqx.field(static=True)

    def __check_init__(self):
        if not 0 <= self.radius_degrees <= 180:
            raise ValueError(
                f"`radius_degrees` must lie in [0, 180], got {self.radius_degrees}."
            )

    def init(self, shape: tuple[int, ...] = (), dtype: DTypeLike | None = None) -> Sums:
        """Return the state that has seen nothing, with `shape` as kept axes."""
        names = "weight", "squared_error", "reference"
        return empty_sums(dict.fromkeys(names, shape), dtype)

    def update(
        self,
        state: Sums,
        ensemble: Float[Array, "member ..."],
        truth: Float[Array, "..."],
        weights: Float[Array, "..."] | None = None,
        where: Bool[Array, "..."] | None = None,
    ) -> Sums:
        """Return the state that has seen these forecasts too.

        Raises:
            ValueError: as for every statistic, or `truth` does not lie on the grid.
        """
        self.grid.check(truth, "truth")
        seen = sample(state, ensemble, truth, weights, where)
        self.grid.check(seen.ensemble, "ensemble")
        weight = seen.weights_of(least=1)
        happens = lambda x: jnp.where(
            jnp.isnan(x), x, (x > self.threshold).astype(seen.truth.dtype)
        )
        events, happened = happens(seen.ensemble), happens(seen.truth)
        if seen.valid is None:
            present = None
        else:
            events = jnp.where(seen.valid, events, 0)
            present = seen.has_members
        forecast = jnp.sum(events, axis=0) / seen.count
        shape = jnp.broadcast_shapes(forecast.shape, happened.shape)
        if present is not None:
            shape = jnp.broadcast_shapes(shape, present.shape)
            present = jnp.broadcast_to(present, shape)
        forecast, happened = (jnp.broadcast_to(x, shape) for x in (forecast, happened))
        error, reference = _squares(
            self.grid, self.radius_degrees, forecast, happened, present
        )
        return add_terms(
            state,
            weight=weight,
            squared_error=weight * error,
            reference=weight * reference,
        )

    def merge(self, first: Sums, second: Sums) -> Sums:
        """Return the state that has seen what both have."""
        return merge_sums(first, second)

    def finalize(self, state: Sums) -> Float[Array, "..."]:
        """Return the score; 0 where nothing valid or no event was seen."""
        return _skill(state["squared_error"].value, state["reference"].value)


def _squares(grid, radius_degrees, forecast, truth, where):
    """Return `(F - O)^2` and `F^2 + O^2` of the fractions, 0 where nothing counts."""
    pair = jnp.stack([forecast, truth])
    where = where if where is None else where[None]
    fractions = jnp.clip(cap_mean(grid, pair, radius_degrees, where), 0, 1)
    if where is not None:
        fractions = jnp.where(where, fractions, 0)
    return (fractions[0] - fractions[1]) ** 2, fractions[0] ** 2 + fractions[1] ** 2


def _skill(error, reference):
    return jnp.where(reference > 0, 1 - ratio(error, reference), reference)
