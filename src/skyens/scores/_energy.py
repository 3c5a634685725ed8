"""The energy score: the CRPS of vectors."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float

from skyens.scores._crps import enough_members
from skyens.scores._events import gather_events
from skyens.scores._members import (
    check_alpha,
    check_members,
    score_dtype,
)
from skyens.scores._sorting import in_blocks

# Numbers of one block that stay in a core's cache, with what is made of them.
_CACHED = 2**15
# Entries of an event up to which they are added row by row.
_UNROLLED = 16


def energy_score(
    ensemble: Float[Array, "..."],
    truth: Float[Array, "..."],
    *,
    alpha: float | Float[Array, ""] = 1.0,
    beta: float = 1.0,
    axis: int = 0,
    event_axes: tuple[int, ...] = (-1,),
    where: Bool[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Return the energy score of the members along `axis`; lower is better.

    `mean |x_i - y|^beta - c / 2 sum_ij |x_i - x_j|^beta` with Euclidean norms over the
    event and `c = alpha / (M (M - 1)) + (1 - alpha) / M^2`: the standard score for
    `alpha=0`, and for `alpha=1` the fair one, unbiased in the number of members. Events
    of one dimension and `beta=1` give the CRPS. Give the dimensions comparable units.

    Norms are those of differences, exact at any offset as long as their squares are
    normal numbers (in float32, differences of 1e-18 to 1e18). Half precision is
    accumulated in float32. No more than the ensemble's own size is held beside it, in
    the gradient too.

    The gradient counts 0 for a pair at zero distance: equal members get equal
    gradients. Forward and reverse mode work, and second derivatives. A NaN that `where`
    does not mask makes its point NaN.

    Args:
        ensemble: members along `axis`, in any units.
        truth: broadcasts against the ensemble without its member axis.
        alpha: 0 standard, 1 fair. It may be traced, as in `crps`.
        beta: exponent of the norm, in (0, 2]; with 2 only the mean is scored.
        axis: the member axis of `ensemble`.
        event_axes: the axes that make up one vector, of what the truth and one member
            broadcast to; none leave the points themselves.
        where: broadcasts against `ensemble`. A dimension of the event that no member
            has is left out of its point, truth and all; a member that lacks one of the
            others does not count there. Points left with too few members score 0.

    Returns:
        The score of each point, without members and events, in units of the ensemble
        to the power of `beta`.

    Raises:
        ValueError: `alpha` or `beta` lies outside its interval, there are no members,
            or one and `alpha > 0`, `event_axes` are not there, or the shapes do not
            broadcast.

    Source: Gneiting & Raftery (2007), J. Amer. Stat. Assoc. 102, 359-378, section 4.3.
    """
    check_members(ensemble, axis)
    if not 0 < beta <= 2:
        raise ValueError(f"`beta` must lie in (0, 2], got {beta}.")
    events, shape = gather_events(ensemble, truth, axis, event_axes, where)
    alpha = check_alpha(alpha, ensemble, axis, events.truth.dtype)
    score = _energy(float(beta), alpha, events.members, events.truth, events.valid)
    return score.reshape(shape).astype(score_dtype(ensemble, truth))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _kernel(
    beta: float,
    alpha: Float[Array, ""],
    members: Float[Array, "member event points"],
    truth: Float[Array, "event points"],
    valid: Bool[Array, "member points"] | None,
) -> Float[Array, " points"]:
    value = functools.partial(_value, beta, alpha)
    return in_blocks(value, members, truth, valid, block=_block(members))


def _tangent(beta, primals, tangents):
    alpha, members, truth, _ = primals
    alpha_dot, members_dot, truth_dot, _ = tangents
    slope = _slopes(beta, *primals)
    # Homogeneous of degree `beta`: by Euler the slopes make up the score.
    value = jnp.sum(slope * (members - truth[None]), axis=(0, 1)) / beta
    tangent = jnp.zeros_like(value)
    # Moving truth and members together changes nothing: the slopes sum to zero.
    if not isinstance(members_dot, SymbolicZero):
        tangent += jnp.sum(slope * members_dot, axis=(0, 1))
    if not isinstance(truth_dot, SymbolicZero):
        tangent -= jnp.sum(jnp.sum(slope, axis=0) * truth_dot, axis=0)
    if not isinstance(alpha_dot, SymbolicZero):
        # Linear in `alpha`, from the standard score to the fair one.
        ends = (_kernel(beta, jnp.full_like(alpha, x), *primals[1:]) for x in (1, 0))
        tangent += alpha_dot * functools.reduce(jnp.subtract, ends)
    return value, tangent


_kernel.defjvp(_tangent, symbolic_zeros=True)
_energy = jax.jit(_kernel, static_argnums=0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _slopes(beta, alpha, members, truth, valid):
    slope = functools.partial(_slope, beta, alpha)
    size, event, points = members.shape
    flat = lambda x, y, v: slope(x, y, v).reshape(size * event, -1)
    found = in_blocks(flat, members, truth, valid, block=_block(members))
    return found.reshape(size, event, points)


@_slopes.defjvp
def _curvature(beta, primals, tangents):
    valid = primals[-1]
    slope = lambda alpha, members, truth: _slope(
        beta, alpha, members, truth, valid, balance=_balance_lean
    )
    return jax.jvp(slope, tuple(primals[:-1]), tuple(tangents[:-1]))


def _block(members: Array) -> int:
    per_point = max(members.shape[0] * members.shape[1], 1)
    return max(_CACHED // per_point // 16 * 16, 16)


def _coefficients(alpha, members, valid):
    """Return weights of members and of pairs, and which members count."""
    count, enough = enough_members(alpha, members[:, 0], valid)
    fair = alpha / (count * jnp.maximum(count - 1, 1))
    pairs = jnp.where(enough, (1 - alpha) / count**2 + fair, 0)
    counted = jnp.ones((members.shape[0], 1), bool) if valid is None else valid
    return jnp.where(enough, 1 / count, 0), pairs, counted.astype(members.dtype)


def _value(beta, alpha, members, truth, valid):
    single, pairs, counted = _coefficients(alpha, members, valid)

    def add(total, other):
        place, here = other
        distance = _power(_square(members, place), beta / 2)
        return total + here * jnp.sum(counted * distance, axis=0), None

    spread, _ = lax.scan(add, jnp.zeros_like(truth[0]), (members, counted))
    error = jnp.sum(counted * _power(_square(members, truth), beta / 2), axis=0)
    return single * error - pairs / 2 * spread


def _balance(
    beta: float,
    members: Float[Array, "member event points"],
    counted: Float[Array, "member #points"],
) -> Float[Array, "member event points"]:
    """Return `sum_j u(x_i - x_j)`, `u(v) = |v|^(beta - 2) v`, in a loop over `j`.

    Nothing of size members squared is ever held. Each turn adds what its weights give,
    and prepares those of the next: were they used at once, the compiler would compute
    them anew for each entry of the event.
    """
    weigh = lambda place: _power(_square(members, place), beta / 2 - 1)

    def add(carry, other):
        total, weights = carry
        place, following, here = other
        total += (members - place[None]) * weights[:, None]
        return (total, here[None] * weigh(following)), None

    start = jnp.zeros_like(members), counted[:1] * weigh(members[0])
    ahead = (jnp.roll(x, -1, axis=0) for x in (members, counted))
    (balance, _), _ = lax.scan(add, start, (members, *ahead))
    return balance


def _balance_lean(beta, members, counted):
    """Return the same in a loop of which a backward pass keeps nothing."""

    @jax.checkpoint
    def add(total, other):
        place, here = other
        pull = here[None, None] * _pull(beta, members, place)
        return total + pull, None

    return lax.scan(add, jnp.zeros_like(members), (members, counted))[0]


def _slope(
    beta: float,
    alpha: Float[Array, ""],
    members: Float[Array, "member event points"],
    truth: Float[Array, "event points"],
    valid: Bool[Array, "member points"] | None,
    balance=_balance,
) -> Float[Array, "member event points"]:
    """Return the derivative of the score by each member."""
    single, pairs, counted = _coefficients(alpha, members, valid)
    slope = single[None, None] * _pull(beta, members, truth)
    slope -= pairs[None, None] * balance(beta, members, counted)
    return beta * counted[:, None] * slope


def _pull(beta, members, place):
    gap = members - place[None]
    return gap * _power(_square(members, place), beta / 2 - 1)[:, None]


def _square(
    members: Float[Array, "member event points"], place: Float[Array, "event points"]
) -> Float[Array, "member points"]:
    event = place.shape[0]
    if not 0 < event <= _UNROLLED:
        return jnp.sum((members - place[None]) ** 2, axis=1)
    # Row by row is some times faster on CPU than a sum over a middle axis.
    rows = [(members[:, k] - place[None, k]) ** 2 for k in range(event)]
    return functools.reduce(jnp.add, rows)


def _power(square: Float[Array, "..."], exponent: float) -> Float[Array, "..."]:
    """Return the power of a squared norm, 0 with derivatives 0 at the norm 0."""
    zero = square == 0
    square = jnp.where(zero, 1, square)
    if exponent == 0.5:
        power = jnp.sqrt(square)
    elif exponent == -0.5:
        power = lax.rsqrt(square)
    else:
        power = square**exponent
    return jnp.where(zero, 0, power)
