"""The regularised horseshoe: sparsity by sampling, with all its uncertainty."""

from importlib import import_module
from types import ModuleType

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Bool, Float, Key

from skyens.sparse._compress import SparseProblem
from skyens.sparse._evidence import log_evidence, scaled, statistics


class HorseshoeSamples(eqx.Module):
    """Draws from the posterior of a sparse regression."""

    coefficients: Float[Array, "chain sample term"]
    noise: Float[Array, "chain sample"]  # the standard deviation
    kept: Float[Array, "chain sample term"]  # share that the data determine, 0 to 1
    diverged: Bool[Array, "chain sample"]
    reduction: Float[Array, "term"]  # of Gelman and Rubin; 1 where chains agree

    @property
    def mean(self) -> Float[Array, "term"]:
        """The posterior mean of the coefficients."""
        return jnp.mean(self.coefficients, axis=(0, 1))

    @property
    def covariance(self) -> Float[Array, "term term"]:
        """The posterior covariance of the coefficients."""
        flat = self.coefficients.reshape(-1, self.coefficients.shape[-1])
        return jnp.cov(flat.T).reshape(flat.shape[1], flat.shape[1])

    @property
    def inclusion(self) -> Float[Array, "term"]:
        """The mean share of each term that the data determine: near 1 or near 0."""
        return jnp.mean(self.kept, axis=(0, 1))


def horseshoe(
    problem: SparseProblem,
    *,
    expected: float,
    noise: float | Float[Array, ""] | None = None,
    slab: float = 2.0,
    freedom: float = 4.0,
    warmup: int = 500,
    samples: int = 500,
    chains: int = 4,
    key: Key[Array, ""] | None = None,
) -> HorseshoeSamples:
    """Sample a regression under the regularised horseshoe prior, by NUTS.

    Where `rvm` takes the best prior variances, this averages over all that are
    plausible: costlier by far, and the honest spread where terms compete. Coefficients
    are integrated out (the evidence is closed), so that the sampler sees only scales;
    then they are drawn exactly. It needs the extra `mcmc`. Before use, `reduction` must
    be below 1.01 or so and few samples may have `diverged`; else sample longer.

    Args:
        problem: as `compress` makes it; more terms than rows are allowed.
        expected: how many terms are expected, between 0 and their number; a guess
            within a factor of a few does.
        noise: the standard deviation of a row of weight 1 if known; under a half-Cauchy
            prior of the target's scale if None.
        slab: scale of coefficients that are not shrunk, of columns and target of unit
            root mean square.
        freedom: degrees of freedom of their Student-t prior.
        warmup: steps for adaptation, of each chain.
        samples: of each chain.
        chains: how many, at least 2.
        key: for the draws.

    Raises:
        ImportError: the extra `mcmc` is not installed.
        ValueError: `key` is missing, or a setting lies outside of its range.
        EquinoxRuntimeError: `noise` is not positive.

    Source: Piironen & Vehtari (2017), Electron. J. Stat. 11, 5018-5051, eqs. (2.8),
    (3.12); Hoffman & Gelman (2014), JMLR 15, 1593-1623, for the sampler.
    """
    terms = len(problem.target)
    if key is None:
        raise ValueError("`horseshoe` samples: `key` must be given.")
    _check(terms, expected, slab, freedom, warmup, samples, chains)
    blackjax = _blackjax()
    settings = float(expected), float(slab), float(freedom), warmup, samples
    # Blackjax counts in JAX's default type and leans on JAX's default promotions.
    dtype, default = problem.target.dtype, jnp.result_type(float)
    problem = jax.tree.map(lambda leaf: leaf.astype(default), problem)
    if noise is not None:
        noise = jnp.asarray(noise, default)
    keys = jr.split(key, chains)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        sampled = _sample(blackjax, problem, noise, settings, keys)
        reduction = blackjax.diagnostics.potential_scale_reduction(sampled[0])
    draws, kept, spread, diverged = sampled
    cast = lambda leaf: leaf.astype(dtype)
    return HorseshoeSamples(
        cast(draws), cast(spread), cast(kept), diverged, cast(reduction)
    )


@eqx.filter_jit
def _sample(blackjax, problem, noise, settings, keys):
    expected, slab, freedom, warmup, samples = settings
    system, size, height = scaled(
        problem.factor, problem.target, problem.rest, problem.rows, noise
    )
    terms, dtype = len(problem.target), problem.target.dtype
    root = jnp.sqrt(jnp.maximum(system.rows, 1))

    def parts(position):
        """Return noise variance, system with it, and ratios of the prior's to it."""
        variance = system.variance
        if variance is None:
            variance = (jnp.exp(position["noise"]) / root) ** 2
        local, whole = position["local"], position["whole"]
        spread = slab**2 * jnp.exp(position["slab"])
        # tau over the noise, so that it is free of their scales.
        shrink = jnp.exp(-2 * (whole + local)) * ((terms - expected) / expected) ** 2
        ratio = 1 / (shrink + variance / spread)
        return variance, system._replace(variance=variance), ratio

    half_cauchy = lambda u: u - jnp.logaddexp(2 * u, 0)  # of exp(u), by u

    def log_density(position):
        _, at, ratio = parts(position)
        prior = jnp.sum(half_cauchy(position["local"])) + half_cauchy(position["whole"])
        # c^2 / slab^2 is inverse gamma distributed.
        half = freedom / 2
        prior += -half * (position["slab"] + jnp.exp(-position["slab"]))
        if noise is None:
            prior += half_cauchy(position["noise"])
        return prior + log_evidence(at, statistics(at, ratio))

    def coefficients(key, position):
        variance, at, ratio = parts(position)
        now = statistics(at, ratio)
        lower = jnp.linalg.cholesky(_lifted(now.shape, ratio))
        draw = jnp.sqrt(ratio) * (lower @ jr.normal(key, (terms,), dtype))
        mean = now.mean + jnp.sqrt(variance) * draw
        kept = ratio * jnp.diagonal(now.bend)
        return mean * height / size, kept, jnp.sqrt(variance) * height

    def chain(key):
        first, warm, run, draw = jr.split(key, 4)
        scatter = 0.1 * jr.normal(first, (terms + 3,), dtype)
        start = {"local": scatter[3:], "whole": scatter[0], "slab": scatter[1]}
        if noise is None:
            start["noise"] = scatter[2] - 1
        adapt = blackjax.window_adaptation(
            blackjax.nuts, log_density, target_acceptance_rate=0.9
        )
        (state, tuned), _ = adapt.run(warm, start, num_steps=warmup)
        step = blackjax.nuts(log_density, **tuned).step

        def onward(state, key):
            state, info = step(key, state)
            return state, (state.position, info.is_divergent)

        _, (positions, diverged) = lax.scan(onward, state, jr.split(run, samples))
        drawn = jax.vmap(coefficients)(jr.split(draw, samples), positions)
        return *drawn, diverged

    return jax.vmap(chain)(keys)


def _lifted(shape, ratio):
    """Return the covariance over the prior's: between 0 and 1, never singular."""
    root = jnp.sqrt(jnp.where(ratio > 0, ratio, 1))
    relative = shape / (root[:, None] * root[None])
    return relative + jnp.finfo(ratio.dtype).eps * jnp.eye(
        len(ratio), dtype=ratio.dtype
    )


def _blackjax() -> ModuleType:
    try:
        return import_module("blackjax")
    except ImportError as error:
        raise ImportError(
            "`horseshoe` samples with blackjax: pip install 'skyens[mcmc]'."
        ) from error


def _check(terms, expected, slab, freedom, warmup, samples, chains):
    if not 0 < expected < terms:
        raise ValueError(
            f"`expected` must lie between 0 and the {terms} terms, got {expected}."
        )
    if not (slab > 0 and freedom > 0):
        raise ValueError(
            f"`slab` and `freedom` must be positive, got {slab} and {freedom}."
        )
    if warmup < 1 or samples < 2 or chains < 2:
        raise ValueError(
            "`warmup` must be positive, `samples` and `chains` at least 2, got "
            f"{warmup}, {samples} and {chains}."
        )
