import chex
import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

from skyens.diffusion import (
    DiagonalGaussianDenoiser,
    GaussianMixtureDenoiser,
    Hutchinson,
    flow,
    flow_term,
    log_prob,
    reverse_sde,
    reverse_terms,
)

MEAN, VARIANCES = np.array([0.5, -1.0, 2.0]), np.array([0.1, 1.0, 4.0])
PRIOR = DiagonalGaussianDenoiser(jnp.asarray(MEAN), jnp.asarray(VARIANCES))
PAIR = GaussianMixtureDenoiser(
    jnp.array([[0.5, -1.0, 0.2], [1.0, 0.8, 0]]), 0.1, weights=jnp.array([0.3, 0.7])
)
START = np.array([40.0, -30.0, 8.0])
X = np.array([0.3, 0.4, 1.0])

run_flow = eqx.filter_jit(flow)
run_sde = eqx.filter_jit(reverse_sde)
run_log_prob = eqx.filter_jit(log_prob)


def exact_flow(x, start, end):
    return MEAN + np.sqrt((VARIANCES + end**2) / (VARIANCES + start**2)) * (x - MEAN)


def test_the_flow_is_exact_to_its_tolerance_in_both_directions():
    tight = lambda *ends: run_flow(PRIOR, *ends, rtol=1e-9, atol=1e-9)
    below = tight(jnp.asarray(START), 80.0, 1e-3)
    chex.assert_trees_all_close(below, exact_flow(START, 80.0, 1e-3), rtol=1e-7)
    above = tight(below, 1e-3, 80.0)
    chex.assert_trees_all_close(above, START, rtol=1e-6)
    # By default to 1e-5, which grows a little on the way up
    single = run_flow(PRIOR, jnp.asarray(START, jnp.float32), 80.0, 1e-3)
    assert single.dtype == jnp.float32
    exact = exact_flow(START, 80.0, 1e-3).astype(np.float32)
    chex.assert_trees_all_close(single, exact, rtol=1e-3)


@pytest.mark.slow
def test_the_flow_maps_over_samples_and_differentiates_in_the_prior():
    def ends(mean):
        prior = DiagonalGaussianDenoiser(mean, jnp.asarray(VARIANCES))
        run = lambda x: flow(prior, x, 80.0, 0.1, rtol=1e-8, atol=1e-8)
        return jax.vmap(run)(jnp.stack([jnp.asarray(START), jnp.asarray(X)]))

    slope = jax.jit(jax.grad(lambda mean: ends(mean).sum()))(jnp.asarray(MEAN))
    kept = np.sqrt((VARIANCES + 0.01) / (VARIANCES + 6400))
    chex.assert_trees_all_close(slope, 2 * (1 - kept), rtol=1e-5)


def test_the_term_solves_to_the_same_end():
    end = diffrax.diffeqsolve(
        flow_term(PRIOR), diffrax.Heun(), np.log(80.0), np.log(0.1), -0.02, START
    ).ys
    assert end is not None
    # Second order in steps of 0.02
    chex.assert_trees_all_close(end[0], exact_flow(START, 80.0, 0.1), rtol=1e-3)


def test_the_density_of_25_modes_is_its_own_to_a_thousandth(modes):
    prior, low = modes(8), 0.002
    points = jax.vmap(lambda key: prior.sample(key=key))(jr.split(jr.key(0), 6))
    # The middle between two modes is on the list, too.
    points = points.at[0].set((prior.means[12] + prior.means[13]) / 2)
    one = lambda x: log_prob(prior, x, low, 200.0)
    found = jax.jit(jax.vmap(one))(points)
    exact = jax.vmap(lambda x: prior.log_prob(x, low))(points)
    # What white noise at the top misses is 8 / 200^2 = 2e-4.
    np.testing.assert_allclose(found, exact, atol=1e-3)


@pytest.mark.slow
def test_the_gradient_of_the_density_is_the_score():
    x, low = jnp.array([0.7, -0.1, 0.1]), 0.05
    score = jax.jit(jax.grad(lambda x: log_prob(PAIR, x, low, 1e3)))(x)
    exact = jax.grad(lambda x: PAIR.log_prob(x, low))(x)
    chex.assert_trees_all_close(score, exact, rtol=1e-3)


def test_hutchinsons_density_is_within_its_error():
    x, size = jnp.array([0.7, -0.1, 0.1]), 400
    one = lambda key: log_prob(
        PAIR, x, 0.05, 100.0, trace=Hutchinson(), key=key, rtol=1e-4, atol=1e-4
    )
    found = np.asarray(jax.jit(jax.vmap(one))(jr.split(jr.key(3), size)))
    deviation = found.std(ddof=1)
    assert deviation > 0.1  # between the modes the Jacobian is far from diagonal
    gap = found.mean() - PAIR.log_prob(x, 0.05)
    assert abs(gap) < 4 * deviation / size**0.5


def test_single_precision_densities_keep_their_dtype():
    x = jnp.asarray(X, jnp.float32)
    found = run_log_prob(PRIOR, x, 0.05, 100.0, rtol=1e-4, atol=1e-4)
    assert found.dtype == jnp.float32
    exact = stats.norm.logpdf(X, MEAN, np.sqrt(VARIANCES + 0.05**2)).sum()
    np.testing.assert_allclose(found, exact, atol=1e-2)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_reverse_process_has_the_law_of_the_prior(eta):
    prior = DiagonalGaussianDenoiser(jnp.zeros(4000), jnp.full(4000, 1.5))
    noise = jr.normal(jr.key(0), (4000,))
    settings = {"key": jr.key(1), "steps": 60, "eta": jnp.asarray(eta)}
    ends = run_sde(prior, 20 * noise, 20.0, 0.05, **settings)
    # 4,000 independent entries; their variance errs by sqrt(2 / 4000) = 2.2 percent.
    np.testing.assert_allclose(np.var(ends), 1.5 + 0.05**2, rtol=0.1)
    assert stats.kstest(ends / np.std(ends), "norm").pvalue > 1e-3
    if eta == 0:  # The flow again, on the same path
        kept = np.sqrt((1.5 + 0.05**2) / (1.5 + 400))
        chex.assert_trees_all_close(ends, 20 * kept * noise, rtol=1e-2)


@pytest.mark.slow
def test_gradients_go_through_the_reverse_process():
    def total(mean):
        prior = DiagonalGaussianDenoiser(mean, jnp.asarray(VARIANCES))
        settings = {"key": jr.key(0), "steps": 20}
        return reverse_sde(prior, jnp.asarray(START), 80.0, 0.1, **settings).sum()

    value_and_slope = jax.jit(jax.value_and_grad(total))
    slope = value_and_slope(jnp.asarray(MEAN))[1]
    start, *ends = (
        value_and_slope(jnp.asarray(MEAN + step))[0]
        for step in np.concatenate([np.zeros((1, 3)), np.eye(3)])
    )
    # The end is linear in the mean.
    chex.assert_trees_all_close(slope, jnp.stack(ends) - start, rtol=1e-8)


def test_the_terms_drift_to_what_is_denoised():
    path = diffrax.UnsafeBrownianPath((3,), key=jr.key(0))
    drift, diffusion = reverse_terms(PRIOR, path, eta=0.5).terms
    x, sigma = jnp.asarray(X), 2.0
    towards = 1.5 * (PRIOR(x, sigma) - x)
    time = -jnp.log(sigma)
    chex.assert_trees_all_close(drift.vf(time, x, None), towards)
    stir = diffusion.vf(time, x, None).mv(jnp.ones(3))
    chex.assert_trees_all_close(stir, jnp.full(3, sigma))  # sqrt(2 eta) sigma


class Trained(eqx.Module):
    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __call__(self, x, sigma, *, condition=None):
        return x / (1 + sigma**2)


@jax.tree_util.Partial
def broken_below(x, sigma, *, condition=None):
    lost = (sigma < 3) & (x[0] > 0)
    return jnp.where(lost, jnp.nan, x / (1 + sigma**2))


def test_what_is_not_finite_says_from_which_level_on():
    x = jnp.asarray(X)  # keeps its sign on the way
    stuck = "does not get beyond noise level 3: there `denoiser`"
    quick = {"rtol": 1e-3, "atol": 1e-3, "max_steps": 100}
    # Of 60 steps from 20 to 0.1, the one from 3.1 is the first to see a level below 3.
    levels = np.geomspace(20, 0.1, 61)
    first = levels[np.sum(levels > 3) - 1]
    lost = f"not finite any more after the step from noise level {first:.6g}"
    settings = {"key": jr.key(0), "steps": 60, "eta": 0.0}
    fall = lambda x: reverse_sde(broken_below, x, 20.0, 0.1, **settings)
    with pytest.raises(eqx.EquinoxRuntimeError, match=lost):
        fall(x)
    up = lambda x: log_prob(broken_below, x, 0.1, 20.0, **quick)
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"noise level 0\.1: there"):
        up(x)
    # Under tracing: a warning, and those that are well arrive.
    down = lambda x: flow(broken_below, x, 20.0, 0.1, **quick)
    mapped = jax.jit(jax.vmap(down))
    both = jnp.stack([x, -x])
    finished = lambda: (jax.block_until_ready(mapped(both)), jax.effects_barrier())[0]
    with pytest.warns(RuntimeWarning, match=stuck):
        ends = finished()
    assert jnp.isnan(ends[0]).all()
    assert jnp.isfinite(ends[1]).all()


def test_too_few_steps_are_reported():
    message = "does not get beyond noise level .* `max_steps`, 5, are too few"
    with pytest.raises(eqx.EquinoxRuntimeError, match=message):
        flow(PRIOR, jnp.asarray(START), 80.0, 0.01, max_steps=5)


def test_wrong_use_is_reported():
    x, key = jnp.asarray(X), jr.key(0)
    for start, end in ((0.0, 1.0), (1.0, 0.0), (jnp.nan, 1.0), (jnp.inf, 1.0)):
        with pytest.raises(eqx.EquinoxRuntimeError, match="positive and finite"):
            flow(PRIOR, x, start, end)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`sigma_min` must be below"):
        log_prob(PRIOR, x, 1.0, 0.1)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`end` must be below `start`"):
        reverse_sde(PRIOR, x, 0.1, 1.0, key=key)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`eta` must not be negative"):
        reverse_sde(PRIOR, x, 1.0, 0.1, key=key, eta=-1.0)
    with pytest.raises(ValueError, match="`steps` must be at least 1, got 0"):
        reverse_sde(PRIOR, x, 1.0, 0.1, key=key, steps=0)
    with pytest.raises(ValueError, match="give a `key`"):
        log_prob(PRIOR, x, 0.1, 1.0, trace=Hutchinson())
    for run in (flow, log_prob):
        with pytest.raises(eqx.EquinoxRuntimeError, match="beyond its `sigma_max` 50"):
            run(Trained(), x, 0.1, 80.0)
    with pytest.raises(ValueError, match="`denoiser` must keep shape and dtype"):
        flow(lambda x, sigma, *, condition=None: x[:2], x, 1.0, 0.1)
