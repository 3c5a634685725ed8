"""What verification statistics have in common: sums that update and merge.

A statistic holds settings; its state holds weighted sums, one `Sum` a name, and never
an average or a ratio, so that states merge in any order and the roots and ratios are
taken once, at the end.
"""

from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, DTypeLike, Float

State = TypeVar("State")


@runtime_checkable
class Statistic(Protocol[State]):
    """A monoid over forecasts: `init`, `update`, `merge`, `finalize`.

    `init(shape)` says which axes stay: `shape` is that of the leading axes (regions,
    lead times, blocks of time) of what is scored; the axes after them, usually
    latitude and longitude, are summed over.

    `update(state, ensemble, truth, weights=None, where=None)` adds forecasts:

    - `truth` is `(*shape, *field)`, and `ensemble` leads with one more, the members;
      either has length 1 along axes on which it does not depend.
    - `weights`, such as `grid.weights[:, None]`, broadcast against `truth`, and
      `where` against `ensemble`, both from the right: a mask of points, or one of
      members too. With regions as axis of `weights` alone, `truth` has a 1 there.
    - Members where `where` is False do not count; a point left with too few of them
      for the statistic has weight 0. A NaN that is not masked makes its sums NaN.

    `finalize(state)` gives the value, with `shape` in front; it is 0 where nothing
    valid was seen, which `state["weight"].value == 0` tells.

    A statistic of whole fields or vectors (`Spectra`, some `MeanScore`) says in
    `event_axes` how many trailing axes these have: along them `weights` have length 1.

    States are pytrees of fixed structure: they go through `lax.scan` and `jax.vmap`,
    into a checkpoint, and across devices by `all_merge`.
    """

    def init(
        self, shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> State:
        """Return the state that has seen nothing."""
        ...

    def update(
        self,
        state: State,
        ensemble: Float[Array, "member *points"],
        truth: Float[Array, "*points"],
        weights: Float[Array, "..."] | None = None,
        where: Bool[Array, "..."] | None = None,
    ) -> State:
        """Return the state that has seen these forecasts too."""
        ...

    def merge(self, first: State, second: State) -> State:
        """Return the state that has seen what both have."""
        ...

    def finalize(self, state: State) -> Any:
        """Return the statistic."""
        ...


@runtime_checkable
class Monoid(Protocol[State]):
    """What has states that merge: any `Statistic`, and `MemberStream`."""

    def merge(self, first: State, second: State) -> State:
        """Return the state that has seen what both have."""
        ...


def all_merge(
    statistic: Monoid[State], state: State, axis_name: str | tuple[str, ...]
) -> State:
    """Return the merge of the states along a mapped axis, the same everywhere.

    For use inside `jax.shard_map`, where the result is replicated, and inside
    `jax.vmap(..., axis_name=...)`. The states merge in the order of the axis.
    """
    # A sum in which each device fills a slot of its own is a gather whose result counts
    # as replicated, so that `shard_map` may return it so.
    index = lax.axis_index(axis_name)
    mine = jnp.arange(lax.axis_size(axis_name), dtype=index.dtype) == index
    place = lambda x: jnp.where(mine.reshape(-1, *(1,) * x.ndim), x[None], 0)
    states = lax.psum(jax.tree.map(place, state), axis_name)
    first = jax.tree.map(lambda x: x[0], states)
    rest = jax.tree.map(lambda x: x[1:], states)
    return lax.scan(lambda a, b: (statistic.merge(a, b), None), first, rest)[0]
