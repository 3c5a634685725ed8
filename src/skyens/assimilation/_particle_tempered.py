"""The tempered particle filter: take the observation in by steps."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key, PyTree

from skyens.assimilation._ensemble import Info, as_pytree, matmul, split
from skyens.assimilation._particle import (
    describe,
    largest_power,
    part_to_move,
    see,
    share,
    with_members,
    with_weights,
)
from skyens.assimilation._particle_noise import Noise, shift
from skyens.assimilation._resampling import Systematic
from skyens.assimilation._weighted import (
    Weighted,
    as_weighted,
    effective_size,
    normalise,
)
from skyens.observations import Observation


class TemperedFilter(eqx.Module):
    """Raise the likelihood's power from 0 to 1, and move the members at each step.

    Its background are forecasts *without* the noise of the model, as for
    `OptimalProposal`; the filter draws it. Each step takes as much of the likelihood as
    leaves the conditional effective size at the `threshold` (found by bisection);
    members are resampled when few count, and then moved by Markov chains on their noise
    (preconditioned Crank-Nicolson), which leave the tempered posterior as it is: no
    linearity or Gaussian errors are needed, nor derivatives. Evidence and mean stay
    exact in the limit of many members. With a `Kernel` in place of the model's noise,
    it is the ensemble smoothed by kernels whose posterior is sampled.

    Where everything is masked, the noise of a model is drawn as it is, and nothing
    happens with kernels. Its gradient does not see the choices it makes.

    Sources: Del Moral, Doucet & Jasra (2006), J. R. Stat. Soc. B 68, 411-436; Beskos,
    Crisan & Jasra (2014), Ann. Appl. Probab. 24, 1396-1445; Zhou, Johansen & Aston
    (2016), J. Comput. Graph. Stat. 25, 701-726, for the step; Cotter et al. (2013),
    Stat. Sci. 28, 424-446, for the moves.
    """

    noise: Noise
    threshold: Float[Array, ""]
    correlation: Float[Array, ""]
    resampling: Callable[..., Any]
    stages: int = eqx.field(static=True)
    moves: int = eqx.field(static=True)
    where: Callable[[Any], Any] | None = eqx.field(static=True)

    def __init__(
        self,
        noise: Noise,
        threshold: float | Float[Array, ""] = 0.5,
        correlation: float | Float[Array, ""] = 0.7,
        *,
        resampling: Callable[..., Any] = Systematic(),
        stages: int = 10,
        moves: int = 3,
        where: Callable[[Any], Any] | None = None,
    ):
        """Set the noise, how large the steps are and how members move.

        Args:
            noise: `AdditiveNoise` of the model, or a `Kernel`.
            threshold: the share of the members that a step leaves, and below which they
                are resampled; between 0 and 1.
            correlation: of a proposed noise with the one before, from 0 to below 1.
            resampling: `(weighted, *, key) -> members` by indices, `Systematic()` say.
            stages: steps there is room for; the last one takes all that is left, and
                `info.converged` is False where that was too much.
            moves: of the Markov chain at each step.
            where: the part of the state to update; everything if None.

        Raises:
            ValueError: `stages` is below 1, or `moves` negative.
            EquinoxRuntimeError: `threshold` does not lie between 0 and 1, or
                `correlation` not in [0, 1).
        """
        if stages < 1 or moves < 0:
            raise ValueError(
                "`stages` must be at least 1 and `moves` at least 0, got "
                f"{stages} and {moves}."
            )
        threshold = share("threshold", threshold)
        message = "`threshold` must lie between 0 and 1."
        outside = ~((threshold > 0) & (threshold < 1))
        self.threshold = eqx.error_if(threshold, outside, message)
        correlation = share("correlation", correlation)
        message = "`correlation` must lie in [0, 1)."
        self.correlation = eqx.error_if(correlation, ~(correlation < 1), message)
        self.noise = noise
        self.resampling = as_pytree(resampling)
        self.stages = stages
        self.moves = moves
        self.where = where

    def __call__(
        self,
        background: PyTree[Array] | Weighted,
        observation: Observation,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Weighted, Info]:
        """Return the weighted analysis, and what there is to say of it.

        `iterations` in the info are the steps that were taken.

        Raises:
            ValueError: there is no key, the noise does not fit the state, there are
                fewer than two members, or leaves disagree on their number.
        """
        if key is None:
            raise ValueError("`key` is needed to draw the noise; give one.")
        first, rest = jr.split(key)
        forecast = as_weighted(background)
        active = jnp.any(observation.mask)
        update, _ = split(forecast.members, self.where)
        root = self.noise.root(with_members(forecast, update))
        size, dtype = len(forecast.log_weights), forecast.log_weights.dtype
        quiet = ~(active | self.noise.of_the_model)

        def place(members, z):
            part, others = split(members, self.where)
            return eqx.combine(shift(part, matmul(z, root)), others)

        def likelihood(members, z):
            shown, log_likelihood = see(place(members, z), observation)
            return shown, log_likelihood.astype(dtype)

        def move(carry, key):
            members, z, fits, power = carry
            propose, accept = jr.split(key)
            old = self.correlation.astype(z.dtype)
            new = jnp.sqrt(1 - old**2)
            proposal = old * z + new * jr.normal(propose, z.shape, z.dtype)
            _, better = likelihood(members, proposal)
            # Both may be -inf: then there is nothing to choose by, and it stays.
            gain = power * (better - jnp.where(fits > -jnp.inf, fits, 0))
            taken = (jnp.log(jr.uniform(accept, gain.shape, dtype)) < gain) & (
                better > -jnp.inf
            )
            z = jnp.where(taken[:, None], proposal, z)
            return (members, z, jnp.where(taken, better, fits), power), None

        def advance(carry, x):
            weighted, z, fits, power, log_evidence = carry
            last, key = x
            step, fine = largest_power(
                weighted.log_weights, fits, self.threshold, 1 - power
            )
            step = jnp.where(last, 1 - power, step)
            change = jnp.where(fits > -jnp.inf, step * fits, -jnp.inf)
            log_weights, gained = normalise(weighted.log_weights + change)
            # Nobody could have given the observation: the weights stay.
            log_weights = jnp.where(
                gained > -jnp.inf, log_weights, weighted.log_weights
            )
            power = jnp.where(last, 1, power + step)
            log_evidence = log_evidence + gained
            weighted = with_weights(weighted, log_weights)
            choose, walk = jr.split(key)
            few = effective_size(log_weights) <= self.threshold.astype(dtype) * size

            def resample(weighted, z, fits):
                # Indices alone: z and its likelihood belong to their member.
                index = jnp.arange(size, dtype=jnp.int32)
                chosen = self.resampling(with_members(weighted, index), key=choose)
                moved, still = part_to_move(weighted.members, self.where)
                members = jax.tree.map(lambda leaf: leaf[chosen], moved)
                members = eqx.combine(members, still)
                equal, _ = normalise(jnp.zeros_like(log_weights))
                renewed = with_weights(with_members(weighted, members), equal)
                return renewed, z[chosen], fits[chosen]

            stay = lambda *unchanged: unchanged
            weighted, z, fits = jax.lax.cond(few, resample, stay, weighted, z, fits)
            start = weighted.members, z, fits, power
            (_, z, fits, _), _ = jax.lax.scan(move, start, jr.split(walk, self.moves))
            return (weighted, z, fits, power, log_evidence), fine | ~last

        def stage(carry, x):
            waits = carry[3] < 1
            skip = lambda carry, _: (carry, jnp.asarray(True))
            carry, fine = jax.lax.cond(waits, advance, skip, carry, x)
            return carry, (waits, fine)

        z = jr.normal(first, (size, len(root)), root.dtype)
        expected, fits = likelihood(forecast.members, z)
        power = jnp.where(active, 0, 1).astype(dtype)
        zero = jnp.zeros((), dtype)
        last = jnp.arange(self.stages) == self.stages - 1
        (weighted, z, _, _, log_evidence), (taken, fine) = jax.lax.scan(
            stage,
            (forecast, z, fits, power, zero),
            (last, jr.split(rest, self.stages)),
        )
        z = jnp.where(quiet, 0, z)
        analysis = with_members(weighted, place(weighted.members, z))
        shown, _ = see(analysis.members, observation)
        info = describe(
            observation,
            (expected, forecast.log_weights),
            (shown, analysis.log_weights),
            log_evidence,
            iterations=jnp.sum(taken),
            converged=jnp.all(fine),
        )
        return analysis, info
