"""Kernel scores: a proper score from any positive definite kernel."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from skyens.scores._crps import enough_members
from skyens.scores._events import gather_events
from skyens.scores._members import (
    check_alpha,
    check_members,
    score_dtype,
)

Kernel = Callable[[Float[Array, "event ..."], Float[Array, "event ..."]], Array]


def kernel_score(
    ensemble: Float[Array, "..."],
    truth: Float[Array, "..."],
    *,
    kernel: Kernel,
    alpha: float | Float[Array, ""] = 1.0,
    axis: int = 0,
    event_axes: tuple[int, ...] = (),
    where: Bool[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Return the kernel score of the members along `axis`; lower is better.

    `E k(X, X') / 2 - E k(X, y) + k(y, y) / 2`, half the squared maximum mean
    discrepancy between members and truth. For `alpha=0` the expectations are over the
    empirical distribution, and the score is not negative; for `alpha=1` no member is
    paired with itself, and it is unbiased in the number of members. With the kernel
    `|x| + |y| - |x - y|` it is the energy score.

    In a loop over members: no more than the ensemble's own size is held beside it, in
    the gradient too. It is as smooth as the kernel. A NaN that `where` does not mask
    makes its point NaN.

    Args:
        ensemble: members along `axis`, in any units.
        truth: broadcasts against the ensemble without its member axis.
        kernel: symmetric and positive definite, such as `GaussianKernel`. Called with
            two arrays of equal shapes that lead with the event, a vector of its
            entries, it returns an array without this axis.
        alpha: 0 standard, 1 fair. It may be traced, as in `crps`.
        axis: the member axis of `ensemble`.
        event_axes: the axes that make up one event, as in `energy_score`; by default
            none, and each point is scored by itself.
        where: a mask against `ensemble`, of members or entries, as in `energy_score`;
            entries left out are 0 in both arguments of `kernel`.

    Returns:
        The score of each point, in units of the kernel.

    Raises:
        ValueError: `alpha` lies outside [0, 1], there are no members, or one and
            `alpha > 0`, `event_axes` are not there, `kernel` returns another shape, or
            the shapes do not broadcast.

    Source: Gneiting & Raftery (2007), J. Amer. Stat. Assoc. 102, 359-378, section 5.
    """
    check_members(ensemble, axis)
    (members, actual, valid, _), shape = gather_events(
        ensemble, truth, axis, event_axes, where
    )
    alpha = check_alpha(alpha, ensemble, axis, actual.dtype)
    itself_of_truth = kernel(actual, actual)
    if itself_of_truth.shape != actual.shape[1:]:
        raise ValueError(
            "`kernel` must sum over the leading axis, that of the event, and return "
            f"the shape {actual.shape[1:]}, got {itself_of_truth.shape}."
        )
    count, enough = enough_members(alpha, members[:, 0], valid)
    counted = jnp.ones((members.shape[0], 1), bool) if valid is None else valid
    events = jnp.moveaxis(members, 1, 0)  # (event, member, points)
    index = jnp.arange(members.shape[0])

    def to_all(place):
        places = jnp.broadcast_to(place[:, None], events.shape)
        return jnp.where(counted, kernel(events, places), 0)

    # Without residuals: the backward pass computes each member's kernels again.
    @jax.checkpoint
    def add(total, other):
        place, here, number = other
        apart = here[None] & (index != number)[:, None]
        return total + jnp.sum(jnp.where(apart, to_all(place), 0), axis=0), None

    start = jnp.zeros(actual.shape[1:], actual.dtype)
    pairs, _ = lax.scan(add, start, (members, counted, index))
    itself = jnp.sum(jnp.where(counted, kernel(events, events), 0), axis=0)
    fair = pairs / (count * jnp.maximum(count - 1, 1))
    among = alpha * fair + (1 - alpha) * (pairs + itself) / count**2
    between = jnp.sum(to_all(actual), axis=0) / count
    score = (among + itself_of_truth) / 2 - between
    score = jnp.where(enough, score, 0).reshape(shape)
    return score.astype(score_dtype(ensemble, truth))


class GaussianKernel(eqx.Module):
    """`exp(-|x - y|^2 / (2 length^2))`, for `kernel_score`."""

    length: Float[Array, ""]  # in units of the ensemble

    def __init__(self, length: float | Float[Array, ""]):
        """Set the distance at which events are told apart, in units of the ensemble.

        Raises:
            EquinoxRuntimeError: `length` is not positive (checked under jit too).
        """
        self.length = _check_length(length)

    def __call__(
        self, first: Float[Array, "event ..."], second: Float[Array, "event ..."]
    ) -> Float[Array, "..."]:
        """Return the kernel of events along the leading axis, at most 1."""
        return jnp.exp(-_scaled_square(first, second, self.length) / 2)


class InverseMultiquadricKernel(eqx.Module):
    """`1 / sqrt(1 + |x - y|^2 / length^2)`, for `kernel_score`.

    It falls off slowly, so that members far from the truth still feel it.
    """

    length: Float[Array, ""]  # in units of the ensemble

    def __init__(self, length: float | Float[Array, ""]):
        """Set the distance at which events are told apart, in units of the ensemble.

        Raises:
            EquinoxRuntimeError: `length` is not positive (checked under jit too).
        """
        self.length = _check_length(length)

    def __call__(
        self, first: Float[Array, "event ..."], second: Float[Array, "event ..."]
    ) -> Float[Array, "..."]:
        """Return the kernel of events along the leading axis, at most 1."""
        return lax.rsqrt(1 + _scaled_square(first, second, self.length))


def _check_length(length: float | Float[Array, ""]) -> Float[Array, ""]:
    length = jnp.asarray(length, float)
    return eqx.error_if(length, ~(length > 0), "`length` must be positive.")


def _scaled_square(first: Array, second: Array, length: Array) -> Array:
    return jnp.sum(((first - second) / length.astype(first.dtype)) ** 2, axis=0)
