import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import dynamics
from skyens.assimilation import ETKF, AdaptiveInflation, Inflated, Multiplicative, cycle
from skyens.assimilation._ensemble import Recorded
from skyens.observations import Diagonal, Index, Observation

everything = Index(np.arange(40))
see = lambda value: Observation(value, everything, Diagonal(1.0))
analyse = eqx.filter_jit(lambda method, *args: method(*args))


def problem(members=6):
    generator = np.random.default_rng(0)
    background = jnp.asarray(generator.normal(size=(members, 40)) + 3)
    return background, see(3 + 2 * generator.normal(size=40))


def test_it_finds_the_variance_that_an_ensemble_lacks():
    # Truths 2.5 times as variable as the members that stand for them, each time anew.
    factor, cycles = 2.5, 400

    def fresh(state, forcing=None, *, key):
        return jr.normal(key, (40,))

    generator = np.random.default_rng(1)
    truth = factor**0.5 * generator.normal(size=(cycles, 40))
    values = jnp.asarray(truth + generator.normal(size=(cycles, 40)))
    method = AdaptiveInflation(ETKF(), deviation=2.0, drift=0.0)
    run = eqx.filter_jit(
        lambda method: cycle(
            fresh, method, jnp.zeros((20, 40)), see, values, key=jr.key(0)
        )
    )
    result = run(method)
    # The mean of 20 members is off by 1/20 of their variance: that is asked for too.
    expected = factor + 1 / 20
    known = result.infos.method
    assert np.all(np.diff(known.variance) < 0)
    final, deviation = float(known.factor[-1]), float(known.variance[-1]) ** 0.5
    assert abs(final - expected) < 4 * deviation
    assert deviation < 0.1
    np.testing.assert_allclose(result.infos.inflation**2, known.factor, rtol=1e-12)
    assert float(result.method.factor) == final


def test_one_innovation_moves_the_factor_as_kalman_would():
    background, observation = problem()
    method = AdaptiveInflation(ETKF(), 1.2, deviation=0.4, drift=0.3)
    analysis, info = analyse(method, background, observation)
    members = np.asarray(background)
    trace = members.var(0, ddof=1).sum()
    innovation = np.asarray(observation.value) - members.mean(0)
    estimate = (np.sum(innovation**2) - 40) / trace
    noise = 2 / 40 * ((1.2 * trace + 40) / trace) ** 2
    prior = 0.4**2 + 0.3**2
    factor = (prior * estimate + noise * 1.2) / (prior + noise)
    np.testing.assert_allclose(info.method.factor, factor, rtol=1e-12)
    variance = prior * noise / (prior + noise)
    np.testing.assert_allclose(info.method.variance, variance, rtol=1e-12)
    expected, _ = analyse(
        Inflated(ETKF(), before=Multiplicative(factor**0.5)), background, observation
    )
    np.testing.assert_allclose(analysis, expected, rtol=1e-11)


def test_recorded_predictions_are_inflated_like_the_members():
    background, observation = problem()
    recorded = Observation(observation.value, Recorded(background), observation.error)
    method = AdaptiveInflation(ETKF(), 1.2)
    expected, _ = analyse(method, background, observation)
    actual, _ = analyse(method, background, recorded)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_nothing_used_teaches_nothing_and_no_spread_is_no_harm():
    background, observation = problem()
    method = AdaptiveInflation(ETKF(), 1.2)
    blind = eqx.tree_at(lambda o: o.mask, observation, jnp.zeros(40, bool))
    untouched, info = analyse(method, background, blind)
    np.testing.assert_array_equal(untouched, background)
    assert float(info.method.factor) == 1.2
    assert float(info.method.variance) == 0.25

    def total(background):
        analysis, info = method(background, observation)
        return jnp.sum(analysis) + info.inflation

    gradient = jax.jit(jax.grad(total))(jnp.ones((6, 40)))
    assert np.isfinite(np.asarray(gradient)).all()


def test_it_makes_up_for_a_wrong_model():
    # The world has a forcing of 8, the model one of 7.5.
    start = jr.normal(jr.key(5), (40,)) + 8
    truth = jax.jit(lambda: dynamics.rollout(dynamics.Lorenz96(), start, 700)[200:])()
    values = truth + jr.normal(jr.key(6), truth.shape)
    ensemble = truth[:1] + jr.normal(jr.key(7), (24, 40))

    def run(method):
        return cycle(
            dynamics.Lorenz96(forcing=7.5),
            method,
            ensemble,
            see,
            values[1:],
            key=jr.key(8),
            reduce=lambda ensemble: ensemble.mean(0),
        )

    run = eqx.filter_jit(run)
    adapted = run(AdaptiveInflation(ETKF(rotate=True)))
    error = lambda result: np.sqrt(np.mean((result.analyses - truth[1:])[250:] ** 2))
    assert error(adapted) < 0.4  # the best constant inflation of 1.1: 0.34
    assert 1.02 < float(adapted.infos.inflation[-1]) < 1.6
    # Innovations are then as large as they are expected to be.
    assert 0.9 < np.mean(adapted.infos.chi_square[250:]) < 1.1
    constant = AdaptiveInflation(ETKF(rotate=True), 1.02, deviation=0.0, drift=0.0)
    plain = run(constant)
    assert np.ptp(plain.infos.inflation) == 0
    assert error(plain) > 1


def test_wrong_use_is_reported():
    with pytest.raises(eqx.EquinoxRuntimeError, match="`deviation` must not be neg"):
        AdaptiveInflation(ETKF(), deviation=-1.0)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`drift` must not be negative"):
        AdaptiveInflation(ETKF(), drift=-1.0)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`factor` must be above 0"):
        AdaptiveInflation(ETKF(), 0.0)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`bounds` must be above 0"):
        AdaptiveInflation(ETKF(), bounds=(2.0, 1.0))
