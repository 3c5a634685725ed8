from itertools import pairwise

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

from skyens.diffusion import (
    EDM,
    Denoiser,
    DiagonalGaussianDenoiser,
    DPMSolver2M,
    Euler,
    GaussianDenoiser,
    Heun,
    Method,
    Schedule,
    White,
    sample,
)

METHODS = [Euler(), Heun(), DPMSolver2M()]
NAMES = ["Euler", "Heun", "DPMSolver2M"]
every_method = pytest.mark.parametrize("method", METHODS, ids=NAMES)


class Fixed(eqx.Module):
    """Noise that is always the same array."""

    value: jax.Array

    def __call__(self, shape, dtype, *, key):
        return self.value.astype(dtype).reshape(shape)


class Levels(eqx.Module):
    """A user's own schedule: levels given one by one."""

    levels: jax.Array

    def alpha(self, time):
        return jnp.ones_like(time)

    def sigma(self, time):
        return time

    def sigmas(self, steps):
        return self.levels


def two_points(x, sigma, *, condition=None):
    """Denoise a law with half its mass at +1 and half at -1."""
    return jnp.tanh(x / sigma**2)


@jax.jit
def end_of_flow(method, denoiser, levels, noise):
    schedule, steps = Levels(levels), levels.size - 1
    draw = Fixed(noise)
    settings = {"method": method, "steps": steps, "noise": draw, "dtype": noise.dtype}
    return sample(denoiser, schedule, noise.shape, key=jr.key(0), **settings)


MEAN, VARIANCES = np.array([0.5, -1.0, 2.0]), np.array([0.1, 1.0, 4.0])
START = jnp.array([1.0, -0.5, 0.3])


def flow_error(method, steps):
    """Return the largest error after `steps` steps, against the exact flow map."""
    denoiser = DiagonalGaussianDenoiser(jnp.asarray(MEAN), jnp.asarray(VARIANCES))
    levels = EDM(1e-4, 80.0).sigmas(steps)
    shrink = np.sqrt(VARIANCES / (VARIANCES + 80.0**2))
    exact = MEAN + shrink * (80 * np.asarray(START) - MEAN)
    return np.abs(end_of_flow(method, denoiser, levels, START) - exact).max()


@pytest.mark.parametrize(
    ("method", "order"), list(zip(METHODS, (1, 2, 2), strict=True))
)
def test_the_exact_flow_is_approached_at_the_methods_order(method, order):
    fewer, more = flow_error(method, 100), flow_error(method, 200)
    np.testing.assert_allclose(np.log2(fewer / more), order, atol=0.1)


def test_one_evaluation_a_step_wins_at_equal_cost():
    heun = flow_error(Heun(), 40)  # 79 evaluations
    assert flow_error(DPMSolver2M(), 79) < heun / 2
    assert flow_error(Euler(), 79) > heun


def reference(method, x, levels):
    """Follow the published algorithms, step by step, on the two-point law."""
    denoise = lambda x, sigma: np.tanh(x / sigma**2)
    past = previous = None
    for now, after in pairwise(levels):
        clean = denoise(x, now)
        if method == "DPMSolver2M":  # Lu et al. (2022), in lambda = -log(sigma)
            target = clean
            if past is not None and after > 0:
                r = np.log(previous / now) / np.log(now / after)
                target = (1 + 1 / (2 * r)) * clean - past / (2 * r)
            h = np.log(now / after) if after > 0 else np.inf
            x = after / now * x - np.expm1(-h) * target
            past, previous = clean, now
            continue
        slope = (x - clean) / now
        reached = x + (after - now) * slope
        if method == "Heun" and after > 0:  # Karras et al. (2022), algorithm 1
            slope = (slope + (reached - denoise(reached, after)) / after) / 2
            reached = x + (after - now) * slope
        x = reached
    return x


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("end", [0.0, 0.05])
@pytest.mark.parametrize(("method", "name"), list(zip(METHODS, NAMES, strict=True)))
def test_steps_are_the_published_ones(method, name, end, steps):
    levels = np.append(np.geomspace(5, 0.1, steps), end)
    noise = np.linspace(-2, 2, 5)
    with np.errstate(divide="ignore"):
        expected = reference(name, levels[0] * noise, levels)
    end = end_of_flow(
        method,
        jax.tree_util.Partial(two_points),
        jnp.asarray(levels),
        jnp.asarray(noise),
    )
    chex.assert_trees_all_close(end, expected, rtol=1e-11)


def churned_variance(levels, variance, churn, scale):
    """Return the variance that algorithm 2 of Karras et al. gives a Gaussian law."""
    gain = lambda sigma: variance / (variance + sigma**2)
    growth = min(churn / (len(levels) - 1), 2**0.5 - 1)
    result = levels[0] ** 2
    for now, after in pairwise(levels):
        raised = now * (1 + growth)
        result += scale**2 * (raised**2 - now**2)
        slope = (1 - gain(raised)) / raised
        factor = 1 + (after - raised) * slope
        if after > 0:
            slope_after = factor * (1 - gain(after)) / after
            factor = 1 + (after - raised) * (slope + slope_after) / 2
        result *= factor**2
    return result


@jax.jit
def churned(method, schedule):
    denoiser = DiagonalGaussianDenoiser(jnp.zeros(20_000), jnp.full(20_000, 1.5))
    settings = {"method": method, "steps": 16}
    return sample(denoiser, schedule, (20_000,), key=jr.key(3), **settings)


@pytest.mark.parametrize(("churn", "scale"), [(0.0, 1.0), (5.0, 1.0), (40.0, 1.1)])
def test_churn_gives_the_variance_of_the_published_algorithm(churn, scale):
    schedule = EDM(0.01, 20.0)
    samples = churned(Heun(churn=churn, noise_scale=scale), schedule)
    expected = churned_variance(np.asarray(schedule.sigmas(16)), 1.5, churn, scale)
    # A variance of n independent samples has relative error sqrt(2 / n) = 1 percent.
    np.testing.assert_allclose(np.var(samples), expected, rtol=0.04)
    assert stats.kstest(samples / expected**0.5, "norm").pvalue > 1e-3


def test_churn_acts_between_its_levels_only():
    levels = EDM().sigmas(10)
    raised, added, _ = Heun(churn=3.0, churn_min=0.5, churn_max=30.0).plan(levels)
    inside = (levels[:-1] >= 0.5) & (levels[:-1] <= 30)
    assert 0 < inside.sum() < 10
    chex.assert_trees_all_equal(added > 0, inside)
    chex.assert_trees_all_close(raised / levels[:-1], jnp.where(inside, 1.3, 1.0))
    chex.assert_trees_all_close(added**2, raised**2 - levels[:-1] ** 2, atol=1e-10)


class SampleTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_samples_have_the_priors_mean_and_covariance(self):
        mean = jnp.array([0.5, -0.3])
        covariance = jnp.array([[1.0, 0.6], [0.6, 0.8]])
        denoiser = GaussianDenoiser(mean, covariance)
        draw = lambda keys: jax.vmap(
            lambda key: sample(denoiser, EDM(), (2,), key=key, steps=64)
        )(keys)
        samples = np.asarray(self.variant(draw)(jr.split(jr.key(0), 4000)))
        # Starting from pure noise biases the mean by 0.5 / 80 of a deviation: far below
        # the 1 / sqrt(4000) of chance. Hotelling's statistic of 2 components:
        gap = samples.mean(0) - mean
        statistic = 4000 * gap @ np.linalg.solve(covariance, gap)
        assert statistic < stats.chi2(2).ppf(0.9999)
        # Entry ij of a sample covariance varies by (C_ii C_jj + C_ij^2) / n.
        variances = np.diag(covariance)
        chance = np.sqrt((np.outer(variances, variances) + covariance**2) / 4000)
        assert (np.abs(np.cov(samples.T) - covariance) < 4 * chance).all()


@every_method
def test_bfloat16_samples_keep_their_dtype_and_stay_finite(method):
    assert isinstance(method, Method)
    denoiser = DiagonalGaussianDenoiser(jnp.zeros((2, 3)), jnp.ones((2, 3)))
    settings = {"method": method, "steps": 40, "dtype": jnp.bfloat16}
    draw = lambda key: sample(denoiser, EDM(), (2, 3), key=key, **settings)
    samples = jax.jit(jax.vmap(draw))(jr.split(jr.key(1), 5))
    chex.assert_shape(samples, (5, 2, 3))
    assert samples.dtype == jnp.bfloat16
    assert jnp.isfinite(samples).all()


@every_method
def test_float32_follows_float64(method):
    mean, variances = jnp.asarray(MEAN), jnp.asarray(VARIANCES)
    denoiser = DiagonalGaussianDenoiser(mean, variances)
    levels = EDM().sigmas(30)
    exact = end_of_flow(method, denoiser, levels, START)
    single = end_of_flow(method, denoiser, levels, START.astype(jnp.float32))
    assert single.dtype == jnp.float32
    # The start, 80 times unit noise, is the largest number met.
    chex.assert_trees_all_close(single.astype(jnp.float64), exact, atol=80 * 1e-6)


@every_method
def test_gradients_flow_to_prior_and_schedule(method):
    def total(mean, variances, high):
        denoiser = DiagonalGaussianDenoiser(mean, variances)
        return sample(
            denoiser, EDM(sigma_max=high), (3,), key=jr.key(2), method=method, steps=12
        ).sum()

    at = (jnp.zeros(3), jnp.ones(3), jnp.asarray(60.0))
    slopes = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*at)
    chex.assert_tree_all_finite(slopes)
    shifted = jax.jit(total)(at[0] + 1e-5, *at[1:]) - jax.jit(total)(
        at[0] - 1e-5, *at[1:]
    )
    chex.assert_trees_all_close(slopes[0].sum(), shifted / 2e-5, rtol=1e-6)


def test_gradients_are_finite_without_churn_too():
    denoiser = DiagonalGaussianDenoiser(jnp.zeros(2), jnp.ones(2))
    total = lambda churn: sample(
        denoiser, EDM(), (2,), key=jr.key(0), method=Heun(churn), steps=4
    ).sum()
    slopes = jax.jit(jax.vmap(jax.grad(total)))(jnp.array([0.0, 1.0]))
    chex.assert_tree_all_finite(slopes)


def test_keys_make_samples_and_repeat_them():
    denoiser = DiagonalGaussianDenoiser(jnp.zeros(3), jnp.ones(3))
    draw = jax.jit(
        lambda key: sample(denoiser, EDM(), (3,), key=key, method=Heun(10.0), steps=6)
    )
    chex.assert_trees_all_equal(draw(jr.key(0)), draw(jr.key(0)))
    assert (draw(jr.key(0)) != draw(jr.key(1))).all()
    # Alone or among others: the same sample.
    batch = jax.jit(jax.vmap(draw))(jr.split(jr.key(2), 3))
    chex.assert_trees_all_close(batch[1], draw(jr.split(jr.key(2), 3)[1]), atol=1e-12)


def test_the_condition_reaches_the_denoiser():
    denoiser = lambda x, sigma, *, condition=0.0: jnp.full_like(x, condition)
    ends = sample(denoiser, EDM(), (2,), key=jr.key(0), steps=3, condition=7.0)
    chex.assert_trees_all_close(ends, jnp.full(2, 7.0))


def test_wrong_use_is_reported():
    prior = DiagonalGaussianDenoiser(jnp.zeros(3), jnp.ones(3))

    def draw(denoiser: Denoiser = prior, schedule: Schedule | None = None, **rest):
        schedule, law = schedule or EDM(), White()
        return sample(denoiser, schedule, (3,), key=jr.key(0), noise=law, **rest)

    with pytest.raises(ValueError, match="`steps` must be at least 1, got 0"):
        draw(steps=0)
    with pytest.raises(ValueError, match=r"3 levels for 2 steps, got .* shape \(5,\)"):
        draw(schedule=Levels(jnp.arange(5.0)[::-1]), steps=2)
    for levels in (
        [1.0, 1.0, 0.0],
        [1.0, 2.0, 0.0],
        [2.0, 1.0, -1.0],
        [2.0, jnp.nan, 0.0],
    ):
        with pytest.raises(eqx.EquinoxRuntimeError, match="must be finite, decrease"):
            draw(schedule=Levels(jnp.array(levels)), steps=2)
    with pytest.raises(eqx.EquinoxRuntimeError, match="must be finite, decrease"):
        eqx.filter_jit(draw)(schedule=Levels(jnp.array([1.0, 2.0, 0.0])), steps=2)
    with pytest.raises(
        ValueError, match=r"given float64\(3,\) and returned float64\(2,\)"
    ):
        draw(denoiser=lambda x, sigma, *, condition=None: x[:2])
    with pytest.raises(ValueError, match=r"given float64\(3,\) and returned float32"):
        draw(denoiser=lambda x, sigma, *, condition=None: x.astype(jnp.float32))
    with pytest.raises(ValueError, match=r"mean's shape \(3,\), got \(4,\)"):
        sample(prior, EDM(), (4,), key=jr.key(0))
    for settings in ({"churn": -1.0}, {"churn_min": 2.0, "churn_max": 1.0}):
        with pytest.raises(eqx.EquinoxRuntimeError, match="must not be negative"):
            Heun(**settings)
