"""Particle filters: what they share, and the bootstrap filter.

They take a plain ensemble (equal weights) or a `Weighted` one, and return a `Weighted`
one. They see the law of the errors itself, Gaussian or not. `info.log_evidence` is the
logarithm of an unbiased estimate of the density of the observation given those before
it (unless a regularisation moved the members), and `info.effective_size` is that of the
weights after it, before any resampling.

A member that is not finite, or shows an unmasked NaN, gets the weight 0, and a
resampling replaces it. If no member could have given the observation, the weights stay
as they were, and the log-evidence is -inf. If everything is masked, the background
comes back as it is.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Key, PyTree, Scalar

from skyens.assimilation._ensemble import (
    Info,
    as_pytree,
    counts,
    matmul,
    predict_members,
    split,
    wide,
)
from skyens.assimilation._particle_noise import healthy
from skyens.assimilation._resampling import Systematic
from skyens.assimilation._weighted import (
    Weighted,
    as_weighted,
    effective_size,
    normalise,
    unbias,
    weighted_anomalies,
    weighted_mean,
)
from skyens.observations import Error, Observation

LogWeights = Float[Array, "member"]
Predictions = Float[Array, "member *observation"]


class BootstrapFilter(eqx.Module):
    """Weigh members by their likelihood, and resample them when few of them count.

    The model's noise belongs to the step. Where the model has none, copies need a
    `regularisation`: `BootstrapFilter(regularisation=Kernel())` is the regularised
    particle filter.

    A whole member is copied, leaves of integers included. Its gradient does not see the
    resampling, see `OptimalTransport` for one that it sees.

    Sources: Gordon, Salmond & Smith (1993), IEE Proc. F 140, 107-113; Musso, Oudjane &
    Le Gland (2001) for the regularised filter.
    """

    threshold: Float[Array, ""]
    resampling: Callable[..., Any]
    regularisation: Callable[..., Any] | None
    where: Callable[[Any], Any] | None = eqx.field(static=True)

    def __init__(
        self,
        threshold: float | Float[Array, ""] = 0.5,
        *,
        resampling: Callable[..., Any] = Systematic(),
        regularisation: Callable[..., Any] | None = None,
        where: Callable[[Any], Any] | None = None,
    ):
        """Set when and how to resample.

        Args:
            threshold: resample when the effective size is at most this share of the
                members; 1 always, 0 never.
            resampling: `(weighted, *, key) -> members`, `Systematic()` say.
            regularisation: `(members, ancestors, before, *, key) -> members`, after a
                resampling; see `Kernel`.
            where: the part of the state to update; everything if None.

        Raises:
            EquinoxRuntimeError: `threshold` is negative.
        """
        self.threshold = share("threshold", threshold)
        self.resampling = as_pytree(resampling)
        self.regularisation = (
            None if regularisation is None else as_pytree(regularisation)
        )
        self.where = where

    def __call__(
        self,
        background: PyTree[Array] | Weighted,
        observation: Observation,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Weighted, Info]:
        """Return the weighted analysis, and what there is to say of it.

        Raises:
            ValueError: there are fewer than two members, leaves disagree on their
                number, or the resampling needs a key and has none.
        """
        before = as_weighted(background)
        predictions, likelihood = see(before.members, observation)
        active = jnp.any(observation.mask)
        weighted, log_evidence = reweight(before, likelihood, active)
        analysis = renew(
            weighted,
            active,
            self.threshold,
            self.resampling,
            self.regularisation,
            self.where,
            key=key,
        )
        info = describe(
            observation,
            (predictions, before.log_weights),
            (predictions, weighted.log_weights),
            log_evidence,
        )
        return analysis, info


def see(
    members: PyTree[Array], observation: Observation
) -> tuple[Predictions, LogWeights]:
    """Return what members show, and its log-likelihood: -inf for those not finite.

    These show what a healthy one shows, so that no NaN reaches a derivative.
    """
    fine = healthy(members)
    members = jax.tree.map(lambda leaf: heal(leaf, fine), members)
    predictions = predict_members(members, observation)
    predictions = predictions.astype(wide(predictions.dtype))
    wrong = ~jnp.isfinite(predictions) & observation.mask[None]
    fine = fine & ~jnp.any(wrong.reshape(len(wrong), -1), axis=1)
    predictions = jnp.where(jnp.isfinite(predictions), predictions, 0)

    def one(prediction):
        law = observation.law(prediction)
        return law.log_prob(observation.residual(prediction), observation.mask)

    return predictions, jnp.where(fine, jax.vmap(one)(predictions), -jnp.inf)


def heal(leaf: Array, fine: Bool[Array, "member"]) -> Array:
    """Return a leaf with a copy of a fine member in place of each that is not."""
    if not eqx.is_inexact_array(leaf):
        return leaf
    stand_in = leaf[jnp.argmax(fine)][None]
    return jnp.where(fine.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, stand_in)


def reweight(
    before: Weighted, log_likelihood: LogWeights, active: Bool[Array, ""]
) -> tuple[Weighted, Scalar]:
    """Return the ensemble with the weights of the posterior, and the log-evidence."""
    change = log_likelihood.astype(before.log_weights.dtype)
    posterior, log_evidence = normalise(before.log_weights + change)
    known = active & (log_evidence > -jnp.inf)
    log_weights = jnp.where(known, posterior, before.log_weights)
    log_evidence = jnp.where(active, log_evidence, 0)
    return with_weights(before, log_weights), log_evidence


def renew(
    weighted: Weighted,
    active: Bool[Array, ""],
    threshold: Float[Array, ""],
    resampling: Callable[..., Any],
    regularisation: Callable[..., Any] | None,
    where: Callable[[Any], Any] | None,
    *,
    key: Key[Array, ""] | None,
) -> Weighted:
    """Return the ensemble resampled, if `active` and few members count."""
    size = len(weighted.log_weights)
    first, second = (None, None) if key is None else jr.split(key)
    limit = threshold.astype(weighted.log_weights.dtype) * size
    needed = active & (effective_size(weighted.log_weights) <= limit)

    def resample(weighted):
        moved, still = part_to_move(weighted.members, where)
        before = with_members(weighted, moved)
        members, ancestors = trace(before, resampling, key=first)
        if regularisation is not None:
            members = regularisation(members, ancestors, before, key=second)
        members = eqx.combine(members, still)
        equal, _ = normalise(jnp.zeros_like(weighted.log_weights))
        return with_weights(with_members(weighted, members), equal)

    return jax.lax.cond(needed, resample, lambda weighted: weighted, weighted)


def part_to_move(
    members: PyTree[Array], where: Callable[[Any], Any] | None
) -> tuple[PyTree[Array | None], PyTree[Array | None]]:
    """Return what is copied and what stays: whole members are copied if None.

    A clock or a regime then belongs to its member, unlike in `split`.
    """
    if where is None:
        return members, jax.tree.map(lambda _: None, members)
    return split(members, where)


def trace(
    weighted: Weighted, resampling: Callable[..., Any], *, key: Key[Array, ""] | None
) -> tuple[PyTree[Array], Array]:
    """Return resampled members, and the index that each had before."""
    index = jnp.arange(len(weighted.log_weights), dtype=jnp.int32)
    return resampling(with_members(weighted, (weighted.members, index)), key=key)


def describe(
    observation: Observation,
    background: tuple[Predictions, LogWeights],
    analysis: tuple[Predictions, LogWeights],
    log_evidence: Scalar,
    noise: Float[Array, "observation observation"] | None = None,
    iterations: Array | None = None,
    converged: Array | None = None,
) -> Info:
    """Return the info of a weighted analysis, from predictions before and after it.

    The degrees of freedom are the variance of the predictions that remains, over that
    of the errors; for Gaussians it is the trace of the influence matrix. `noise` is the
    covariance of whitened predictions that the background's do not yet show.
    """
    predictions, log_weights = background
    _, _, remaining = whitened(observation, *analysis)
    remaining = _root(remaining, analysis[1])
    return Info(
        **counts(observation),
        chi_square=consistency(observation, predictions, log_weights, noise),
        degrees_of_freedom=jnp.sum(remaining**2),
        iterations=iterations,
        converged=converged,
        log_evidence=log_evidence,
        effective_size=effective_size(analysis[1]),
    )


def consistency(
    observation: Observation,
    predictions: Predictions,
    log_weights: LogWeights,
    noise: Float[Array, "observation observation"] | None = None,
) -> Scalar:
    """Return the squared innovation over what is expected of it, see `Info`."""
    error, mean, anomalies = whitened(observation, predictions, log_weights)
    anomalies = _root(anomalies, log_weights)
    innovation = error.whiten(observation.residual(mean), observation.mask).reshape(-1)
    if noise is not None or anomalies.shape[1] <= len(anomalies):
        covariance = matmul(anomalies.T, anomalies)
        covariance = covariance if noise is None else covariance + noise
        total = jnp.eye(len(covariance), dtype=covariance.dtype) + covariance
        square = jnp.sum(innovation * _solve(total, innovation))
    else:
        total = jnp.eye(len(anomalies), dtype=anomalies.dtype)
        total = total + matmul(anomalies, anomalies.T)
        shown = matmul(anomalies, innovation)
        square = jnp.sum(innovation**2) - jnp.sum(shown * _solve(total, shown))
    used = jnp.maximum(jnp.sum(observation.mask), 1)
    return square / used.astype(square.dtype)


def whitened(
    observation: Observation, predictions: Predictions, log_weights: LogWeights
) -> tuple[Error, Float[Array, "*observation"], Float[Array, "member observation"]]:
    """Return the error at the mean prediction, that mean, and whitened anomalies.

    These are flat, and 0 where masked and for members without weight.
    """
    weights = jnp.exp(log_weights).astype(predictions.dtype)
    mean = weighted_mean(predictions, weights)
    error = observation.gaussian_error(mean)
    anomalies = weighted_anomalies(predictions, weights)
    anomalies = jnp.where(observation.mask[None], anomalies, 0)
    white = jax.vmap(lambda one: error.whiten(one, observation.mask))(anomalies)
    return error, mean, white.reshape(len(white), -1)


def largest_power(
    log_weights: Float[Array, "member"],
    fits: Float[Array, "member"],
    threshold: Float[Array, ""],
    left: Scalar,
) -> tuple[Scalar, Array]:
    """Return the power of likelihoods that leaves the `threshold` of members.

    It is at most what is `left`; whether it is all of that is returned too. The
    conditional effective size, `(sum w g)^2 / sum w g^2` for likelihoods g, is 1 at
    power 0 and falls.
    """
    log_weights, fits, left = jax.lax.stop_gradient((log_weights, fits, left))
    wanted = jnp.log(threshold.astype(fits.dtype))
    known = fits > -jnp.inf
    level = jnp.where(known, fits, 0)

    def size(power):
        terms = jnp.where(known, log_weights + power * level, -jnp.inf)
        squares = jnp.where(known, log_weights + 2 * power * level, -jnp.inf)
        return 2 * jax.nn.logsumexp(terms) - jax.nn.logsumexp(squares)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        good = size(middle) >= wanted
        return jnp.where(good, middle, low), jnp.where(good, high, middle)

    # Not good: NaN of no member at all, too; then everything is taken at once.
    good = ~(size(left) < wanted)
    low, _ = jax.lax.fori_loop(0, 40, halve, (jnp.zeros_like(left), left))
    # A first step that is lost in rounding would never end.
    low = jnp.maximum(low, jnp.finfo(left.dtype).eps)
    return jnp.where(good, left, low), good


def with_weights(weighted: Weighted, log_weights: LogWeights) -> Weighted:
    """Return the members with other weights, normalised already."""
    return eqx.tree_at(lambda w: w.log_weights, weighted, log_weights)


def with_members(weighted: Weighted, members: PyTree[Array]) -> Weighted:
    """Return other members with the same weights."""
    return eqx.tree_at(
        lambda w: w.members, weighted, members, is_leaf=lambda x: x is None
    )


def share(name: str, value: float | Float[Array, ""]) -> Float[Array, ""]:
    """Return `value` as an array.

    Raises:
        EquinoxRuntimeError: it is negative.
    """
    value = jnp.asarray(value, float)
    return eqx.error_if(value, ~(value >= 0), f"`{name}` must not be negative.")


def _solve(matrix, right):
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(matrix), True), right)


def _root(anomalies, log_weights):
    """Scale anomalies so that `root' root` is their unbiased covariance."""
    weights = jnp.exp(log_weights).astype(anomalies.dtype)
    scale = weights * unbias(weights)
    some = scale > 0
    # Double where: the square root must never see the 0 it would differentiate.
    scale = jnp.where(some, jnp.sqrt(jnp.where(some, scale, 1)), 0)
    return scale[:, None] * anomalies
