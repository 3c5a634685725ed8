import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.assimilation import ESMDA, ETKF, AdaptiveInflation, IEnKS, Inflated
from skyens.assimilation._window import (
    ErrorOfTimes,
    check_observation,
    hide_all_but,
    holds_step,
    layers,
    observe_times,
    recorded,
)
from skyens.observations import Dense, Diagonal, Index, Observation, StudentT

KEY = jr.key(0)
COVARIANCE = np.array([[1.0, 0.5], [0.5, 2.0]])


def test_a_method_that_holds_another_has_its_step():
    step = lambda state, forcing=None, *, key=None: state
    for inner in (IEnKS(step), ESMDA(2, step=step)):
        method = Inflated(AdaptiveInflation(inner))
        assert [type(layer) for layer in layers(method)[:2]] == [
            Inflated,
            AdaptiveInflation,
        ]
        assert layers(method)[2] is inner
        assert holds_step(inner)
        assert holds_step(method)
    for method in (ESMDA(2), Inflated(ETKF()), lambda background, *_: background):
        assert not holds_step(method)


def stacked(error, times=3):
    values = jr.normal(KEY, (times, 2)).at[1, 0].set(jnp.nan)
    observe = lambda value: Observation(
        value, Index(np.arange(2)), error, coordinates={"x": value}
    )
    return values, observe, observe_times(observe, values)


@pytest.mark.parametrize(
    "error", [Diagonal(0.5), Dense(COVARIANCE), StudentT(0.5, 4.0)]
)
def test_a_recorded_observation_is_those_of_its_times(error):
    values, observe, observations = stacked(error)
    predictions = jr.normal(jr.key(1), (4, 3, 2))
    whole = recorded(observations, predictions)
    assert whole.error.independent == error.independent
    np.testing.assert_array_equal(whole.operator.predictions, predictions)
    assert whole.coordinates is not None
    np.testing.assert_array_equal(whole.coordinates["x"], values)
    mean = predictions.mean(0)
    law, density = whole.gaussian_error(mean), 0.0
    residual = whole.residual(mean)
    white = law.whiten(residual, whole.mask)
    for time, value in enumerate(values):
        one = observe(value)
        gaussian = one.gaussian_error(mean[time])
        expected = gaussian.whiten(one.residual(mean[time]), one.mask)
        np.testing.assert_allclose(white[time], expected, rtol=1e-12)
        density += error.log_prob(one.residual(mean[time]), one.mask)
    assert white[1, 0] == 0
    found = whole.law(mean).log_prob(residual, whole.mask)
    np.testing.assert_allclose(found, density, rtol=1e-12)


def test_samples_of_different_times_differ_and_have_the_law():
    error = ErrorOfTimes(jax.vmap(lambda _: Dense(COVARIANCE))(jnp.arange(4000)))
    draws = error.sample(jnp.zeros((4000, 2)), key=KEY)
    # Standard errors of variances: 2 * sqrt(2 / 4000).
    np.testing.assert_allclose(np.cov(draws.T), COVARIANCE, atol=0.15)
    assert len(np.unique(draws)) == 8000


def test_what_is_not_new_is_masked_and_what_is_rejected_counts_once():
    values, observe, _ = stacked(Diagonal(1.0))
    wrong = jnp.asarray([True, False])
    observations = observe_times(lambda v: observe(v).reject(wrong), values)
    hidden = hide_all_but(observations, jnp.asarray([False, True, True]))
    np.testing.assert_array_equal(hidden.mask, [[0, 0], [0, 1], [0, 1]])
    np.testing.assert_array_equal(hidden.rejected, [[0, 0], [0, 0], [1, 0]])


def test_what_is_no_observation_is_reported():
    with pytest.raises(ValueError, match=r"must return an Observation .* got NoneType"):
        check_observation(None)
