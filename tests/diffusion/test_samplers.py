import time

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import tqdm
from scipy import stats

from skyens.diffusion import (
    DDIM,
    EDM,
    CosineVariancePreserving,
    Denoiser,
    DiagonalGaussianDenoiser,
    DPMSolver2M,
    DPMSolver2S,
    DPMSolver3M,
    DPMSolverSDE,
    Euler,
    ExponentialSDE,
    GaussianDenoiser,
    Heun,
    Method,
    PredictorCorrector,
    RectifiedFlow,
    Schedule,
    VarianceExploding,
    VariancePreserving,
    White,
    sample,
)

METHODS = [
    Euler(),
    DDIM(),
    Heun(10.0),
    DPMSolver2S(),
    DPMSolver2M(),
    DPMSolver3M(),
    ExponentialSDE(),
    DPMSolverSDE(),
    PredictorCorrector(DPMSolver2M()),
]
every_method = pytest.mark.parametrize(
    "method", METHODS, ids=[type(method).__name__ for method in METHODS]
)
# The plans with roots, logarithms and branches
some_methods = pytest.mark.parametrize(
    "method",
    [Heun(10.0), DPMSolver2S(), DPMSolver3M(), PredictorCorrector(DPMSolverSDE())],
    ids=["Heun", "2S", "3M", "SDE"],
)
MEAN, VARIANCES = jnp.array([0.5, -1.0, 2.0]), jnp.array([0.1, 1.0, 4.0])
PRIOR = DiagonalGaussianDenoiser(MEAN, VARIANCES)
START = jnp.array([1.0, -0.5, 0.3])


def variances(method, schedule, size=4000, **settings):
    denoiser = DiagonalGaussianDenoiser(jnp.zeros(size), jnp.full(size, 1.5))
    settings = {"key": jr.key(1), "method": method, **settings}
    return np.var(sample(denoiser, schedule, (size,), **settings))


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
        scale = np.diag(covariance)
        chance = np.sqrt((np.outer(scale, scale) + covariance**2) / 4000)
        assert (np.abs(np.cov(samples.T) - covariance) < 4 * chance).all()


@every_method
def test_every_method_draws_the_prior(method):
    assert isinstance(method, Method)
    # A variance of n samples errs by sqrt(2 / n), 2.2 percent; steps of first order,
    # and of Langevin dynamics, by a little more.
    np.testing.assert_allclose(variances(method, EDM(), steps=100), 1.5, rtol=0.12)


@pytest.mark.parametrize(
    "schedule",
    [
        VarianceExploding(),
        VariancePreserving(),
        CosineVariancePreserving(),
        RectifiedFlow(),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_every_schedule_draws_the_prior(schedule):
    np.testing.assert_allclose(
        variances(DPMSolver2M(), schedule, steps=100), 1.5, rtol=0.12
    )


@every_method
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_every_method_keeps_the_dtype(method, dtype):
    settings = {"method": method, "steps": 4, "dtype": dtype}
    draw = lambda key: sample(PRIOR, EDM(), (3,), key=key, **settings)
    drawn = jax.eval_shape(jax.vmap(draw), jr.split(jr.key(1), 5))
    assert (drawn.shape, drawn.dtype) == ((5, 3), dtype)


def test_bfloat16_samples_stay_finite():
    settings = {"method": DPMSolver2M(), "steps": 40, "dtype": jnp.bfloat16}
    draw = lambda key: sample(PRIOR, EDM(), (3,), key=key, **settings)
    chex.assert_tree_all_finite(jax.jit(jax.vmap(draw))(jr.split(jr.key(1), 5)))


@some_methods
def test_float32_follows_float64(method, end_of_walk):
    levels = EDM().sigmas(30)
    exact = end_of_walk(method, PRIOR, levels, START)
    single = end_of_walk(method, PRIOR, levels, START.astype(jnp.float32))
    assert single.dtype == jnp.float32
    # The start, 80 times unit noise, is the largest number met.
    chex.assert_trees_all_close(single.astype(jnp.float64), exact, atol=80 * 1e-6)


@some_methods
def test_gradients_flow_to_prior_and_levels(method, end_of_walk):
    levels = EDM().sigmas(12)

    def total(shift, stretch):
        denoiser = DiagonalGaussianDenoiser(MEAN + shift, VARIANCES)
        return end_of_walk(method, denoiser, stretch * levels, START).sum()

    slopes = jax.grad(total, argnums=(0, 1))(0.0, 1.0)
    chex.assert_tree_all_finite(slopes)
    by_shift = (total(1e-5, 1.0) - total(-1e-5, 1.0)) / 2e-5
    by_stretch = (total(0.0, 1 + 1e-5) - total(0.0, 1 - 1e-5)) / 2e-5
    chex.assert_trees_all_close(slopes, (by_shift, by_stretch), rtol=1e-6, atol=1e-7)


def test_gradients_reach_the_ends_of_a_schedule_and_can_be_recomputed():
    def total(high, checkpoint):
        schedule, settings = EDM(sigma_max=high), {"steps": 6, "key": jr.key(2)}
        return sample(PRIOR, schedule, (3,), checkpoint=checkpoint, **settings).sum()

    stored, again = (jax.grad(total)(60.0, choice) for choice in (False, True))
    chex.assert_trees_all_close(stored, again, rtol=1e-12)
    change = (total(60 + 1e-3, False) - total(60 - 1e-3, False)) / 2e-3
    chex.assert_trees_all_close(stored, change, rtol=1e-5)


def test_without_64_bits_the_default_is_single():
    with jax.enable_x64(False):
        prior = DiagonalGaussianDenoiser(jnp.zeros(3), jnp.ones(3))
        drawn = sample(prior, EDM(), (3,), key=jr.key(0), steps=3)
    assert drawn.dtype == jnp.float32


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


def test_memory_grows_by_the_plan_alone_with_the_steps():
    denoiser = DiagonalGaussianDenoiser(jnp.zeros(100), jnp.ones(100))

    def temporary(steps):
        draw = lambda key: sample(denoiser, EDM(), (100,), key=key, steps=steps)
        run = jax.jit(lambda key: jax.vmap(draw)(jr.split(key, 50)))
        memory = run.lower(jr.key(0)).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    # Some numbers of 8 bytes per step, but not the 5,000 of a state.
    assert temporary(500) - temporary(20) < 480 * 8 * 20


def test_the_condition_reaches_the_denoiser():
    denoiser = lambda x, sigma, *, condition=0.0: jnp.full_like(x, condition)
    ends = sample(denoiser, EDM(), (2,), key=jr.key(0), steps=3, condition=7.0)
    chex.assert_trees_all_close(ends, jnp.full(2, 7.0))


@pytest.fixture
def bars(monkeypatch):
    """Bars, as what they were told."""
    made = []

    class Bar:
        def __init__(self, *, total, desc, **more):
            self.total, self.desc, self.n, self.closed = total, desc, 0, False
            made.append(self)

        def update(self, number):
            self.n += number

        def close(self):
            self.closed = True

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    return made


def test_the_bar_ends_where_the_samples_do(bars):
    draw = lambda key, progress: sample(
        PRIOR, EDM(), (3,), key=key, steps=30, progress=progress
    )
    keys = jr.split(jr.key(0), 4)
    quiet, shown = (
        jax.jit(jax.vmap(lambda key, show=show: draw(key, show)))(keys)
        for show in (False, "Members")
    )
    jax.effects_barrier()
    chex.assert_trees_all_equal(quiet, shown)
    (bar,) = bars
    assert (bar.desc, bar.total, bar.n, bar.closed) == ("Members", 30, 30, True)


def test_nobody_is_bothered_within_five_seconds(capsys):
    start = time.monotonic()
    sample(PRIOR, EDM(), (3,), key=jr.key(0), steps=3, progress=True)
    jax.effects_barrier()
    if time.monotonic() - start < 5:
        assert capsys.readouterr().err == ""


def test_wrong_use_is_reported(given_levels):
    def draw(denoiser: Denoiser = PRIOR, schedule: Schedule | None = None, **rest):
        schedule, law = schedule or EDM(), White()
        return sample(denoiser, schedule, (3,), key=jr.key(0), noise=law, **rest)

    with pytest.raises(ValueError, match="`steps` must be at least 1, got 0"):
        draw(steps=0)
    with pytest.raises(ValueError, match=r"3 levels for 2 steps, got .* shape \(5,\)"):
        draw(schedule=given_levels(jnp.arange(5.0)[::-1]), steps=2)
    for levels in (
        [1.0, 1.0, 0.0],
        [1.0, 2.0, 0.0],
        [2.0, 1.0, -1.0],
        [2.0, jnp.nan, 0.0],
    ):
        with pytest.raises(eqx.EquinoxRuntimeError, match="must be finite, decrease"):
            draw(schedule=given_levels(jnp.array(levels)), steps=2)
    with pytest.raises(eqx.EquinoxRuntimeError, match="must be finite, decrease"):
        eqx.filter_jit(draw)(schedule=given_levels(jnp.array([1.0, 2.0, 0.0])), steps=2)
    with pytest.raises(
        ValueError, match=r"given float64\(3,\) and returned float64\(2,\)"
    ):
        draw(denoiser=lambda x, sigma, *, condition=None: x[:2])
    with pytest.raises(ValueError, match=r"given float64\(3,\) and returned float32"):
        draw(denoiser=lambda x, sigma, *, condition=None: x.astype(jnp.float32))
    with pytest.raises(ValueError, match=r"mean's shape \(3,\), got \(4,\)"):
        sample(PRIOR, EDM(), (4,), key=jr.key(0))
    narrow = lambda shape, dtype, *, key: jr.normal(key, shape, jnp.float32)
    with pytest.raises(ValueError, match=r"the dtype float64 asked for, got float32"):
        sample(PRIOR, EDM(), (3,), key=jr.key(0), noise=narrow)
