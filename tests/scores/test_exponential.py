import jax.numpy as jnp
import numpy as np
import scoringrules
from scipy import stats

from skyens.scores import crps_exponential, log_score_exponential


def test_it_agrees_with_scoringrules_and_scipy():
    truth = jnp.array([0.5, 4.0, 0.0])
    parameters = [jnp.array(x) for x in [[0.2, 1.0, 3.0]]]
    args = [*parameters, truth]
    peer = scoringrules.crps_exponential(
        np.asarray(truth), *map(np.asarray, [1 / x for x in parameters])
    )
    np.testing.assert_allclose(crps_exponential(*args), peer, rtol=1e-10)
    log_density = stats.expon.logpdf(truth, scale=parameters[0])
    score = log_score_exponential(*args)
    np.testing.assert_allclose(score, -log_density, rtol=1e-12)


def test_a_negative_truth_adds_its_distance_and_cannot_be():
    scale, truth = jnp.array([2.0, 2.0]), jnp.array([-1.5, 0.0])
    # Below the support the score is half the scale and the distance.
    np.testing.assert_allclose(crps_exponential(scale, truth), [2.5, 1.0], rtol=1e-15)
    assert log_score_exponential(scale, truth).tolist() == [np.inf, np.log(2)]
