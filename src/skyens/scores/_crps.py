"""The continuous ranked probability score of an ensemble: standard, fair, between."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float

from skyens.scores._members import (
    check_alpha,
    check_members,
    gather,
    score_dtype,
)
from skyens.scores._sorting import in_blocks, sort_padded, sort_rows

# Measured on CPU: to 15 members all points at once are fastest, to 40 the unrolled
# network in blocks of 1024 points, then merges in blocks that fit the innermost cache.
_FUSED, _UNROLLED = 15, 40


def crps(
    ensemble: Float[Array, "..."],
    truth: Float[Array, "..."],
    *,
    alpha: float | Float[Array, ""] = 1.0,
    axis: int = 0,
    where: Bool[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Return the CRPS of the members along `axis`, point by point; lower is better.

    `alpha * fair + (1 - alpha) * standard`, where the standard score (`alpha=0`) is
    that of the empirical distribution and the fair one (`alpha=1`) is unbiased in the
    number of members. The almost fair score, `alpha=0.95`, is for training: it holds
    the one member that the fair score leaves free when all others equal the truth.

    With `z` the sorted departures from the truth it is a sum of terms that are never
    negative, `A_k max(z_k, 0) + A_(M+1-k) max(-z_k, 0)` with `A_k = 2 alpha (M - k) /
    (M (M - 1)) + (1 - alpha) (2 (M - k) + 1) / M^2`: exact at any offset. Half
    precision is accumulated in float32.

    The gradient counts pairs, with `sign(0) = 0`: equal members get equal gradients,
    and a member at the truth none from it. Forward and reverse mode work. A NaN that
    `where` does not mask makes its point NaN.

    Args:
        ensemble: members along `axis`, in any units.
        truth: broadcasts against the ensemble without its member axis.
        alpha: 0 standard, 1 fair, 0.95 almost fair. It may be traced; what lies
            outside [0, 1] then makes the score NaN.
        axis: the member axis of `ensemble`.
        where: broadcasts against `ensemble`; members where it is False count nowhere,
            as if they had never been. Points left with too few members, none or (for
            `alpha > 0`) one, score 0.

    Returns:
        The score, in the units and dtype of the ensemble. One member and `alpha=0`
        give the absolute error.

    Raises:
        ValueError: `alpha` lies outside [0, 1], there are no members, or one and
            `alpha > 0`, or the shapes do not broadcast.

    Source: Gneiting & Raftery (2007), J. Amer. Stat. Assoc. 102, 359-378; fair: Ferro
        (2014), Q. J. R. Meteorol. Soc. 140, 1917-1923; almost fair: Lang et al.
        (2024), arXiv:2412.15832.
    """
    check_members(ensemble, axis)
    dtype = score_dtype(ensemble, truth)
    seen = gather(ensemble, truth, axis, where)
    alpha = check_alpha(alpha, ensemble, axis, seen.truth.dtype)
    return _crps(alpha, *seen).astype(dtype)


@jax.custom_jvp
def _kernel(
    alpha: Float[Array, ""],
    members: Float[Array, "member *points"],
    truth: Float[Array, "*points"],
    valid: Bool[Array, "member *points"] | None,
) -> Float[Array, "*points"]:
    size = members.shape[0]
    if size <= _FUSED:
        return _value_unrolled(alpha, members, truth, valid)
    unrolled = size <= _UNROLLED
    value = functools.partial(_value_unrolled if unrolled else _value_staged, alpha)
    flat = _flatten(members, truth, valid)
    return in_blocks(value, *flat, block=1024 if unrolled else 64).reshape(truth.shape)


def _tangent(primals, tangents):
    alpha, members, truth, valid = primals
    alpha_dot, members_dot, truth_dot, _ = tangents
    if members.shape[0] <= _FUSED:
        slope = _slope(alpha, members, truth, valid)
    else:
        kernel = functools.partial(_slope, alpha)
        flat = _flatten(members, truth, valid)
        slope = in_blocks(kernel, *flat, block=256).reshape(members.shape)
    tangent = jnp.zeros_like(truth)
    # Moving truth and members together changes nothing: the slopes sum to zero.
    if not isinstance(members_dot, SymbolicZero):
        tangent += jnp.sum(slope * members_dot, axis=0)
    if not isinstance(truth_dot, SymbolicZero):
        tangent -= jnp.sum(slope, axis=0) * truth_dot
    if not isinstance(alpha_dot, SymbolicZero):
        # Linear in `alpha`, from the standard score to the fair one.
        ends = (_kernel(jnp.full_like(alpha, x), *primals[1:]) for x in (1, 0))
        tangent += alpha_dot * functools.reduce(jnp.subtract, ends)
    return _kernel(*primals), tangent


_kernel.defjvp(_tangent, symbolic_zeros=True)
_crps = jax.jit(_kernel)


def _flatten(members, truth, valid):
    size = members.shape[0]
    valid = None if valid is None else valid.reshape(size, -1)
    return members.reshape(size, -1), truth.reshape(-1), valid


def enough_members(
    alpha: Float[Array, ""],
    members: Float[Array, "member *points"],
    valid: Bool[Array, "member *points"] | None,
) -> tuple[Float[Array, "..."], Bool[Array, "..."]]:
    """Return the members of each point, never too few, and whether they were enough."""
    if valid is None:
        count = jnp.full((1,) * (members.ndim - 1), members.shape[0], members.dtype)
    else:
        count = jnp.sum(valid, axis=0, dtype=members.dtype)
    least = jnp.where(alpha > 0, 2, 1).astype(count.dtype)
    return jnp.maximum(count, 1), count >= least


def pull(alpha: Float[Array, ""], after, count):
    """Return `A_k`, the pull of the truth on a member with `after` members after it."""
    fair = 2 * after / (count * jnp.maximum(count - 1, 1))
    return (1 - alpha) * (2 * after + 1) / count**2 + alpha * fair


def term(alpha, departure, rank, count):
    """Return what sorted departures of that rank (from 1) add to the score."""
    above = pull(alpha, count - rank, count) * departure
    below = -pull(alpha, rank - 1, count) * departure
    terms = jnp.where(departure > 0, above, below)
    return jnp.where(rank <= count, terms, 0)


def _value_unrolled(alpha, members, truth, valid):
    count, enough = enough_members(alpha, members, valid)
    rows = sort_rows(list(departures_of(members, truth, valid)))
    terms = [term(alpha, row, k, count) for k, row in enumerate(rows, start=1)]
    return jnp.where(enough, sum(terms), 0)


def _value_staged(alpha, members, truth, valid):
    count, enough = enough_members(alpha, members, valid)
    departures = sort_padded(departures_of(members, truth, valid))
    rank = jnp.arange(1, departures.shape[0] + 1, dtype=members.dtype)[:, None]
    terms = term(alpha, departures, rank, count[None])
    # A NaN may have moved behind the members that count.
    terms = jnp.where(jnp.isnan(departures), jnp.nan, terms)
    return jnp.where(enough, _sum_rows(terms), 0)


def _sum_rows(rows: Float[Array, "member points"]) -> Float[Array, "points"]:
    """Return the sum over the leading axis, whose length is a power of two.

    Up to 64 rows are added by one operation. Given more than one thread, the CPU would
    leave a `sum` to its pool of them, and wait for it, at every block.
    """
    while (length := rows.shape[0]) > 1:
        groups = rows.reshape(min(length, 64), -1, rows.shape[1])
        parts = list(groups)
        while len(parts) > 1:
            parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]
        rows = parts[0]
    return rows[0]


def departures_of(members, truth, valid):
    departures = members - truth[None]
    # What is masked sorts behind the members that count.
    return departures if valid is None else jnp.where(valid, departures, jnp.inf)


def _slope(
    alpha: Float[Array, ""],
    members: Float[Array, "member *points"],
    truth: Float[Array, "*points"],
    valid: Bool[Array, "member *points"] | None,
) -> Float[Array, "member *points"]:
    """Return the derivative of the score by each member.

    `sign(z_i) / M - (M - 1 + alpha) / (M^2 (M - 1)) sum_j sign(x_i - x_j)`, counted in
    a loop over `j`, so that nothing of size members squared is ever held.
    """
    count, enough = enough_members(alpha, members, valid)
    masks = jnp.ones((members.shape[0],) + (1,) * truth.ndim, bool)
    masks = masks if valid is None else valid

    def compare(balance, other):
        value, present = other
        balance += jnp.where(present[None], _sign(members, value[None]), 0)
        return balance, None

    start = jnp.zeros_like(members)
    balance, _ = lax.scan(compare, start, (members, masks))
    fair = alpha / (count * jnp.maximum(count - 1, 1))
    repulsion = (1 - alpha) / count**2 + fair
    slope = _sign(members, truth[None]) / count[None] - repulsion[None] * balance
    return jnp.where(enough[None] & masks, slope, 0)


def _sign(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the sign of `a - b`, which rounding cannot turn to 0."""
    return (a > b).astype(a.dtype) - (a < b).astype(a.dtype)
