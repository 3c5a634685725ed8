from functools import cache
from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

from skyens.assimilation import SSP, Multinomial
from skyens.diffusion import (
    EDM,
    Annealed,
    DiagonalGaussianDenoiser,
    Flow,
    GaussianDenoiser,
    Guided,
    LocallyOptimal,
    MomentMatched,
    Noised,
    Particles,
    Plain,
    PseudoInverse,
    Unguided,
    smc,
)
from skyens.observations import Diagonal, Linear, Observation

# What is known of its types has no matrices.
NORMAL: Any = stats.multivariate_normal
METHODS = {
    "TDS": (MomentMatched(), Guided()),
    "PiGDM": (PseudoInverse(), Guided()),
    "bootstrap": (MomentMatched(), Unguided()),
    "AFDPS": (Annealed(1.0, 1.0), Guided()),
    "AFDPS, no noise": (Annealed(1.0, 1.0), Flow()),
    "FPS": (Noised(), LocallyOptimal()),
    "MCGdiff": (Annealed(), LocallyOptimal()),
}
COVARIANCE = np.array([[1.0, 0.5, 0.0], [0.5, 0.8, 0.2], [0.0, 0.2, 1.2]])
MATRIX, STD = np.array([[1.0, -1.0, 0.5], [0.5, 0.5, 1.0]]), np.array([0.3, 0.5])
VALUE = np.array([0.9, -0.7])
OBSERVATION = Observation(VALUE, Linear(MATRIX), Diagonal(STD))
PRIOR = GaussianDenoiser(jnp.zeros(3), jnp.asarray(COVARIANCE))
SCHEDULE = EDM(0.01, 20.0)


@cache
def posterior():
    """Return mean, covariance and log-evidence of the Gaussian problem."""
    total = MATRIX @ COVARIANCE @ MATRIX.T + np.diag(STD**2)
    gain = COVARIANCE @ MATRIX.T @ np.linalg.inv(total)
    evidence = NORMAL.logpdf(VALUE, np.zeros(2), total)
    return gain @ VALUE, COVARIANCE - gain @ MATRIX @ COVARIANCE, evidence


@eqx.filter_jit
def solve(
    method,
    key,
    threshold: Any = 0.5,
    observation=OBSERVATION,
    prior: Any = PRIOR,
    **settings: Any,
):
    """Solve one problem, or as many as there are keys."""
    twist, proposal = method
    settings = {"particles": 500, "steps": 60, **settings}
    one = lambda key: smc(
        prior, SCHEDULE, observation, (3,), key=key, twist=twist, proposal=proposal,
        threshold=threshold, **settings,
    )  # fmt: skip
    return jax.vmap(one)(key) if key.ndim else one(key)


@cache
def several(name, share=0.5):
    """Return four runs of one method: compiled once, used by many tests."""
    return solve(METHODS[name], jr.split(jr.key(1), 4), jnp.asarray(share))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_reaches_the_gaussian_posterior(name):
    found = several(name)
    mean, covariance, evidence = posterior()
    std = np.sqrt(np.diag(covariance))
    weights = np.exp(found.log_weights)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)
    means = np.einsum("bn,bni->bi", weights, found.samples)
    # Four runs tell their own chance roughly; 60 steps leave a few percent besides.
    chance = means.std(axis=0, ddof=1).max() / 4**0.5
    assert (np.abs(means.mean(axis=0) - mean) < 5 * chance + 0.05 * std).all()
    apart = np.asarray(found.samples) - mean
    seconds = np.einsum("bn,bni,bnj->bij", weights, apart, apart)
    chance = seconds.std(axis=0, ddof=1).max() / 4**0.5
    bound = 5 * chance + 0.08 * np.outer(std, std)
    assert (np.abs(seconds.mean(axis=0) - covariance) < bound).all()
    # The estimate of the density itself has no bias.
    ratios = np.exp(np.asarray(found.log_evidence) - evidence)
    assert abs(ratios.mean() - 1) < 6 * ratios.std(ddof=1) / 4**0.5 + 0.05


def test_traces_tell_of_every_level():
    found = jax.tree.map(lambda leaf: leaf[0], several("TDS"))
    assert isinstance(found, Particles)
    chex.assert_shape((found.ess, found.finite, found.sigmas), (61,))
    chex.assert_trees_all_close(found.sigmas, SCHEDULE.sigmas(60), rtol=1e-12)
    assert ((found.ess >= 1) & (found.ess <= 500.000001)).all()
    chex.assert_trees_all_equal(found.finite, jnp.ones(61))
    last = 1 / np.sum(np.exp(found.log_weights) ** 2)
    np.testing.assert_allclose(found.ess[-1], last, rtol=1e-10)
    members = found.resample(key=jr.key(0))
    assert np.isin(members, found.samples).all()
    chex.assert_trees_all_close(found.weighted.mean(), members.mean(axis=0), atol=0.01)


def test_the_threshold_says_when_to_resample():
    # Without a proposal that leads them, particles grow uneven.
    never, always = several("bootstrap", 0.0), several("bootstrap", 1.0)
    assert np.unique(never.samples).size == 4 * 500 * 3
    assert (never.ess[:, -1] < 0.5 * 500).all()
    assert (always.ess[:, -1] > 0.5 * 500).all()
    for found in (never, always):
        assert (np.abs(found.log_evidence - posterior()[2]) < 0.7).all()


def test_keys_make_particles_and_repeat_them():
    found = several("TDS")
    assert np.unique(found.log_evidence).size == 4
    same = solve(METHODS["TDS"], jr.split(jr.key(1), 4), jnp.asarray(0.5))
    chex.assert_trees_all_equal(found, same)


def test_nothing_observed_leaves_the_prior():
    hidden = Observation(VALUE * np.nan, Linear(MATRIX), Diagonal(STD))
    found = solve(METHODS["TDS"], jr.split(jr.key(9), 4), jnp.asarray(0.5), hidden)
    chex.assert_trees_all_equal(found.log_evidence, jnp.zeros(4))
    np.testing.assert_allclose(found.ess, 500, rtol=1e-9)
    chance = np.sqrt(np.diag(COVARIANCE) / 2000)
    assert (np.abs(found.samples.mean(axis=(0, 1))) < 4.5 * chance).all()


@pytest.mark.parametrize("resampling", [Multinomial(), SSP()])
def test_any_resampling_by_copies_fits(resampling):
    found = solve(METHODS["PiGDM"], jr.key(4), 1.0, steps=20, resampling=resampling)
    mean, covariance, _ = posterior()
    gap = np.abs(found.weighted.mean() - mean) / np.sqrt(np.diag(covariance))
    assert gap.max() < 0.4


FEW: dict[str, Any] = {"particles": 20, "steps": 6}


def test_a_few_at_a_time_and_a_bar_change_nothing():
    plain = solve(METHODS["TDS"], jr.key(5), **FEW)
    other = solve(METHODS["TDS"], jr.key(5), batch=7, progress="Walking", **FEW)
    jax.effects_barrier()
    chex.assert_trees_all_close(plain, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["TDS", "AFDPS, no noise", "FPS"])
def test_float32_stays_and_is_finite(name):
    found = solve(METHODS[name], jr.key(6), dtype=jnp.float32, **FEW)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    chex.assert_tree_all_finite(found)


@pytest.mark.parametrize("name", ["TDS", "FPS"])
def test_gradients_without_a_choice_match_finite_differences(name):
    @jax.jit
    @jax.value_and_grad
    def slope(parts, threshold):
        std, value = parts
        observation = Observation(value, Linear(MATRIX), Diagonal(std))
        found = solve(METHODS[name], jr.key(7), threshold, observation, **FEW)
        return found.log_evidence + jnp.sum(found.weighted.mean())

    at, never = (jnp.asarray(STD), jnp.asarray(VALUE)), jnp.asarray(0.0)
    slopes = slope(at, never)[1]
    change = jnp.array([0.3, -1.0])
    for index in range(2):
        moved = lambda step: slope(
            tuple(a + step * (i == index) * change for i, a in enumerate(at)), never
        )[0]
        finite = (moved(1e-5) - moved(-1e-5)) / 2e-5
        np.testing.assert_allclose(slopes[index] @ change, finite, rtol=1e-5)
    # Through the choice they are not those of the result, but finite.
    chex.assert_tree_all_finite(slope(at, jnp.asarray(1.0)))


def test_a_curved_operator_is_weighed_right():
    # The posterior of a standard normal state whose arc tangent is seen, by quadrature.
    observation = Observation(np.array([0.8]), jnp.arctan, Diagonal(0.15))
    prior = DiagonalGaussianDenoiser(jnp.zeros(1), jnp.ones(1))
    x = np.linspace(-8, 8, 20_001)
    law = stats.norm.pdf(x) * stats.norm.pdf(0.8, np.arctan(x), 0.15)
    evidence = law.sum() * (x[1] - x[0])
    mean = np.sum(law * x) / law.sum()
    near = Annealed(1.0, 1.0)
    for twist, proposal in ((MomentMatched(), Guided()), (near, LocallyOptimal())):
        one = lambda key: smc(
            prior, SCHEDULE, observation, (1,), key=key, particles=400, steps=60,
            twist=twist, proposal=proposal,
        )  # fmt: skip
        found = jax.jit(jax.vmap(one))(jr.split(jr.key(10), 8))
        ratios = np.exp(np.asarray(found.log_evidence)) / evidence
        assert abs(ratios.mean() - 1) < 5 * ratios.std(ddof=1) / 8**0.5 + 0.05
        weights = np.exp(found.log_weights)
        means = np.sum(weights * np.asarray(found.samples)[..., 0], axis=1)
        assert abs(means.mean() - mean) < 5 * means.std(ddof=1) / 8**0.5 + 0.05


def broken(x, sigma, *, condition=None):
    """Denoise a standard normal law, but not in noise from 0.5 to 1."""
    clean = x / (1 + sigma**2)
    return jnp.where((sigma > 0.5) & (sigma < 1), jnp.nan, clean)


def finished(function, *arguments):
    """Return the result once the warnings have come, too."""
    result = function(*arguments)
    jax.effects_barrier()
    return result


def test_all_weights_zero_say_where_and_why():
    settings = {"key": jr.key(0), "particles": 10, "steps": 12}
    levels = np.asarray(SCHEDULE.sigmas(12))
    at = int(np.argmax(levels < 1))
    text = f"weights are 0 at level {at} of 12, sigma = {levels[at]:.4g}, where 0%"
    with pytest.raises(eqx.EquinoxRuntimeError, match=text):
        smc(broken, SCHEDULE, OBSERVATION, (3,), **settings)
    compiled = jax.jit(lambda: smc(broken, SCHEDULE, OBSERVATION, (3,), **settings))
    with pytest.warns(RuntimeWarning, match=text):
        found = finished(compiled)
    assert found.log_evidence == -jnp.inf
    assert (found.ess[:at] > 0).all()
    assert found.ess[at] == 0
    chex.assert_trees_all_close(found.log_weights, jnp.full(10, -np.log(10)))


def test_one_problem_that_fails_leaves_the_others():
    fine = lambda x, sigma, *, condition=None: x / (1 + sigma**2) + condition

    def one(condition):
        settings = {"particles": 10, "steps": 6, "condition": condition}
        return smc(fine, SCHEDULE, OBSERVATION, (3,), key=jr.key(0), **settings)

    with pytest.warns(RuntimeWarning, match="0% of the particles are finite"):
        found = finished(jax.jit(jax.vmap(one)), jnp.array([0.0, jnp.nan]))
    alone = jax.jit(one)(jnp.asarray(0.0))
    first = jax.tree.map(lambda leaf: leaf[0], found)
    chex.assert_trees_all_close(first, alone, rtol=1e-9, atol=1e-12)
    assert found.log_evidence[1] == -jnp.inf


def test_a_particle_that_breaks_is_replaced():
    far = lambda x, sigma, *, condition=None: jnp.where(
        x[0] > 2 * sigma, jnp.nan, x / (1 + sigma**2)
    )
    found = solve(METHODS["PiGDM"], jr.key(11), prior=far)
    assert (found.finite < 1).any()
    assert jnp.isfinite(found.log_evidence)
    chex.assert_tree_all_finite(found.weighted.mean())


class LongerLast(eqx.Module):
    def alpha(self, time):
        return jnp.ones_like(time)

    def sigma(self, time):
        return time

    def sigmas(self, steps):
        return jnp.linspace(2.0, 0.5, steps + 1)


def test_wrong_use_is_reported():
    draw = lambda **settings: smc(
        settings.pop("denoiser", PRIOR),
        settings.pop("schedule", SCHEDULE),
        OBSERVATION,
        (3,),
        key=jr.key(0),
        **{"particles": 4, "steps": 3, **settings},
    )
    for name, value in (("particles", 1), ("batch", 0), ("steps", 0)):
        with pytest.raises(
            ValueError, match=f"`{name}` must be at least .* got {value}"
        ):
            draw(**{name: value})
    with pytest.raises(eqx.EquinoxRuntimeError, match="`threshold` must not be neg"):
        draw(threshold=-0.1)
    with pytest.raises(eqx.EquinoxRuntimeError, match="last level of `schedule` must"):
        draw(schedule=LongerLast())
    with pytest.raises(ValueError, match=r"was given float64\(3,\) and returned"):
        draw(denoiser=lambda x, sigma, *, condition=None: x[:2])
    with pytest.raises(ValueError, match="needs a twist of the noisy state"):
        draw(twist=Plain(), proposal=LocallyOptimal())
