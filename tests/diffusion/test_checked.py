import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

from skyens.diffusion import (
    EDM,
    DiagonalGaussianDenoiser,
    DPMSolver2M,
    Euler,
    Heun,
    PredictorCorrector,
    ScoreFilter,
    guide,
    sample,
)
from skyens.observations import Diagonal, Observation


class Trained(eqx.Module):
    """A denoiser that knows the levels it was trained between."""

    sigma_min: float | jax.Array | None = 0.01
    sigma_max: float | jax.Array | None = 50.0

    def __call__(self, x, sigma, *, condition=None):
        return x / (1 + sigma**2)


class Wrapped(eqx.Module):
    denoiser: Trained

    def __call__(self, x, sigma, *, condition=None):
        return self.denoiser(x, sigma)


def draw(denoiser, low=0.01, high=50.0, steps=4):
    return sample(denoiser, EDM(low, high), (3,), key=jr.key(0), steps=steps)


def test_levels_inside_of_the_trained_range_pass():
    for denoiser in (
        Trained(),
        Wrapped(Trained()),
        Trained(None, None),
        Trained(0.02, None),
    ):
        chex.assert_tree_all_finite(draw(denoiser, 0.02, 40.0))
    # Its ends belong to it, in another precision too; the last level, 0, is no call.
    chex.assert_tree_all_finite(draw(Trained(jnp.float32(0.01), jnp.float32(50.0))))


@pytest.mark.parametrize("denoiser", [Trained(), Wrapped(Trained())])
def test_levels_outside_of_the_trained_range_are_reported(denoiser):
    message = "1 of 4 lie beyond its `sigma_max` 50, the first is 80"
    with pytest.raises(eqx.EquinoxRuntimeError, match=message):
        draw(denoiser, high=80.0)
    message = "1 of 4 lie beyond its `sigma_min` 0.01, the first is 0.002"
    with pytest.raises(eqx.EquinoxRuntimeError, match=message):
        draw(denoiser, low=0.002)
    with pytest.raises(eqx.EquinoxRuntimeError, match="beyond its `sigma_max`"):
        eqx.filter_jit(lambda high: draw(denoiser, high=high))(jnp.asarray(80.0))


def test_a_guided_denoiser_has_the_range_of_its_prior():
    seen = Observation(jnp.zeros(3), lambda state: state, Diagonal(1.0))
    guided = guide(Trained(), seen)
    with pytest.raises(eqx.EquinoxRuntimeError, match="beyond its `sigma_max`"):
        draw(guided, high=80.0)


@pytest.mark.parametrize(
    "wrap", [lambda method: method, PredictorCorrector], ids=["plain", "corrected"]
)
def test_levels_that_churn_raises_must_stay_inside_too(wrap):
    schedule, settings = EDM(0.01, 50.0), {"key": jr.key(0), "steps": 4}
    draw = lambda method: sample(
        Trained(), schedule, (3,), method=wrap(method), **settings
    )
    # min(2 / 4, sqrt(2) - 1) above 50, once
    message = "1 of [56] lie beyond its `sigma_max` 50, the first is 70.7107"
    with pytest.raises(eqx.EquinoxRuntimeError, match=message):
        draw(Heun(churn=2.0))
    chex.assert_tree_all_finite(draw(Heun(churn=2.0, churn_max=35.0)))


@pytest.mark.parametrize(
    "method", [Heun(), PredictorCorrector(DPMSolver2M())], ids=["Heun", "corrector"]
)
def test_methods_that_correct_at_the_last_level_keep_it_inside(method, given_levels):
    for last, fails in ((0.0, False), (0.01, False), (0.005, True)):
        schedule = given_levels(jnp.array([1.0, 0.1, last]))
        run = lambda method, schedule=schedule: sample(
            Trained(), schedule, (3,), key=jr.key(0), method=method, steps=2
        )
        chex.assert_tree_all_finite(run(Euler()))  # which never calls it there
        if not fails:
            chex.assert_tree_all_finite(run(method))
            continue
        with pytest.raises(eqx.EquinoxRuntimeError, match="beyond its `sigma_min`"):
            run(method)


def broken_below(x, sigma, *, condition=None):
    return jnp.where(sigma < 3, jnp.nan, 0.5 * x)


def broken_sometimes(x, sigma, *, condition=None):
    return jnp.where((sigma < 3) & (x[0] > 0), jnp.nan, x / (1 + sigma**2))


def test_what_is_not_finite_says_from_which_level_on():
    levels = EDM(0.01, 50.0).sigmas(6)
    first = f"{float(levels[levels < 3][0]):.6g}"
    message = f"not finite any more after the step from noise level {first}: there"
    with pytest.raises(eqx.EquinoxRuntimeError, match=message):
        draw(broken_below, steps=6)
    settings = {"steps": 6, "method": Euler()}  # which changes no sign
    walk = lambda key: sample(
        broken_sometimes, EDM(0.01, 50.0), (3,), key=key, **settings
    )
    # Under tracing: one warning for all samples, and those that are well go on.
    run = jax.jit(jax.vmap(walk))
    finished = lambda keys: (jax.block_until_ready(run(keys)), jax.effects_barrier())[0]
    with pytest.warns(RuntimeWarning, match=message) as warnings:
        samples = finished(jr.split(jr.key(0), 20))
    assert len(warnings) == 1
    good = jnp.isfinite(samples).all(axis=1)
    assert 0 < good.sum() < 20
    assert jnp.isnan(samples[~good]).all()


def test_gradients_pass_by_the_report():
    denoiser = DiagonalGaussianDenoiser(jnp.zeros(3), jnp.ones(3))
    total = lambda key, scale: sample(
        lambda x, sigma, *, condition=None: scale * denoiser(x, sigma),
        EDM(),
        (3,),
        key=key,
        steps=3,
    ).sum()
    slopes = jax.jit(jax.vmap(jax.grad(total, argnums=1), in_axes=(0, None)))
    chex.assert_tree_all_finite(slopes(jr.split(jr.key(0), 2), 1.0))


def test_a_score_filter_checks_its_levels_too(given_levels):
    seen = Observation(jnp.zeros(3), lambda state: state, Diagonal(1.0))
    method = ScoreFilter(steps=2, schedule=given_levels(jnp.array([1.0, 2.0, 0.0])))
    with pytest.raises(eqx.EquinoxRuntimeError, match="must be finite, decrease"):
        method(jr.normal(jr.key(1), (4, 3)), seen, key=jr.key(0))
