"""The local particle filter: weights for every point, from the observations near it."""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from skyens.assimilation._ensemble import Info, counts, matmul, split
from skyens.assimilation._global_update import positive_inflation
from skyens.assimilation._localisation import Localisation, Moving
from skyens.assimilation._particle import (
    consistency,
    heal,
    largest_power,
    see,
    share,
    whitened,
    with_members,
)
from skyens.assimilation._particle_noise import healthy
from skyens.assimilation._weighted import (
    Weighted,
    as_weighted,
    effective_size,
    normalise,
    unbias,
)
from skyens.observations import Observation

_BLOCK = 2**18  # numbers in the square tables of a block of points
_STEPS = 16  # of Newton, or halvings where that fails


class LocalParticleFilter(eqx.Module):
    """A particle filter at each point, for fields that end with the points' axes.

    The weights at a point are those of the observations near it: the logarithm of each
    one's likelihood counts by the localisation's taper. Each variable is then carried
    from its distribution before to that after, both smoothed by kernels, by the map
    that keeps the order of the members. So no member is copied, neighbours stay smooth,
    and what ties points and variables together is that of the background. Nothing is
    random, and all of it has a derivative. Where no observation is in reach, the
    background comes back as it is, uninflated.

    It needs tens of members in systems of any size, and no Gaussian law; but its
    mean stays biased, however many there are, where points depend on each other.

    A plain ensemble gives a plain one; a `Weighted` one keeps its weights. A member
    that is not finite becomes a copy of one that is.

    Sources: Farchi & Bocquet (2018), Nonlin. Processes Geophys. 25, 765-807, sections
    4 and 5 (localisation by state block, with anamorphosis); Penny & Miyoshi (2016),
    there 23, 391-405; Poterjoy, Wicker & Buehner (2019), Mon. Wea. Rev. 147, 1107-1126,
    for the `threshold`.
    """

    localisation: Localisation | Moving
    inflation: Float[Array, ""]
    bandwidth: Float[Array, ""]
    threshold: Float[Array, ""]
    where: Callable[[Any], Any] | None = eqx.field(static=True)

    def __init__(
        self,
        localisation: Localisation | Moving,
        inflation: float | Float[Array, ""] = 1.0,
        bandwidth: float | Float[Array, ""] = 1.0,
        threshold: float | Float[Array, ""] = 0.0,
        *,
        where: Callable[[Any], Any] | None = None,
    ):
        """Set how to localise, and how to keep the members apart.

        Args:
            localisation: a table for observations that stay, or `Moving`.
            inflation: factor of the analysis anomalies, dimensionless, above 0.
            bandwidth: the kernels' standard deviation over `N**(-1 / 5)` of the
                variable's, above 0; small ones lose spread.
            threshold: the share of the members that must count at each point. Where
                fewer would, the likelihood there is raised to a power below 1.
            where: the part of the state to update; otherwise all its leaves of real
                numbers.

        Raises:
            EquinoxRuntimeError: `inflation` or `bandwidth` is not above 0, or
                `threshold` does not lie in [0, 1).
        """
        self.localisation = localisation
        self.inflation = positive_inflation(inflation)
        bandwidth = share("bandwidth", bandwidth)
        message = "`bandwidth` must be above 0."
        self.bandwidth = eqx.error_if(bandwidth, ~(bandwidth > 0), message)
        threshold = share("threshold", threshold)
        message = "`threshold` must lie in [0, 1)."
        self.threshold = eqx.error_if(threshold, ~(threshold < 1), message)
        self.where = where

    def __call__(
        self,
        background: PyTree[Array] | Weighted,
        observation: Observation,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[PyTree[Array] | Weighted, Info]:
        """Return the analysis, and what there is to say of it.

        In the info, `effective_size` and the degrees of freedom are maps over the
        points; `used`, `unreached` and `overflow` are as for `LETKF`.

        Raises:
            ValueError: a leaf to update does not lie on the points or is complex (leave
                it out by `where`), the errors of the observations are not independent,
                the localisation was built for another number of observations, there are
                fewer than two members, or leaves disagree on their number.
            EquinoxRuntimeError: the observations are not where the localisation was
                built for.
        """
        if not observation.error.independent:
            raise ValueError(
                "LocalParticleFilter needs independent observation errors, `Diagonal` "
                f"say, got {type(observation.error).__name__}; BootstrapFilter takes "
                "any."
            )
        before = as_weighted(background)
        shape = self.localisation.geometry.shape
        update, rest = split(before.members, self.where)
        for leaf in jax.tree.leaves(update):
            if leaf.shape[leaf.ndim - len(shape) :] != shape or leaf.ndim <= len(shape):
                raise ValueError(
                    f"a leaf of shape {leaf.shape} does not end with {shape}, the "
                    "localisation's points. Leave it out: LocalParticleFilter(..., "
                    "where=...)."
                )
            if jnp.iscomplexobj(leaf):
                raise ValueError(
                    "complex leaves have no order: leave them out by `where`, or "
                    "update real and imaginary part as two leaves."
                )
        near = self.localisation.neighbours(observation)
        predictions, fits = see(before.members, observation)
        prior, _ = normalise(jnp.where(fits > -jnp.inf, before.log_weights, -jnp.inf))
        mask = observation.mask.reshape(-1)
        members = len(prior)
        # One row for each observation: a neighbour is one piece of memory.
        each = _each(predictions, observation).reshape(members, -1).T
        each = jnp.where(mask[:, None], each, 0).astype(prior.dtype)
        # Double where: a weight times -inf has no derivative.
        never = each == -jnp.inf
        bounded = jnp.where(never, 0, each)
        one_power = jnp.ones((), prior.dtype)
        white = whitened(observation, predictions, prior)[2].T.astype(prior.dtype)

        leaves, structure = jax.tree.flatten(update)
        fine = healthy(before.members)
        columns = [heal(x, fine).reshape(members, -1, prod(shape)) for x in leaves]

        def one(x):
            index, taper, *here = x
            taper = taper.astype(prior.dtype)
            heard = taper > 0
            active = jnp.any(mask[index] & heard)
            fit = jnp.sum(taper[:, None] * bounded[index], axis=0)
            fit = jnp.where(jnp.any(heard[:, None] & never[index], 0), -jnp.inf, fit)
            power, _ = largest_power(prior, fit, self.threshold, one_power)
            possible = fit > -jnp.inf
            change = jnp.where(possible, power * jnp.where(possible, fit, 0), -jnp.inf)
            posterior, total = normalise(prior + change)
            posterior = jnp.where(total > -jnp.inf, posterior, prior)
            weights = jnp.exp(posterior)
            shown = white[index].T
            about = shown - matmul(weights, shown)[None, :]
            spread = matmul(weights, about**2)
            freedom = jnp.sum(taper * spread) * unbias(weights)
            carry = partial(self._carry, prior=prior, posterior=posterior)
            new = [jnp.where(active, jax.vmap(carry, 1, 1)(old), old) for old in here]
            return freedom, effective_size(posterior), *new

        width = near.index.shape[-1]
        table = [x.reshape(-1, width) for x in (near.index, near.taper)]
        by_point = [jnp.moveaxis(x, -1, 0) for x in columns]
        largest = members**2 * max(x.shape[1] for x in columns)
        freedom, effective, *moved = jax.lax.map(
            jax.checkpoint(one),
            (*table, *by_point),
            batch_size=max(1, min(len(table[0]), _BLOCK // largest)),
        )
        active = jnp.any(mask)
        analysis = [
            jnp.where(active, jnp.moveaxis(new, 0, -1).reshape(old.shape), old)
            for new, old in zip(moved, leaves, strict=True)
        ]
        analysis = eqx.combine(jax.tree.unflatten(structure, analysis), rest)
        number = counts(observation)
        used = jnp.sum(mask & near.reached)
        unreached, number["used"] = number["used"] - used, used
        info = Info(
            **number,
            chi_square=consistency(observation, predictions, prior),
            degrees_of_freedom=freedom.reshape(shape),
            effective_size=effective.reshape(shape),
            overflow=near.overflow,
            unreached=unreached,
        )
        if isinstance(background, Weighted):
            return with_members(background, analysis), info
        return analysis, info

    def _carry(self, old, prior, posterior):
        """Return one variable at one point, after the weights have changed."""
        dtype = prior.dtype
        x, weights = old.astype(dtype), jnp.exp(prior)
        anomalies = x - jnp.sum(weights * x)
        variance = jnp.sum(weights * anomalies**2) * unbias(weights)
        some = variance > 0
        std = jnp.sqrt(jnp.where(some, variance, 1))
        # The logistic law of this scale has the standard deviation 1.
        width = self.bandwidth.astype(dtype) * len(x) ** -0.2 * (3**0.5 / jnp.pi)
        new = _quantiles(anomalies / std, prior, posterior, width) * std
        mean = jnp.sum(weights * new)
        change = mean + self.inflation.astype(dtype) * (new - mean) - anomalies
        return old + jnp.where(some, change, 0).astype(old.dtype)


def _quantiles(x, prior, posterior, width):
    """Return where the posterior's distribution is what the prior's is at `x`.

    Both are mixtures of logistic kernels about `x`.
    """
    z = _search(*jax.lax.stop_gradient((x, prior, posterior, width)))
    # One more of Newton's steps, from a fixed point, has the right derivative.
    gap = _level(z, x, posterior, width) - _level(x, x, prior, width)
    density = jax.lax.stop_gradient(_slope(z, x, posterior, width))
    change = gap / jnp.where(density > 0, density, 1)
    # Between two far groups of members there may be next to no density.
    return z - jnp.where(jnp.abs(change) < width, change, 0)


def _search(x, prior, posterior, width):
    wanted = _level(x, x, prior, width)
    tiny = jnp.finfo(x.dtype).eps
    inside = jnp.clip(wanted, tiny, 1 - tiny)
    # The kernels of the outermost members enclose the answer.
    beyond = width * (jnp.log(inside) - jnp.log1p(-inside))
    low, high = jnp.min(x) + beyond, jnp.max(x) + beyond

    def search(_, ends):
        z, low, high = ends
        gap = _level(z, x, posterior, width) - wanted
        low, high = jnp.where(gap < 0, z, low), jnp.where(gap < 0, high, z)
        density = _slope(z, x, posterior, width)
        newton = z - gap / jnp.where(density > 0, density, 1)
        good = (density > 0) & (newton >= low) & (newton <= high)
        return jnp.where(good, newton, (low + high) / 2), low, high

    start = jnp.clip(x, low, high), low, high
    return jax.lax.fori_loop(0, _STEPS, search, start)[0]


def _level(z, x, log_weights, width):
    rank = jax.nn.sigmoid((z[:, None] - x[None, :]) / width)
    return jnp.sum(jnp.exp(log_weights)[None, :] * rank, axis=1)


def _slope(z, x, log_weights, width):
    rank = jax.nn.sigmoid((z[:, None] - x[None, :]) / width)
    return jnp.sum(jnp.exp(log_weights)[None, :] * rank * (1 - rank), axis=1) / width


def _each(predictions, observation: Observation):
    """Return the log-likelihood of each entry for each member, up to constants."""

    def gaussian(prediction):
        law = observation.law(prediction)
        white = law.whiten(observation.residual(prediction), observation.mask)
        one = law.whiten(jnp.ones_like(white), observation.mask)
        log_std = -jnp.log(jnp.where(observation.mask, one, 1))
        return -(white**2) / 2 - log_std

    def alone(prediction):
        # A law that is not Gaussian only tells of entries together: ask for each.
        law, residual = observation.law(prediction), observation.residual(prediction)
        single = lambda mask: law.log_prob(residual, mask)
        masks = jnp.eye(residual.size, dtype=bool).reshape(-1, *residual.shape)
        each = jax.lax.map(lambda mask: single(mask & observation.mask), masks)
        return each.reshape(residual.shape)

    robust = hasattr(observation.law(predictions[0]), "gaussian")
    return jax.vmap(alone if robust else gaussian)(predictions)
