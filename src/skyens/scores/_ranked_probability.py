"""The ranked probability score: the Brier score, added up over thresholds."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from skyens.scores._brier import brier_of_errors
from skyens.scores._checks import check_known
from skyens.scores._members import (
    check_alpha,
    check_members,
    gather,
    score_dtype,
)


def ranked_probability_score(
    ensemble: Float[Array, "..."],
    truth: Float[Array, "..."],
    *,
    edges: Sequence[float] | Float[Array | np.ndarray, "edge ..."],
    alpha: float | Float[Array, ""] = 1.0,
    axis: int = 0,
    where: Bool[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Return the sum over `edges` of the Brier score of lying above the edge.

    The `K` edges part the values into `K + 1` categories; what lies on an edge belongs
    to the lower one. The sum is not divided by `K`. Times the step between edges it
    tends to the CRPS as they get dense. It counts members and has no gradient.

    Args:
        ensemble: members along `axis`, in any units.
        truth: broadcasts against the ensemble without its member axis.
        edges: ascending, in the units of the ensemble, `(edge,)`, or for each point,
            `(edge, ...)`, such as terciles of a climatology, broadcast to the points.
        alpha: 0 standard, 1 fair: unbiased in the number of members.
        axis: the member axis of `ensemble`.
        where: broadcasts against `ensemble`; members where it is False do not count.

    Returns:
        The score, from 0 to `K`, in the dtype of the ensemble.

    Raises:
        ValueError: as `crps` does, or there are no edges, or they do not broadcast.
        EquinoxRuntimeError: known edges do not ascend.

    Source: Epstein (1969), J. Appl. Meteor. 8, 985-987; fair: Ferro (2014), Q. J. R.
        Meteorol. Soc. 140, 1917-1923.
    """
    check_members(ensemble, axis)
    dtype = score_dtype(ensemble, truth)
    seen = gather(ensemble, truth, axis, where)
    alpha = check_alpha(alpha, ensemble, axis, seen.truth.dtype)
    thresholds = _check_edges(edges, seen.truth)
    lost = jnp.isnan(seen.members).any(axis=0) | jnp.isnan(seen.truth)

    def add(total, edge):
        above = (seen.members > edge[None]).astype(edge.dtype)
        errors = seen.masked(above - (seen.truth > edge).astype(edge.dtype)[None])
        return total + brier_of_errors(errors, seen.count, alpha), None

    # Edge after edge, for the memory of one.
    start = jnp.where(lost, jnp.nan, jnp.zeros_like(seen.truth))
    return lax.scan(add, start, thresholds)[0].astype(dtype)


def _check_edges(edges, truth):
    edges = jnp.asarray(edges)
    if edges.ndim == 0 or edges.shape[0] == 0:
        raise ValueError(f"`edges` needs at least 1 edge, got shape {edges.shape}.")
    if not isinstance(edges, Tracer):
        ascending = lambda steps: ~(steps <= 0)
        steps = jnp.diff(edges, axis=0)
        check_known("edges", "ascending, and their steps positive", steps, ascending)
    edges = edges.astype(truth.dtype)
    if edges.ndim == 1:
        edges = edges.reshape(-1, *(1,) * truth.ndim)
    else:
        missing = max(truth.ndim - edges.ndim + 1, 0)
        edges = jnp.expand_dims(edges, tuple(range(1, 1 + missing)))
    try:
        return jnp.broadcast_to(edges, (edges.shape[0], *truth.shape))
    except ValueError:
        raise ValueError(
            f"`edges` of shape {edges.shape} lead with edges; the rest does not "
            f"broadcast to the points, {truth.shape}."
        ) from None
