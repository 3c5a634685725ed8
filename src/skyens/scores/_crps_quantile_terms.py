"""What each sorted member, a quantile of the forecast, adds to the CRPS."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float

from skyens.scores._crps import departures_of, enough_members, pull, term
from skyens.scores._members import (
    check_alpha,
    check_members,
    gather,
    score_dtype,
)
from skyens.scores._sorting import in_blocks, sort_bitonic


def crps_quantile_terms(
    ensemble: Float[Array, "..."],
    truth: Float[Array, "..."],
    *,
    alpha: float | Float[Array, ""] = 1.0,
    axis: int = 0,
    where: Bool[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Return what each sorted member adds to the CRPS; the terms add up to `crps`.

    The k-th of M sorted members is taken for the quantile of level `tau = (k - 1/2) /
    M` in the standard score, `(k - 1) / (M - 1)` in the fair one, and `alpha` of the
    way from the first to the second between them. Its term is `2 / M` times its
    quantile score, `(1 - tau) max(x - y, 0) + tau max(y - x, 0)`: never negative. The
    terms say where in the distribution the score is lost: in a tail, in the middle,
    evenly.

    Tied members have the same gradient in each of their terms, so that the gradient of
    the sum is that of `crps`.

    Args:
        ensemble: members along `axis`, in any units.
        truth: broadcasts against the ensemble without its member axis.
        alpha: 0 standard, 1 fair, 0.95 almost fair.
        axis: the member axis of `ensemble`.
        where: broadcasts against `ensemble`; members where it is False count nowhere,
            and what they leave behind the ranks of the others is 0.

    Returns:
        The terms, `(rank, *points)`, in the units and dtype of the ensemble.

    Raises:
        ValueError: as `crps` does.

    Source: Laio & Tamea (2007), Hydrol. Earth Syst. Sci. 11, 1267-1277, equation 12;
        Broecker (2012), Q. J. R. Meteorol. Soc. 138, 1611-1617.
    """
    check_members(ensemble, axis)
    dtype = score_dtype(ensemble, truth)
    seen = gather(ensemble, truth, axis, where)
    alpha = check_alpha(alpha, ensemble, axis, seen.truth.dtype)
    return _terms(alpha, *seen).astype(dtype)


@jax.custom_jvp
def _kernel(
    alpha: Float[Array, ""],
    members: Float[Array, "member *points"],
    truth: Float[Array, "*points"],
    valid: Bool[Array, "member *points"] | None,
) -> Float[Array, "member *points"]:
    count, enough = enough_members(alpha, members, valid)
    ordered = _ordered(departures_of(members, truth, valid))
    terms = term(alpha, ordered, _ranks(members), count[None])
    return jnp.where(enough[None], terms, 0)


def _tangent(primals, tangents):
    alpha, members, truth, valid = primals
    alpha_dot, members_dot, truth_dot, _ = tangents
    count, enough = enough_members(alpha, members, valid)
    departures = departures_of(members, truth, valid)
    ordered, rank, count = _ordered(departures), _ranks(members), count[None]
    above, below = pull(alpha, count - rank, count), -pull(alpha, rank - 1, count)
    slope = jnp.where(ordered > 0, above, jnp.where(ordered < 0, below, 0))
    # At the truth, midway between its one-sided slopes.
    slope = jnp.where(ordered == 0, (above + below) / 2, slope)
    slope = jnp.where(enough[None] & (rank <= count), slope, 0)
    tangent = jnp.zeros_like(members)
    if not isinstance(members_dot, SymbolicZero):
        tangent += slope * _ordered_changes(departures, ordered, members_dot)
    if not isinstance(truth_dot, SymbolicZero):
        tangent -= slope * truth_dot[None]
    if not isinstance(alpha_dot, SymbolicZero):
        ends = (_kernel(jnp.full_like(alpha, x), *primals[1:]) for x in (1, 0))
        tangent += alpha_dot * functools.reduce(jnp.subtract, ends)
    return _kernel(*primals), tangent


_kernel.defjvp(_tangent, symbolic_zeros=True)
_terms = jax.jit(_kernel)


def _ranks(members):
    ranks = jnp.arange(1, members.shape[0] + 1, dtype=members.dtype)
    return ranks.reshape(-1, *(1,) * (members.ndim - 1))


def _ordered(departures):
    size = departures.shape[0]
    flat = departures.reshape(size, -1)
    return in_blocks(sort_bitonic, flat, block=64).reshape(departures.shape)


def _ordered_changes(departures, ordered, changes):
    """Return the change of each order statistic, the mean of those tied for it."""

    # Rank by rank, and recomputed in reverse mode: no array of pairs is ever held.
    @jax.checkpoint
    def change(value):
        tied = departures == value[None]
        number = jnp.sum(tied, axis=0, dtype=departures.dtype)
        return jnp.sum(jnp.where(tied, changes, 0), axis=0) / jnp.maximum(number, 1)

    return lax.map(change, ordered)
