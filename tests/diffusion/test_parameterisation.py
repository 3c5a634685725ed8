import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens import training
from skyens.diffusion import (
    EDM,
    CosineVariancePreserving,
    Denoiser,
    DiagonalGaussianDenoiser,
    Parameterisation,
    PredictsClean,
    PredictsNoise,
    PredictsScore,
    PredictsV,
    PredictsVelocity,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    as_denoiser,
    as_network,
    sample,
)

MEAN, VARIANCES = np.array([0.5, -1.0, 2.0]), np.array([0.1, 1.0, 4.0])
PRIOR = DiagonalGaussianDenoiser(jnp.asarray(MEAN), jnp.asarray(VARIANCES))
X = np.array([0.7, -0.2, 1.1])
SCHEDULES = [
    EDM(0.01, 50.0),
    VarianceExploding(),
    VariancePreserving(),
    CosineVariancePreserving(),
    RectifiedFlow(),
]
every_schedule = pytest.mark.parametrize(
    "schedule", SCHEDULES, ids=[type(schedule).__name__ for schedule in SCHEDULES]
)


def predictions(schedule, x, time):
    """Return what an ideal network of each kind predicts, for a Gaussian law.

    All are expectations of alpha, sigma, their slopes, the clean state and the noise,
    given x, which is jointly Gaussian with the last two.
    """
    alpha, sigma = (
        float(f(jnp.asarray(time))) for f in (schedule.alpha, schedule.sigma)
    )
    slope = lambda f: float(f(jnp.asarray(time + 1e-6)) - f(jnp.asarray(time - 1e-6)))
    total = alpha**2 * VARIANCES + sigma**2
    away = (x - alpha * MEAN) / total
    clean, noise = MEAN + alpha * VARIANCES * away, sigma * away
    velocity = slope(schedule.alpha) * clean + slope(schedule.sigma) * noise
    return {
        PredictsClean: clean,
        PredictsNoise: noise,
        PredictsScore: -away,
        PredictsV: alpha * noise - sigma * clean,
        PredictsVelocity: velocity / 2e-6,
    }


KINDS = list(predictions(SCHEDULES[0], X, 0.5))
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_schedule
@every_kind
def test_a_denoiser_predicts_what_the_law_says(kind, schedule):
    assert isinstance(kind(), Parameterisation)
    network = as_network(PRIOR, schedule, kind())
    for time in (0.2, 0.6):
        expected = predictions(schedule, X, time)[kind]
        rough = 1e-6 if kind is PredictsVelocity else 1e-10  # finite differences
        chex.assert_trees_all_close(network(jnp.asarray(X), time), expected, rtol=rough)


@every_schedule
@every_kind
def test_a_network_becomes_the_denoiser_it_was_made_of(kind, schedule):
    denoiser = as_denoiser(as_network(PRIOR, schedule, kind()), schedule, kind())
    assert isinstance(denoiser, Denoiser)
    for sigma in (0.05, 1.0, 20.0):
        x = jnp.asarray(MEAN + np.sqrt(VARIANCES + sigma**2) * X)
        again = denoiser(x, sigma)
        chex.assert_trees_all_close(again, PRIOR(x, sigma), rtol=1e-8, atol=1e-9)


@every_kind
def test_it_stays_single_precise_and_differentiable(kind):
    schedule = VariancePreserving()
    denoiser = as_denoiser(as_network(PRIOR, schedule, kind()), schedule, kind())
    x = jnp.asarray(X, jnp.float32)
    clean, slope = jax.jit(jax.value_and_grad(lambda x: denoiser(x, 1.5).sum()))(x)
    assert clean.dtype == slope.dtype == jnp.float32
    gain = VARIANCES / (VARIANCES + 1.5**2)
    chex.assert_trees_all_close(slope, gain.astype(np.float32), rtol=1e-4)


def test_network_and_denoiser_are_told_time_level_and_condition():
    schedule, told = RectifiedFlow(), []

    def network(x, time, *, condition=None):
        told.append((np.asarray(x), float(time), condition))
        return jnp.zeros_like(x)

    as_denoiser(network, schedule, PredictsClean())(jnp.ones(2), 3.0, condition="c")
    ((x, time, condition),) = told
    # alpha = 1 - t and sigma / alpha = 3 at t = 3 / 4
    np.testing.assert_allclose(x, 0.25)
    assert (time, condition) == (0.75, "c")
    inner = lambda x, sigma, *, condition=None: told.append((x, sigma, condition)) or x
    as_network(inner, schedule, PredictsClean())(jnp.ones(2), 0.75, condition="d")
    x, sigma, condition = told[-1]
    np.testing.assert_allclose(x, 4.0)
    np.testing.assert_allclose(sigma, 3.0)
    assert condition == "d"


def test_the_schedule_is_no_parameter_of_the_network():
    network = eqx.nn.Linear(3, 3, key=jax.random.key(0))
    denoiser = as_denoiser(
        network, EDM(), PredictsNoise(), sigma_min=0.1, sigma_max=9.0
    )
    assert (denoiser.sigma_min, denoiser.sigma_max) == (0.1, 9.0)
    trained = eqx.filter(denoiser, training.trainable(denoiser))
    assert len(jax.tree.leaves(trained)) == 2


@every_schedule
def test_samplers_stay_in_the_times_of_its_schedule(schedule):
    zero = lambda x, time, *, condition=None: jnp.zeros_like(x)
    denoiser = as_denoiser(zero, schedule, PredictsNoise())
    draw = lambda levels: sample(denoiser, levels, (3,), key=jax.random.key(0), steps=3)
    chex.assert_tree_all_finite(draw(schedule))
    last = float(denoiser.sigma_max)
    if not np.isfinite(last) or last > 1e6:  # no signal is left at time 1
        return
    np.testing.assert_allclose(last, schedule.sigmas(1)[0], rtol=1e-12)
    with pytest.raises(eqx.EquinoxRuntimeError, match="beyond its `sigma_max`"):
        draw(EDM(1.0, 1.1 * last))
