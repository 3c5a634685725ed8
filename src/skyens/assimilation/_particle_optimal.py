"""The particle filter with the optimal proposal for Gaussian noise."""

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
    heal,
    renew,
    reweight,
    see,
    share,
    with_members,
)
from skyens.assimilation._particle_noise import Noise, healthy, shift
from skyens.assimilation._resampling import Systematic
from skyens.assimilation._weighted import Weighted, as_weighted
from skyens.dynamics import member_keys
from skyens.observations import Observation


class OptimalProposal(eqx.Module):
    """Draw the model's noise given the observation, and weigh by what was expected.

    Its background are forecasts f *without* the noise of the model. With noise of
    covariance Q, errors of covariance R and a linear operator H, the analysis of each
    member is drawn from its posterior, that of the Kalman filter with covariance Q, and
    its weight is the density of the observation given f, with covariance
    `S = H Q H' + R`: no other draw of the noise gives weights of lower variance. For
    an operator that is not linear the proposal is that of its derivative at f (and of
    the Gaussian errors that stand for others), and the weights correct exactly for the
    difference. Where everything is masked, the noise is drawn as it is.

    With `Kernel` in place of the model's noise, it smooths the ensemble before the
    observation; everything masked then returns the background as it is.

    Sources: Doucet, Godsill & Andrieu (2000), Stat. Comput. 10, 197-208, section
    II.D; Bocquet, Pires & Wu (2010), Mon. Wea. Rev. 138, 2997-3023, for kernels.
    """

    noise: Noise
    threshold: Float[Array, ""]
    resampling: Callable[..., Any]
    regularisation: Callable[..., Any] | None
    where: Callable[[Any], Any] | None = eqx.field(static=True)

    def __init__(
        self,
        noise: Noise,
        threshold: float | Float[Array, ""] = 0.5,
        *,
        resampling: Callable[..., Any] = Systematic(),
        regularisation: Callable[..., Any] | None = None,
        where: Callable[[Any], Any] | None = None,
    ):
        """Set the noise, and when and how to resample.

        Args:
            noise: `AdditiveNoise` of the model, or a `Kernel`.
            threshold: resample when the effective size is at most this share of the
                members; 1 always, 0 never.
            resampling: `(weighted, *, key) -> members`, `Systematic()` say.
            regularisation: `(members, ancestors, before, *, key) -> members`, after a
                resampling; see `Kernel`.
            where: the part of the state to update; everything if None.

        Raises:
            EquinoxRuntimeError: `threshold` is negative.
        """
        self.noise = noise
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
            ValueError: there is no key, the noise does not fit the state, there are
                fewer than two members, or leaves disagree on their number.
        """
        if key is None:
            raise ValueError("`key` is needed to draw the noise; give one.")
        disturb, again = jr.split(key)
        forecast = as_weighted(background)
        active = jnp.any(observation.mask)
        update, rest = split(forecast.members, self.where)
        root = self.noise.root(with_members(forecast, update))
        drawn = active | self.noise.of_the_model
        keys = member_keys(disturb, len(forecast.log_weights))
        predictions, _ = see(forecast.members, observation)
        known = healthy(forecast.members)
        # One that is not finite must not spoil the derivative of the others.
        usable = jax.tree.map(lambda x: heal(x, known), forecast.members)

        def one(member, key):
            part, others = split(jax.tree.map(lambda x: x[None], member), self.where)

            def state(z):
                moved = shift(part, matmul(z, root)[None])
                return jax.tree.map(lambda x: x[0], eqx.combine(moved, others))

            return _propose(state, observation, root, key)

        z, correction, seen = jax.vmap(one)(usable, keys)
        moved = shift(update, jnp.where(drawn, matmul(z, root), 0))
        before = with_members(forecast, eqx.combine(moved, rest))
        shown, likelihood = see(before.members, observation)
        likelihood = jnp.where(known, likelihood + correction, -jnp.inf)
        weighted, log_evidence = reweight(before, likelihood, active)
        analysis = renew(
            weighted,
            active,
            self.threshold,
            self.resampling,
            self.regularisation,
            self.where,
            key=again,
        )
        info = describe(
            observation,
            (predictions, forecast.log_weights),
            (shown, weighted.log_weights),
            log_evidence,
            noise=jnp.einsum("n,npq->pq", forecast.weights.astype(seen.dtype), seen),
        )
        return analysis, info


def _propose(
    state: Callable[[Array], Any],
    observation: Observation,
    root: Float[Array, "rank state"],
    key: Key[Array, ""],
) -> tuple[Float[Array, "rank"], Float[Array, ""], Float[Array, "seen seen"]]:
    """Return noise z given the observation, and its log-density before over after.

    With the whitened innovation d at no noise and the derivative Y of the whitened
    prediction by z, it has precision `1 + Y'Y` and mean `Y' S^-1 d`, `S = 1 + Y Y'`.
    `Y Y'` is returned too.
    """
    zero = jnp.zeros(len(root), root.dtype)
    error = observation.gaussian_error(observation.predict(state(zero)))

    def innovation(z):
        residual = observation.residual(observation.predict(state(z)))
        return error.whiten(residual, observation.mask).reshape(-1).astype(z.dtype)

    d, slope = innovation(zero), -jax.jacfwd(innovation)(zero)
    seen = matmul(slope, slope.T)
    factor = jnp.linalg.cholesky(jnp.eye(len(d), dtype=d.dtype) + seen)
    gain = lambda d: matmul(slope.T, jax.scipy.linalg.cho_solve((factor, True), d))
    first, second = jr.split(key)
    white = jr.normal(first, zero.shape, zero.dtype)
    noise = jr.normal(second, d.shape, d.dtype)
    mean = gain(d)
    z = white + gain(d - matmul(slope, white) - noise)
    off = z - mean
    after = jnp.sum(off**2) + jnp.sum(matmul(slope, off) ** 2)
    log_determinant = 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))
    return z, (after - jnp.sum(z**2) - log_determinant) / 2, seen
