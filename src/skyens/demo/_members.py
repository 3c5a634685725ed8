"""From ten analyses to many members, forward in time, and corrected at 12 hours."""

import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from skyens import assimilation, data, ensembles, observations, sphere, training
from skyens.demo._world import LEADS, STEP_HOURS, Analyses, _value
from skyens.dynamics import BalancedHeight, Purpose, run_key
from skyens.sphere import GaussianRandomField

WIDTH = 20  # members side by side: fixed, so that each can be replayed bit for bit
# Root-mean-square of random and of bred perturbations poleward of 20 degrees, m.
# ERA5's own members differ by 1.3 m, less than such an analysis errs.
RANDOM_SIZE, BRED_SIZE = 3.0, 3.0
STATION_ERROR = 8.0  # m, standard deviation of an observed height
LOCALISATION = 1.2e6  # m


def starting_members(
    model: BalancedHeight, analyses: Analyses, members: int, *, key: Key[Array, ""]
) -> Float[Array, "member latitude longitude"]:
    """Return members in pairs about the ten analyses of the first time.

    Each pair adds and subtracts a balanced random field plus a vector bred for three
    cycles of twelve hours about the same analysis.

    Raises:
        ValueError: `members` is no multiple of twice the number of analyses.
    """
    start = jnp.asarray(analyses.height[:, 0])
    pairs, rest = divmod(members, 2 * len(start))
    if rest or not pairs:
        raise ValueError(
            f"`members` must be a multiple of {2 * len(start)} (pairs about the "
            f"{len(start)} analyses), got {members}."
        )
    lmax = model.sht.lmax
    power = jnp.asarray(sphere.matern_spectrum(lmax, 0.15), start.dtype)
    field = GaussianRandomField(model.sht, power)
    norm = ensembles.HemisphericRMS(analyses.grid)

    def scaled(key, size):
        height = model.height(field.coefficients(key))
        return size * height / norm(height)

    def twelve_hours(state, forcing=None, *, key=None):
        return model(model(state))

    def perturbation(analysis, key):
        random_key, seed_key = jr.split(key)
        three_times = jnp.broadcast_to(analysis, (3, *analysis.shape))
        seed = scaled(seed_key, BRED_SIZE)
        bred, _ = ensembles.breed(
            twelve_hours, three_times, seed, amplitude=BRED_SIZE, norm=norm
        )
        return scaled(random_key, RANDOM_SIZE) + bred

    keys = jr.split(run_key(key, Purpose.PERTURB, start=analyses.time[0]), pairs)
    keys = jax.vmap(lambda k: jr.split(k, len(start)), out_axes=1)(keys)
    one = eqx.filter_jit(jax.vmap(perturbation, in_axes=(None, 0)))
    perturbations = [
        one(analysis, k)
        for analysis, k in training.progress(
            list(zip(start, keys, strict=True)), description="breed members"
        )
    ]
    return ensembles.centred(start, jnp.stack(perturbations))


def forecast(
    step: Any,
    states: PyTree,
    steps: int,
    *,
    key: Key[Array, ""],
    reduce: Callable[[PyTree], Any] = _value,
    description: str = "forecast",
) -> Any:
    """Return `ensembles.rollout` of all members in blocks of `WIDTH`, with progress."""
    run = eqx.filter_jit(ensembles.rollout)
    count = jax.tree.leaves(states)[0].shape[0]
    parts = []
    blocks = range(0, count, WIDTH)
    for first in training.progress(blocks, description=description):
        block = slice(first, min(first + WIDTH, count))
        parts.append(
            run(
                step,
                jax.tree.map(operator.itemgetter(block), states),
                steps,
                key=key,
                members=np.arange(count)[block],
                width=WIDTH,
                reduce=reduce,
            )
        )
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def assimilate(
    states: PyTree, analyses: Analyses, *, key: Key[Array, ""]
) -> tuple[PyTree, assimilation.Info, observations.Observation]:
    """Correct members at 12 hours by heights at the real radiosonde stations.

    The heights are drawn from the verifying control analysis with an error of 8 m: a
    stand-in for the soundings of that day, at the places where balloons do rise.
    """
    stations = data.station_positions()
    place = {
        name: jnp.asarray(stations[name].values, states["value"].dtype)
        for name in ("latitude", "longitude")
    }
    height_at = _HeightAt(analyses.grid, **place)
    std = jnp.full(place["latitude"].shape, STATION_ERROR, states["value"].dtype)
    make = lambda value: observations.Observation(
        value, height_at, observations.Diagonal(std), coordinates=place
    )
    truth = {"value": jnp.asarray(analyses.truth[0])}
    value = make(height_at(truth)).sample(truth, key=run_key(key, Purpose.OBSERVE))
    observation = make(value)
    method = assimilation.LETKF(
        assimilation.Localisation(analyses.grid, place, length=LOCALISATION),
        where=_value,
    )
    analysis, info = eqx.filter_jit(method)(states, observation)
    return analysis, info, observation


class _HeightAt(eqx.Module):
    """Interpolate the value of a state to stations."""

    grid: sphere.Grid = eqx.field(static=True)
    latitude: Float[Array, " station"]
    longitude: Float[Array, " station"]

    def __call__(self, state: PyTree) -> Float[Array, " station"]:
        at = observations.Interpolate(self.grid, self.latitude, self.longitude)
        return at(state["value"])


def dressed_persistence(
    analyses: Analyses, members: int, *, key: Key[Array, ""]
) -> Float[np.ndarray, "member lead latitude longitude"]:
    """Return the first analysis, dressed with changes of the kind just seen.

    Each pair of members adds and subtracts the change of the first 12 hours, turned by
    a random longitude and grown as the square root of the lead time. (At 12 hours this
    peeks at the verification; so do the fitted amplitudes of the others.)
    """
    start, change = analyses.height[0, 0], analyses.height[0, 1] - analyses.height[0, 0]
    turns = jr.randint(key, ((members + 1) // 2,), 0, analyses.grid.n_longitude)
    turned = np.stack([np.roll(change, int(turn), axis=-1) for turn in turns])
    dress = np.stack([turned, -turned], axis=1).reshape(-1, *start.shape)[:members]
    growth = np.sqrt(LEADS / LEADS[0])[None, :, None, None]
    return (start + growth * dress[:, None]).astype(np.float32)


def at_leads(trajectory: Array) -> np.ndarray:
    """Return `(member, lead, latitude, longitude)` of `(member, step, ...)`."""
    index = LEADS // STEP_HOURS - 1
    fields = np.asarray(trajectory)[:, index]
    return fields.reshape(*fields.shape[:2], *fields.shape[-2:])
