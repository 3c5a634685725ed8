"""Who is near whom: tables of static width, by sorted bands.

Observations are sorted by band and, within a band, along it. Those in reach of a point
then lie in a few runs of the sorted list, whose ends a binary search finds: the cost is
nearly linear in points and observations, and no array has the size of their product.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from skyens.assimilation._geometry import Geometry

_QUANTA = 2**20  # steps along a band, so that band and step fit one integer
_MOST_BANDS = 1024
_BANDS = 5  # a reach to either side, in bands of half a reach, touches no more
_SLACK = 1e-4  # relative, for rounding: what it lets in too much is sorted out later
_BLOCK = 512  # points at a time


class Neighbours(NamedTuple):
    """For each point the observations near it, nearest first.

    `index` numbers observations, `taper` is their weight, 0 in slots that are not
    needed. `overflow` counts those for which there was no room, `reached` says which
    observations are in reach of a point.
    """

    index: Int[Array, "*point width"]
    taper: Float[Array, "*point width"]
    overflow: Int[Array, ""]
    reached: Bool[Array, "observation"]


class _Runs(NamedTuple):
    order: Int[Array, "observation"]
    start: Int[Array, "point run"]
    size: Int[Array, "point run"]


@jax.jit
def most_candidates(
    geometry: Geometry, places: Float[Array, "2 observation"], reach: Float[Array, ""]
) -> Int[Array, ""]:
    """Return how many observations the runs of any point hold, at most."""
    return jnp.max(jnp.sum(_runs(geometry, places, reach).size, axis=-1))


@partial(jax.jit, static_argnums=(3, 4))
def most_neighbours(
    geometry: Geometry,
    places: Float[Array, "2 observation"],
    length: Float[Array, ""],
    taper: Callable,
    candidates: int,
) -> Int[Array, ""]:
    """Return how many observations have a weight at any point, at most."""
    runs = _runs(geometry, places, length * support(taper))
    near = _near(geometry, places, length, taper, candidates, runs.order)
    count = lambda *x: jnp.sum(near(*x)[1] > 0)
    return jnp.max(_over_points(count, geometry, places.dtype, runs))


@partial(jax.jit, static_argnums=(3, 4, 5))
def find_neighbours(
    geometry: Geometry,
    places: Float[Array, "2 observation"],
    length: Float[Array, ""],
    taper: Callable,
    candidates: int,
    width: int,
) -> tuple[Neighbours, Int[Array, ""]]:
    """Return the neighbours of each point, `(point, width)`, and the most there are."""
    runs = _runs(geometry, places, length * support(taper))
    near = _near(geometry, places, length, taper, candidates, runs.order)

    def nearest(*x):
        index, weight, r = near(*x)
        key = lax.stop_gradient(jnp.where(weight > 0, r, jnp.inf))
        slot = jnp.argsort(key)[:width]
        return index[slot], weight[slot], jnp.sum(weight > 0)

    index, weight, count = _over_points(nearest, geometry, places.dtype, runs)
    # Candidates beyond the room for them may be neighbours, and count as such.
    lost = jnp.maximum(jnp.sum(runs.size, axis=-1) - candidates, 0).astype(count.dtype)
    overflow = jnp.sum(jnp.maximum(count - width, 0) + lost)
    reached = jnp.zeros(places.shape[1], bool).at[index].max(weight > 0)
    most = jnp.max(count + lost)
    return Neighbours(index, weight, overflow, reached), most


def support(taper: Callable) -> float:
    """Return where a taper ends, in lengths: its `support`, or 2."""
    return float(getattr(taper, "support", 2.0))


def _near(geometry, places, length, taper, candidates, order):
    """Make the function from runs of points to candidates and their weights."""
    known = jnp.all(jnp.isfinite(places), axis=0)
    # Double where: an unknown place must not spoil the gradient of the others.
    there = geometry.embed(jnp.where(known[None, :], places, 0))

    def near(point, start, size):
        ends = jnp.cumsum(size)
        slot = jnp.arange(candidates, dtype=size.dtype)
        run = jnp.sum(slot[:, None] >= ends[None, :], axis=-1)
        used = slot < ends[-1]
        shift = (start - (ends - size))[jnp.where(used, run, 0)]
        index = order[jnp.where(used, slot + shift, 0)]
        r = geometry.between(geometry.embed(point)[None, :], there[index]) / length
        weight = jnp.where(used, taper(jnp.where(used, r, 0)), 0)
        return jnp.where(used, index, 0), weight, r

    return near


def _over_points(function, geometry, dtype, runs):
    x = geometry.points.T.astype(dtype), runs.start, runs.size
    return lax.map(lambda x: function(*x), x, batch_size=_BLOCK)


def _runs(geometry: Geometry, places: Array, reach: Array) -> _Runs:
    """Sort the observations, and find the runs in reach of each point."""
    places, reach = lax.stop_gradient((places, reach))
    band_period, period = geometry.periods
    known = jnp.all(jnp.isfinite(places), axis=0)
    band, along = jnp.where(known[None, :], places, 0)
    points = geometry.points.astype(places.dtype)
    low, span = _extent(band, known, band_period)
    # No reach need be infinite: this one takes in everything.
    everything = span + jnp.max(jnp.abs(points)) + jnp.max(jnp.abs(band))
    everything = 1e3 * (everything + jnp.max(jnp.abs(along)))
    reach = jnp.minimum(geometry.reach(reach) * (1 + _SLACK), everything)
    height = jnp.maximum(reach / 2, span / _MOST_BANDS)
    if band_period is None:
        bands = jnp.asarray(_MOST_BANDS + 1, jnp.int32)
    else:
        bands = jnp.maximum(jnp.floor(span / height), 1)
        height, bands = span / bands, bands.astype(jnp.int32)
    # Places far away must still fit an integer, with bands to spare on either side.
    number = lambda y: jnp.floor(
        jnp.clip((y - low) / height, -2 * _MOST_BANDS, 2 * _MOST_BANDS)
    ).astype(jnp.int32)

    first, stretch = _extent(along, known, period)
    fold = lambda x: x if period is None else jnp.mod(x - first, period) + first
    # An infinite reach, or a place far away, must still fit an integer.
    quantum = lambda x: jnp.floor(
        jnp.clip((x - first) / stretch, -1, 2) * _QUANTA
    ).astype(jnp.int32)
    last = _QUANTA - 1
    within = lambda q: jnp.clip(q, 0, last)
    key = _modulo(number(band), bands, band_period) * _QUANTA
    key = key + within(quantum(fold(along)))
    key = jnp.where(known, key, jnp.iinfo(jnp.int32).max)
    key, order = lax.sort_key_val(key, jnp.arange(key.size, dtype=jnp.int32))

    here = number(points[0] - reach)[:, None]
    here = here + jnp.arange(_BANDS, dtype=jnp.int32)[None, :]
    south = low + height * here.astype(height.dtype)
    half = geometry.half_width(points[:, :, None], south, south + height, reach)
    meets = half >= 0
    if band_period is None:
        meets &= (here >= 0) & (here < bands)
    else:
        meets &= here - here[:, :1] < bands
    row = _modulo(here, bands, band_period) * _QUANTA
    half = half * (1 + _SLACK)
    centre = fold(points[1])[:, None]
    left, right = quantum(centre - half) - 1, quantum(centre + half) + 1
    if period is None:
        pieces = [(within(left), within(right))]
    else:
        whole = right - left >= last
        left, right = jnp.where(whole, 0, left), jnp.where(whole, last, right)
        # What goes over the seam comes back at the other end.
        over = jnp.where(left < 0, left + _QUANTA, 0)
        back = jnp.where(left < 0, last, jnp.where(right > last, right - _QUANTA, -1))
        pieces = [(within(left), within(right)), (over, back)]
    starts, sizes = [], []
    for a, b in pieces:
        start = jnp.searchsorted(key, row + a, side="left")
        end = jnp.searchsorted(key, row + b, side="right")
        starts.append(start)
        sizes.append(jnp.where(meets & (b >= a), end - start, 0))
    return _Runs(order, jnp.concatenate(starts, 1), jnp.concatenate(sizes, 1))


def _modulo(band, bands, period):
    return jnp.clip(band, 0, bands - 1) if period is None else band % bands


def _extent(coordinate, known, period):
    """Return where a coordinate begins and how far it stretches."""
    if period is not None:
        zero = jnp.zeros((), coordinate.dtype)
        return zero, zero + period
    low = jnp.min(jnp.where(known, coordinate, jnp.inf))
    high = jnp.max(jnp.where(known, coordinate, -jnp.inf))
    # All at one place, or nobody anywhere, still need a length to divide by.
    some = jnp.any(known)
    low = jnp.where(some, low, 0)
    span = jnp.where(some, high - low, 0)
    return low, jnp.where(span > 0, span, 1)
