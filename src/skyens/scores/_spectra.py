"""At which scales do forecasts have power, and where is it right?"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from skyens import sphere
from skyens.scores._sample import sample
from skyens.scores._sums import (
    Sum,
    Sums,
    add_terms,
    empty_sums,
    merge_sums,
    ratio,
    root,
)


class SpectraByDegree(NamedTuple):
    """What `Spectra` gives: mean powers, in squared units of the field."""

    members: Float[Array, "... l"]  # mean over the members of their power
    mean: Float[Array, "... l"]  # of the ensemble mean
    truth: Float[Array, "... l"]
    error: Float[Array, "... l"]  # of the ensemble mean minus the truth
    spread: Float[Array, "... l"]  # unbiased variance over members
    coherence: Float[Array, "... l"]  # of ensemble mean and truth, squared, to 1


class Spectra(eqx.Module):
    """Power by degree of members, ensemble mean, truth, error and spread.

    Each is the sum over both signs of m of `|c_lm|^2`, so that the sum over degrees is
    `4 pi` times the mean square on the sphere, averaged over all fields seen. A
    reliable ensemble has `error = (M + 1) / M spread` at each degree, and members as
    strong as the truth. The coherence is of sums, `|sum(f o)|^2 / (sum(f^2) sum(o^2))`.

    Fields end with (latitude, longitude) of `sht.grid`, and a field is scored as a
    whole: `weights` have length 1 along these two, and a field that `where` masks
    anywhere does not count. The spread is over fields with two valid members. All
    members' coefficients are held at once. Arguments and state: see `Statistic`.
    """

    sht: sphere.SphericalHarmonics

    @property
    def event_axes(self) -> int:
        """The trailing axes that are scored as a whole."""
        return 2

    @property
    def grid(self) -> sphere.Grid:
        """The grid of the fields."""
        return self.sht.grid

    def init(self, shape: tuple[int, ...] = (), dtype: DTypeLike | None = None) -> Sums:
        """Return the state that has seen nothing, with `shape` as kept axes."""
        powers = "members", "mean", "truth", "error", "spread", "shared"
        spectra = dict.fromkeys(powers, (*shape, self.sht.lmax + 1))
        weights = {"weight": shape, "spread_weight": shape}
        return empty_sums(weights | spectra, dtype)

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
            ValueError: as for every statistic, or the fields are not on `sht.grid`, or
                `weights` vary along latitude or longitude.
        """
        self.sht.grid.check(ensemble, "ensemble")
        self.sht.grid.check(truth, "truth")
        if weights is not None:
            if any(n > 1 for n in weights.shape[-2:]):
                raise ValueError(
                    f"`weights` of shape {weights.shape} vary along latitude or "
                    "longitude, but a field is scored as a whole: have 1 there."
                )
            weights = weights.reshape(weights.shape[:-2])
        if where is not None:
            where = where.all(axis=tuple(range(-min(where.ndim, 2), 0)))
        # Of a field as a whole, its first point stands for what counts.
        first = ensemble[..., 0, 0], truth[..., 0, 0]
        seen = sample(state, *first, weights, where)
        weight, spread_weight = seen.weights_of(least=1), seen.weights_of(least=2)
        if ensemble.shape[0] == 1:
            spread_weight = jnp.zeros_like(weight)
        dtype = seen.truth.dtype
        ensemble, truth = ensemble.astype(dtype), truth.astype(dtype)
        if seen.valid is not None:
            keep = lambda fields, valid: jnp.where(valid[..., None, None], fields, 0)
            ensemble, truth = keep(ensemble, seen.valid), keep(truth, seen.has_members)
        spectra = _powers(self.sht, ensemble, truth, seen.valid, seen.count)
        kept = state["weight"].high.ndim
        heavy = lambda name: spread_weight if name == "spread" else weight
        by_degree = lambda x: Sum.over(jnp.moveaxis(x, -1, kept), kept + 1)
        terms = {
            name: by_degree(heavy(name)[..., None] * power)
            for name, power in spectra.items()
        }
        return add_terms(state, weight=weight, spread_weight=spread_weight, **terms)

    def merge(self, first: Sums, second: Sums) -> Sums:
        """Return the state that has seen what both have."""
        return merge_sums(first, second)

    def finalize(self, state: Sums) -> SpectraByDegree:
        """Return the spectra; 0 where nothing valid was seen."""
        value = {name: total.value for name, total in state.items()}
        mean = lambda name: ratio(value[name], value["weight"][..., None])
        # Root by root: the product of two powers may overflow.
        roots = root(value["mean"]), root(value["truth"])
        return SpectraByDegree(
            members=mean("members"),
            mean=mean("mean"),
            truth=mean("truth"),
            error=mean("error"),
            spread=ratio(value["spread"], value["spread_weight"][..., None]),
            coherence=ratio(ratio(value["shared"], roots[0]), roots[1]) ** 2,
        )


@eqx.filter_jit  # traced, so that a NaN spoils its sums and raises nothing
def _powers(
    sht: sphere.SphericalHarmonics,
    ensemble: Float[Array, "member ... latitude longitude"],
    truth: Float[Array, "... latitude longitude"],
    valid: Bool[Array, "member ..."] | None,
    count: Float[Array, "..."],
) -> dict[str, Float[Array, "... l"]]:
    """Return the powers of one field each."""
    power, cross = sphere.power_spectrum, sphere.cross_spectrum
    at = lambda x: x[..., None, None]
    # Departures from the truth are exact at large offsets; their sums are linear.
    departures = ensemble - truth[None]
    if valid is not None:
        departures = jnp.where(at(valid), departures, 0)
    error = sht.analysis(jnp.sum(departures, axis=0) / at(count))
    departures, observed = sht.analysis(departures), sht.analysis(truth)
    observed = jnp.broadcast_to(observed, error.shape)
    members, anomalies = departures + observed[None], departures - error[None]
    if valid is not None:
        members = jnp.where(at(valid), members, 0)
        anomalies = jnp.where(at(valid), anomalies, 0)
    mean = error + observed
    total = lambda coefficients: jnp.sum(power(coefficients), axis=0)
    return {
        "members": total(members) / count[..., None],
        "mean": power(mean),
        "truth": power(observed),
        "error": power(error),
        "spread": total(anomalies) / jnp.maximum(count - 1, 1)[..., None],
        "shared": cross(mean, observed),
    }
